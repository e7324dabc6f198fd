"""Names of page contents: 64-bit hashes of pages from the prefix identities that a workload gives.

A workload names prefixes in steps of `hash_tokens` tokens; an equal identity means an equal prefix up to there. A page
of `unit_tokens` either divides that step (several pages an identity) or is a multiple of it (the last identity inside
the page names it). Pages that no identity covers (generated tokens, prompts without identities) are named by their
request, so that only the request itself, coming back after a preemption, can hit them.

Invariants: a hash is never 0 (0 = no content), and the pages of one identity have neighbouring hashes, so that a chain
of pages touches neighbouring buckets. Nothing here sees a token or a text.
"""

from __future__ import annotations

import numpy as np

from kvmon.jit import inlined, kernel

__all__ = ["draw", "mix64", "own_hash", "page_hash"]

_OWN_SALT = np.uint64(0xA0761D6478BD642F)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MUL1 = np.uint64(0xBF58476D1CE4E5B9)
_MUL2 = np.uint64(0x94D049BB133111EB)
_S30 = np.uint64(30)
_S27 = np.uint64(27)
_S31 = np.uint64(31)
_S32 = np.uint64(32)
_ONE = np.uint64(1)
_ZERO = np.uint64(0)


@kernel
def mix64(value: np.uint64) -> np.uint64:
    """A 64-bit value scattered over all bits, one to one (the finaliser of SplitMix64)."""
    z = np.uint64(value) + _GOLDEN
    z = (z ^ (z >> _S30)) * _MUL1
    z = (z ^ (z >> _S27)) * _MUL2
    scattered: np.uint64 = z ^ (z >> _S31)
    return scattered


@kernel
def own_hash(request: int) -> np.uint64:
    """What the pages of a request are named from that it shares with nobody."""
    return mix64(np.uint64(request) ^ _OWN_SALT)


@inlined
def page_hash(scattered: np.uint64, place: int) -> np.uint64:
    """Name of page number `place` (from 0) of what was scattered: `mix64` of a prefix step, or `own_hash`."""
    value = scattered + np.uint64(place)
    name: np.uint64 = value if value != _ZERO else _ONE
    return name


@kernel
def draw(seed: int, what: int, which: int) -> int:
    """A number from 0 to 2**32 - 1 that follows from its arguments alone: chance that repeats itself."""
    scattered = mix64(mix64(mix64(np.uint64(seed)) ^ np.uint64(what)) ^ np.uint64(which))
    return int(scattered >> _S32)
