"""Names of pages that are smaller than what a recording names: the most that two prompts can share.

A name stands for `step` tokens and everything before them. Two prompts with the same name at a step are equal up to its
end; with different names they differ somewhere within the step, and how many of its tokens are still equal is not
known. The least that they share is the steps whose names are equal; the most is all pages of the step but its last.

Invariant: pages whose names were equal stay equal; pages behind a difference never become equal again.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["finer_names"]

Ints = npt.NDArray[np.int64]
Names = npt.NDArray[np.uint64]

_PLACE = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))
_LAST = np.uint64(31)
_NOTHING = np.uint64(1)  # what stands before every prompt


def finer_names(names: Names, counts: Ints, prompt: Ints, step: int, page: int) -> tuple[Names, Ints]:
    """Names of pages of `page` tokens, and how many each request has.

    `names` (uint64, `counts[i]` of request i) stand for `step` tokens each, a multiple of `page`; `prompt` int64 (n).
    Within a step all pages but its last are named by what is before the step, so that everybody who shares that shares
    them; the last one is named by the step. Behind the last name whole pages of the prompt are named likewise.
    """
    pages = step // page
    named = counts * step
    rest = np.clip((prompt - named) // page, 0, pages - 1)  # whole pages behind the last name
    partial = np.maximum(named - np.maximum(prompt, named - step), 0)  # a last name may stand for less than a step
    whole = np.where(counts == -(-prompt // step), partial, 0)
    fine = np.maximum(counts * pages - -(-whole // page), 0) + rest
    total = int(fine.sum())
    if total == 0:
        return np.zeros(0, np.uint64), fine
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    owner = np.repeat(np.arange(len(counts)), fine)
    index = np.arange(total) - np.repeat(np.concatenate([[0], np.cumsum(fine)[:-1]]), fine)
    at, place = index // pages, index % pages
    padded = np.concatenate([names, np.zeros(1, np.uint64)])
    own = padded[np.minimum(first[owner] + at, len(names))]
    before = np.where(at > 0, padded[np.maximum(first[owner] + at - 1, 0)], _NOTHING)
    last = (place == pages - 1) & (at < counts[owner])
    found = _mixed(np.where(last, own, before) + _PLACE * (place + 1).astype(np.uint64))
    return np.maximum(found, np.uint64(1)), fine


def _mixed(values: Names) -> Names:
    """Scatter 64 bits (SplitMix64's finalizer)."""
    for shift, factor in _ROUNDS:
        values = (values ^ (values >> shift)) * factor
    mixed: Names = values ^ (values >> _LAST)
    return mixed
