"""The names of pages that a recording has of each request, put together from the records that told them.

Adapters name a long prompt in parts, and the pages of an answer when it ends. Invariant: what is put together names a
prefix without a hole; pages whose name nobody told get one that nothing else has, so they are never found again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvmon.events import Kind
from kvmon.replay.demand_events import DemandEvents

__all__ = ["PageNames", "page_names"]

Ints = npt.NDArray[np.int64]
Names = npt.NDArray[np.uint64]

_OWN = np.uint64(0xA5A5 << 48)  # names of pages that nobody told


@dataclass(frozen=True)
class PageNames:
    """Names in the order of the requests: those of request i are `hashes[offsets[i] : offsets[i + 1]]`."""

    offsets: Ints
    hashes: Names
    hash_tokens: int
    notes: tuple[str, ...] = ()


def page_names(events: DemandEvents, number: Ints, prompt: Ints) -> PageNames:
    """The names of the pages of requests `number` (int64, n) with prompts of `prompt` tokens."""
    nothing = PageNames(np.zeros(len(number) + 1, np.int64), np.zeros(0, np.uint64), 0)
    rows, counts = events.rows[Kind.REQUEST_HASHES], events.hash_counts
    if not rows.shape[1] or not len(number):
        return nothing
    order = np.argsort(number, kind="stable")
    at = np.minimum(np.searchsorted(number[order], rows[0]), len(order) - 1)
    owner = order[at]
    sizes, votes = np.unique(rows[1], return_counts=True)
    step = int(sizes[votes.argmax()])
    usable = (number[owner] == rows[0]) & (rows[1] == step) & (counts > 0)
    notes = () if len(sizes) == 1 else (f"pages are named in several sizes; those of {step} tokens are replayed",)
    kept = np.flatnonzero(usable)
    if not len(kept):
        return nothing
    kept = kept[np.lexsort((rows[2][kept], owner[kept]))]
    begins = np.concatenate([[0], np.cumsum(counts)[:-1]])[kept]
    counts, first, owner = counts[kept], rows[2][kept], owner[kept]
    names = events.hashes[
        np.repeat(begins - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts) + np.arange(counts.sum())
    ]
    per_request = np.bincount(owner, counts, len(number)).astype(np.int64)
    opens = np.concatenate([[True], np.diff(owner) != 0])
    expected = np.cumsum(counts) - counts
    expected -= np.repeat(expected[opens], np.diff(np.append(np.flatnonzero(opens), len(owner))))
    later = ~opens & (first >= prompt[owner] // step)  # pages of the answer, told when it ended
    if (first != expected).any() or (later & (per_request[owner] == -(-prompt[owner] // step))).any():
        names, per_request = _mended(names, counts, first, owner, later, prompt, step, len(number))
    offsets = np.concatenate([[0], np.cumsum(per_request)])
    return PageNames(offsets, names, step, notes)


def _mended(
    names: Names,
    counts: Ints,
    first: Ints,
    owner: Ints,
    later: npt.NDArray[np.bool_],
    prompt: Ints,
    step: int,
    requests: int,
) -> tuple[Names, Ints]:
    """Fill holes from prompts that begin with what is behind them (equal names mean equal text up to there), and add a
    page to answers that end within the page after the prompt, so that all of their names count as whole pages."""
    parts: list[list[tuple[int, Names]]] = [[] for _ in range(requests)]
    begin = 0
    for place, count, who in zip(first.tolist(), counts.tolist(), owner.tolist(), strict=True):
        parts[who].append((place, names[begin : begin + count]))
        begin += count
    answers = set(owner[later].tolist())
    whole: dict[int, tuple[int, int]] = {}  # a name in a prompt without a hole -> whose, and at which page
    for who, found in enumerate(parts):
        if found and found[0][0] == 0:
            whole |= {int(name): (who, page) for page, name in enumerate(found[0][1].tolist())}
    fresh = 0
    result: list[Names] = []
    for who, found in enumerate(parts):
        row: list[int] = []
        for place, some in found:
            if place > len(row):
                source = whole.get(int(some[0]))
                if source is not None and source[1] == place:
                    row += parts[source[0]][0][1][len(row) : place].tolist()
                while len(row) < place:
                    fresh += 1
                    row.append(int(_OWN) + fresh)
            row += some[max(len(row) - place, 0) :].tolist()
        if who in answers and len(row) == -(-int(prompt[who]) // step):
            fresh += 1
            row.append(int(_OWN) + fresh)
        result.append(np.array(row, np.uint64))
    per_request = np.array([len(row) for row in result], np.int64)
    return np.concatenate([np.zeros(0, np.uint64), *result]), per_request
