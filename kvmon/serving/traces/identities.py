"""Prefix identities of the plain format: columns into names, and names back into columns.

One identity names 16 tokens, so a page of 16, 32, 64, ... or of 1, 2, 4, 8 tokens can be hit. Number `step` (from 0) of
a request is

    bit 63          bits 62 to 32   bits 31 to 0
    0               prefix_id       step + 1        as far as the shared prefix fills it
    1               chat_id         step + 1        behind it, to the last full step of what is generated

so equal identities mean an equal beginning as long as all requests of a chat have the same prefix. A shared prefix that
ends inside a step is named up to the step before.

Invariant: `named` and `names_of` are each other's inverse; a workload whose identities are others has no columns.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvmon.errors import TraceError
from kvmon.serving.workload import Workload

__all__ = ["HASH_TOKENS", "Names", "named", "names_of", "prefix_identities"]

HASH_TOKENS = 16
_MOST = 2**27  # identities of a workload: 1 GiB
_MOST_ID = 2**30  # what a column may hold
_CHAT = np.uint64(1 << 63)
_HIGH = np.uint64(32)
_ID = np.uint64(2**31 - 1)

_Numbers = npt.NDArray[np.int64]


class Names(NamedTuple):
    """What the requests (n) share, as the columns say it: int64 each, 0 where a request has none."""

    prefix_id: _Numbers
    prefix_tokens: _Numbers
    chat_id: _Numbers


def prefix_identities(prefix_id: int, prefix_tokens: int, hash_tokens: int = HASH_TOKENS) -> list[int]:
    """Chained identities of the full steps of a common beginning: unique to the prefix and the place in it."""
    return [(prefix_id << 32) + step + 1 for step in range(prefix_tokens // hash_tokens)]


def named(workload: Workload, names: Names) -> Workload:
    """The workload with the identities that `names` describe. Raises TraceError when they would be too many."""
    prefix_steps = np.where(names.prefix_id > 0, names.prefix_tokens // HASH_TOKENS, 0)
    generated = np.minimum(workload.output_tokens, workload.token_limit).astype(np.int64)
    whole = (workload.prompt_tokens + generated) // HASH_TOKENS
    counts = np.where(names.chat_id > 0, np.maximum(whole, prefix_steps), prefix_steps)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    if offsets[-1] > _MOST:
        raise TraceError(
            f"{workload.name}: shared prefixes and chats need {offsets[-1]} identities, more than {_MOST}: "
            "fewer or shorter requests are needed"
        )
    # Each request is two runs, prefix and chat; identity `index` of all is `index` plus a number of its run.
    runs = np.column_stack([prefix_steps, counts - prefix_steps]).ravel()
    high = np.column_stack([names.prefix_id, names.chat_id]).astype(np.uint64) << _HIGH
    high[:, 1] |= _CHAT
    base = high + (1 - offsets[:-1, np.newaxis]).astype(np.uint64)
    hashes = np.arange(offsets[-1], dtype=np.uint64)
    hashes += np.repeat(base.ravel(), runs)
    return replace(workload, hash_offsets=offsets, hashes=hashes, hash_tokens=HASH_TOKENS if len(hashes) else 0)


def names_of(workload: Workload) -> Names:
    """The columns that give the identities of a workload, prefixes in whole steps.

    Raises TraceError where no columns do, as for a trace of another format.
    """
    offsets = workload.hash_offsets
    names = Names(*(np.zeros(len(workload), np.int64) for _ in range(3)))
    some = np.flatnonzero(np.diff(offsets))
    for column, ends, of_chat in ((names.prefix_id, offsets[:-1], 0), (names.chat_id, offsets[1:] - 1, 1)):
        identity = workload.hashes[ends[some]]
        number = ((identity >> _HIGH) & _ID).astype(np.int64)
        column[some] = np.where((identity & _CHAT != 0) == of_chat, number, 0)
    prefixes = np.concatenate([np.zeros(1, np.int64), np.cumsum(workload.hashes < _CHAT)])
    names.prefix_tokens[:] = np.diff(prefixes[offsets]) * HASH_TOKENS
    again = named(workload, names)
    if not (
        np.array_equal(again.hash_offsets, workload.hash_offsets)
        and np.array_equal(again.hashes, workload.hashes)
        and workload.hash_tokens in (0, HASH_TOKENS)
        and np.all(names.prefix_tokens <= workload.prompt_tokens)
        and max(names.prefix_id.max(), names.chat_id.max()) <= _MOST_ID
        and _one_prefix_a_chat(names)
    ):
        raise TraceError(
            f"{workload.name}: its prefix identities are not those of a CSV trace: write it without them, or keep its "
            "own format"
        )
    return names


def _one_prefix_a_chat(names: Names) -> bool:
    chats = np.unique(np.column_stack([column[names.chat_id > 0] for column in names]), axis=0)
    return len(np.unique(chats[:, 2])) == len(chats)
