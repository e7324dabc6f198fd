"""The journal: what an allocator and its scheduler did, in order, for whoever observes them.

A journal is a flat int64 array of entries `[code, field, ...]`. Units and requests count from 1, tokens and times are
absolute. It is not a wire format: an adapter translates it into events.

    code            fields                          meaning
    ALLOC       1   request, n, u1..un              pages taken from the front of the free queue, in this order; a page
                                                    with content loses it in this moment (that is the eviction)
    ALLOC_RUN   2   request, start, n               contiguous units taken
    FREE_RUN    3   request, start, n               contiguous units given back
    SHARE       4   request, n, u1..un              one more reference each (prefix hits); leaves the queue if in it
    UNSHARE     5   request, n, u1..un              one reference fewer each, in the order of freeing
    CACHE       6   request, n, u1..un              page is full by the end of this step, and registered by its hash
    RESET       7                                   every content and pin forgotten; references and the queue's order
                                                    stand, unused pages that were in no queue join its back by number
    ASSIGN      8   request, n, u1..un              what the block table of the request gained, once a schedule
    ASSIGN_RUN  9   request, start, n               the same for contiguous units
    RESERVE    10   request, reserved_tokens        size of the request's contiguous block now, in tokens
    USE_POOL   11   pool                            the entries behind it are about this pool, until the next USE_POOL;
                                                    pool 1 is in use between two steps. Pool 2 is the window group's own
                                                    pool (paged) or the host tier (contiguous)
    PIN        12   request, n, u1..un              content that stays when nobody refers to the page
    EVICT      13   0, n, u1..un                    pinned content given up; the units are free
    DEFER      14   request, n, u1..un              the last reference went, a transfer still reads the page
    FREE       15   request, n, u1..un              the transfer has read them: cached when they have content, else free
    ASSIGN_WINDOW 16 request, n, u1..un             what the window group's block table of the request gained
    OFFLOAD    17   request, n, u1..un              content copied to the host tier
    ONBOARD    18   request, n, u1..un              content copied back from the host tier
    COMMIT     19   request, tokens                 tokens that a preempted request keeps in the host tier
    ARRIVE     20   request, arrival_ns, class, prompt, limit, intended_output        intended 0: not known
    ADMIT      21   request, hit_tokens, lookup_tokens                                computed tokens = hit_tokens
    PROGRESS   22   request, computed_tokens                                          at the end of this step
    FIRST_TOKEN 23  request
    FINISH     24   request, reason, output_tokens, intended_output
    PREEMPT    25   request, computed_tokens_lost                                     computed tokens = 0
    FAIL       26   request, need_units, contiguity, free, evictable, largest, reason, outcome
    RELOCATE   27   request, old_start, old_n, new_start, new_n, copied_tokens        after ALLOC_RUN, before FREE_RUN
    STEP       28   start_ns, duration_ns, prefill_tokens, decode_tokens, context_tokens_read, running, waiting,
                    need_units_at_head (0: nobody waits); always the last entry of a step
    COMPACT    30   moved_units, copied_tokens      blocks slid together; each has COPY, FREE_RUN, ALLOC_RUN, ASSIGN_RUN
    CLAIMS     31   available, evictable, protected, in_flight, usage_millionths   what the engine itself says it has
    ERROR      32   error, asked_bytes, free_bytes, reserved_bytes                 something else than the pool failed
    LOST       33   entries, reason                 what an observer lost here, in its place; no allocator writes it
    COPY       34   request, from, to, tokens, why  keys and values of the first tokens from unit `from` on, copied to
                                                    unit `to` on. 1: a fork's part of a page that is not full, after
                                                    its ASSIGN; 2: a prefix that stayed behind, after the RESERVE of
                                                    the request's block; 3: a block that slides, before its FREE_RUN

Order inside a step: ARRIVE of everybody who came before it; then what scheduling did, request by request (ADMIT,
SHARE, ALLOC or ALLOC_RUN, RELOCATE, FREE_RUN, ASSIGN, RESERVE, CACHE; FAIL and PREEMPT before the UNSHARE or FREE_RUN
of the victim); then the results, request by request: PROGRESS and FIRST_TOKEN of everybody, then each FINISH with the
UNSHARE or FREE_RUN of its units behind it; then STEP. An abort from outside stands between two steps, FINISH before
its frees.

The free queue: never-used pages first, in the order of their numbers. The pages of one UNSHARE that reach no reference
and hold no content go to the front as a group, the first named at the very front; those with content go to the back one
by one. A request is released from its last page to its first, so its tail is evicted first. With LFU and FIFO pages
with content are not in the queue and go when it is empty, by their own order. EVICT sends a region's units back to the
free runs, a transfer's end (FREE) sends its pages where one UNSHARE would have.

A request that is swapped out has PREEMPT with nothing lost, COMMIT with what the host tier keeps, and a block in pool 2
from ALLOC_RUN and ASSIGN_RUN until the FREE_RUN of its return or end; where the host tier has no room there is a FAIL
of pool 2 with outcome REFUSED, and it is recomputed. A contiguous region that stays behind for the next request with
its prefix has CACHE, PIN and UNSHARE in place of its part of the FREE_RUN.

Computed tokens, exactly. `target` of a request is its prompt; a PREEMPT of a request that was decoding sets it to
computed_tokens_lost + 1, when it was swapped out to what COMMIT keeps + 1. A swapped request has what was kept from its
ONBOARD on. A request decodes from the PROGRESS that reaches its target until its PREEMPT or FINISH. At
each STEP every request that was decoding before the step, and neither finished nor was preempted in it, has one token
more, unless the step holds a PROGRESS for it: then that number stands (a running decode that was not scheduled gets
its unchanged number). Prefill chunks always have a PROGRESS. `computed_tokens_lost + 1` is the one sampled token whose
keys and values were not yet written.

FAIL is written once a wait of a request, not once a retry, and says what happened by the first refusal: with outcome
PREEMPTED_OTHER the request may still end up preempting itself, which its PREEMPT says. `need_units` is what must be
free at once: pages asked for plus prefix hits to be taken from the queue; a contiguous request its whole block, a
relocation its new block (the old one is held on top). `free` holds no content, `evictable` is unreferenced with
content.

The words are appended by kernels; a journal that is off costs one test. Python makes room before a step, never in it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvmon.jit import kernel

__all__ = [
    "ADMIT",
    "ALLOC",
    "ALLOC_RUN",
    "ARRIVE",
    "ASSIGN",
    "ASSIGN_RUN",
    "ASSIGN_WINDOW",
    "CACHE",
    "CLAIMS",
    "COMMIT",
    "COMPACT",
    "COPY",
    "COPY_FORK",
    "COPY_PREFIX",
    "COPY_SLIDE",
    "DEFER",
    "ENTRY_FIELDS",
    "ENTRY_NAMES",
    "ERROR",
    "EVICT",
    "FAIL",
    "FINISH",
    "FIRST_TOKEN",
    "FREE",
    "FREE_RUN",
    "LOST",
    "OFFLOAD",
    "ONBOARD",
    "PIN",
    "PREEMPT",
    "PROGRESS",
    "RELOCATE",
    "RESERVE",
    "RESET",
    "SHARE",
    "STEP",
    "UNSHARE",
    "USE_POOL",
    "WITH_UNITS",
    "Journal",
    "iterate",
    "new_journal",
    "put1",
    "put2",
    "put3",
    "put4",
    "put5",
    "put6",
    "put8",
    "put_range",
    "put_units",
    "put_units_reversed",
]

ALLOC = 1
ALLOC_RUN = 2
FREE_RUN = 3
SHARE = 4
UNSHARE = 5
CACHE = 6
RESET = 7
ASSIGN = 8
ASSIGN_RUN = 9
RESERVE = 10
USE_POOL = 11
PIN = 12
EVICT = 13
DEFER = 14
FREE = 15
ASSIGN_WINDOW = 16
OFFLOAD = 17
ONBOARD = 18
COMMIT = 19
ARRIVE = 20
ADMIT = 21
PROGRESS = 22
FIRST_TOKEN = 23
FINISH = 24
PREEMPT = 25
FAIL = 26
RELOCATE = 27
STEP = 28
COMPACT = 30
CLAIMS = 31
ERROR = 32
LOST = 33
COPY = 34

# Why a COPY was made.
COPY_FORK = 1
COPY_PREFIX = 2
COPY_SLIDE = 3

#: Entries whose length depends on their second field.
WITH_UNITS = frozenset({ALLOC, SHARE, UNSHARE, CACHE, ASSIGN, PIN, EVICT, DEFER, FREE, ASSIGN_WINDOW, OFFLOAD, ONBOARD})
#: Fields after the code of every entry of fixed length.
ENTRY_FIELDS = {
    ALLOC_RUN: 3,
    FREE_RUN: 3,
    RESET: 0,
    ASSIGN_RUN: 3,
    RESERVE: 2,
    USE_POOL: 1,
    COMMIT: 2,
    ARRIVE: 6,
    ADMIT: 3,
    PROGRESS: 2,
    FIRST_TOKEN: 1,
    FINISH: 4,
    PREEMPT: 2,
    FAIL: 8,
    RELOCATE: 6,
    STEP: 8,
    COMPACT: 2,
    CLAIMS: 5,
    ERROR: 4,
    LOST: 2,
    COPY: 5,
}
ENTRY_NAMES = {
    ALLOC: "alloc",
    ALLOC_RUN: "alloc_run",
    FREE_RUN: "free_run",
    SHARE: "share",
    UNSHARE: "unshare",
    CACHE: "cache",
    RESET: "reset",
    ASSIGN: "assign",
    ASSIGN_RUN: "assign_run",
    RESERVE: "reserve",
    USE_POOL: "use_pool",
    PIN: "pin",
    EVICT: "evict",
    DEFER: "defer",
    FREE: "free",
    ASSIGN_WINDOW: "assign_window",
    OFFLOAD: "offload",
    ONBOARD: "onboard",
    COMMIT: "commit",
    ARRIVE: "arrive",
    ADMIT: "admit",
    PROGRESS: "progress",
    FIRST_TOKEN: "first_token",
    FINISH: "finish",
    PREEMPT: "preempt",
    FAIL: "fail",
    RELOCATE: "relocate",
    STEP: "step",
    COMPACT: "compact",
    CLAIMS: "claims",
    ERROR: "error",
    LOST: "lost",
    COPY: "copy",
}

# Columns of Journal.state.
USED = 0
ON = 1


class Journal(NamedTuple):
    """`words` int64 (capacity); `state` int64 (2): words used, 1 when entries are wanted."""

    words: npt.NDArray[np.int64]
    state: npt.NDArray[np.int64]


def new_journal(capacity_words: int) -> Journal:
    """A journal with room for `capacity_words`; 0 gives one that is off."""
    state = np.zeros(2, np.int64)
    state[ON] = 1 if capacity_words else 0
    return Journal(np.empty(max(capacity_words, 1), np.int64), state)


def iterate(words: npt.NDArray[np.int64]) -> list[tuple[int, list[int]]]:
    """The entries as `(code, fields)`; unit entries keep their count, so fields are `request, n, u1..un`.

    For tests and tools that read entry by entry; whoever is in a hurry walks the array.
    """
    entries: list[tuple[int, list[int]]] = []
    flat = words.tolist()
    at = 0
    while at < len(flat):
        code = flat[at]
        length = 2 + flat[at + 2] if code in WITH_UNITS else ENTRY_FIELDS[code]
        entries.append((code, flat[at + 1 : at + 1 + length]))
        at += 1 + length
    return entries


@kernel
def put1(journal: Journal, code: int, a: int) -> None:
    """Append an entry of one field."""
    at = journal.state[USED]
    words = journal.words
    words[at] = code
    words[at + 1] = a
    journal.state[USED] = at + 2


@kernel
def put2(journal: Journal, code: int, a: int, b: int) -> None:
    """Append an entry of two fields."""
    at = journal.state[USED]
    words = journal.words
    words[at] = code
    words[at + 1] = a
    words[at + 2] = b
    journal.state[USED] = at + 3


@kernel
def put3(journal: Journal, code: int, a: int, b: int, c: int) -> None:
    """Append an entry of three fields."""
    at = journal.state[USED]
    words = journal.words
    words[at] = code
    words[at + 1] = a
    words[at + 2] = b
    words[at + 3] = c
    journal.state[USED] = at + 4


@kernel
def put4(journal: Journal, code: int, a: int, b: int, c: int, d: int) -> None:
    """Append an entry of four fields."""
    put3(journal, code, a, b, c)
    journal.words[journal.state[USED]] = d
    journal.state[USED] += 1


@kernel
def put5(journal: Journal, code: int, a: int, b: int, c: int, d: int, e: int) -> None:
    """Append an entry of five fields."""
    put4(journal, code, a, b, c, d)
    journal.words[journal.state[USED]] = e
    journal.state[USED] += 1


@kernel
def put6(journal: Journal, code: int, a: int, b: int, c: int, d: int, e: int, f: int) -> None:
    """Append an entry of six fields."""
    put3(journal, code, a, b, c)
    at = journal.state[USED]
    words = journal.words
    words[at] = d
    words[at + 1] = e
    words[at + 2] = f
    journal.state[USED] = at + 3


@kernel
def put8(journal: Journal, code: int, a: int, b: int, c: int, d: int, e: int, f: int, g: int, h: int) -> None:
    """Append an entry of eight fields."""
    put6(journal, code, a, b, c, d, e, f)
    at = journal.state[USED]
    journal.words[at] = g
    journal.words[at + 1] = h
    journal.state[USED] = at + 2


@kernel
def put_units(journal: Journal, code: int, request: int, row: npt.NDArray[np.int32], first: int, n: int) -> None:
    """Append an entry naming the units `row[first : first + n]`."""
    at = journal.state[USED]
    words = journal.words
    words[at] = code
    words[at + 1] = request
    words[at + 2] = n
    for i in range(n):
        words[at + 3 + i] = row[first + i]
    journal.state[USED] = at + 3 + n


@kernel
def put_units_reversed(journal: Journal, code: int, request: int, row: npt.NDArray[np.int32], n: int) -> None:
    """Append an entry naming the units `row[n - 1]` down to `row[0]`."""
    at = journal.state[USED]
    words = journal.words
    words[at] = code
    words[at + 1] = request
    words[at + 2] = n
    for i in range(n):
        words[at + 3 + i] = row[n - 1 - i]
    journal.state[USED] = at + 3 + n


@kernel
def put_range(journal: Journal, code: int, request: int, start: int, n: int) -> None:
    """Append an entry naming the units `start` to `start + n - 1`."""
    at = journal.state[USED]
    words = journal.words
    words[at] = code
    words[at + 1] = request
    words[at + 2] = n
    for i in range(n):
        words[at + 3 + i] = start + i
    journal.state[USED] = at + 3 + n
