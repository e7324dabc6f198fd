"""The journal's entries: written by kernels, read back as they were."""

from __future__ import annotations

import numpy as np

from kvmon.allocators import FinishReason, Outcome, Reason, journal
from kvmon.allocators.hashing import mix64, own_hash, page_hash
from tests.naive import journal_fold


def test_entries_come_back_as_they_were_written() -> None:
    """Every length of entry, one behind the other."""
    book = journal.new_journal(64)
    row = np.array([4, 5, 6, 7], np.int32)
    journal.put1(book, journal.FIRST_TOKEN, 1)
    journal.put2(book, journal.PROGRESS, 1, 2)
    journal.put3(book, journal.ALLOC_RUN, 1, 2, 3)
    journal.put4(book, journal.FINISH, 1, 2, 3, 4)
    journal.put6(book, journal.ARRIVE, 1, 2, 3, 4, 5, 6)
    journal.put8(book, journal.STEP, 1, 2, 3, 4, 5, 6, 7, 8)
    journal.put_units(book, journal.ALLOC, 9, row, 1, 2)
    journal.put_units_reversed(book, journal.UNSHARE, 9, row, 3)
    assert journal.iterate(book.words[: book.state[journal.USED]]) == [
        (journal.FIRST_TOKEN, [1]),
        (journal.PROGRESS, [1, 2]),
        (journal.ALLOC_RUN, [1, 2, 3]),
        (journal.FINISH, [1, 2, 3, 4]),
        (journal.ARRIVE, [1, 2, 3, 4, 5, 6]),
        (journal.STEP, [1, 2, 3, 4, 5, 6, 7, 8]),
        (journal.ALLOC, [9, 2, 5, 6]),
        (journal.UNSHARE, [9, 3, 6, 5, 4]),
    ]


def test_numbers_are_permanent() -> None:
    """Codes, reasons and outcomes keep their numbers: a recording of yesterday must mean the same tomorrow."""
    told = dict(journal_fold.UNITS.items())
    told |= {code: name for code, (name, _) in journal_fold.FIXED.items()}
    assert told == journal.ENTRY_NAMES
    assert {code: length for code, (_, length) in journal_fold.FIXED.items()} == journal.ENTRY_FIELDS
    assert set(journal_fold.UNITS) == journal.WITH_UNITS
    names = "exhausted no_contiguous_run evictable_not_reclaimed all_pinned never_fits pool_starved partition_full"
    names += " watermark accounting_error unknown"
    assert {reason.name.lower(): int(reason) for reason in Reason} == {n: i + 1 for i, n in enumerate(names.split())}
    assert [int(o) for o in (Outcome.WAITS, Outcome.PREEMPTED_OTHER, Outcome.REFUSED)] == [1, 2, 3]
    assert [int(o) for o in (Outcome.PREEMPTED_ITSELF, Outcome.ABORTED)] == [4, 5]
    assert [reason.name for reason in FinishReason] == ["STOP", "LENGTH", "ABORT", "ERROR", "REFUSED"]


def test_page_names_do_not_collide_or_vanish() -> None:
    """Hashes are never 0, differ between identities, pages and requests, and neighbours stand side by side."""
    names = {int(page_hash(np.uint64(mix64(np.uint64(i))), s)) for i in range(1, 200) for s in range(32)}
    names |= {int(page_hash(np.uint64(own_hash(r)), p)) for r in range(1, 200) for p in range(32)}
    assert len(names) == 2 * 199 * 32 and 0 not in names
    fifth = np.uint64(mix64(np.uint64(5)))
    assert int(page_hash(fifth, 3)) - int(page_hash(fifth, 2)) == 1
    assert int(page_hash(np.uint64(2**64 - 1), 1)) == 1  # what wraps to 0 is named 1
    # SplitMix64 with seed 0, first output (Steele, Lea, Flood 2014).
    assert int(mix64(np.uint64(0))) == 0xE220A8397B1DCDAF
