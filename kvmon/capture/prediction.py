"""Which unit comes next: what makes a capture small.

Units are handed out in the order in which they were given back, a block table names the units just allocated, and a
request gives its table back from the end. So the unit to come is mostly known, and a column of differences to the
guess is mostly zero. Writer and reader learn the same from the same units, so a guess takes no room in the file; a
wrong one costs bytes, never truth. Differences are zigzag numbers of 32 bits: 0, -1, 1, -2 are 0, 1, 2, 3.

What is learned is kept by unit modulo a power of two: a collision is one more wrong guess. It is learned anew in every
chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kvmon.events import Kind
from kvmon.jit import kernel

__all__ = ["MOST_BITS", "Learned", "decode_units", "encode_units", "guess_bits", "remember_end"]

MOST_BITS = 20
"""Units are told apart by so many bits at most."""
_REQUESTS = 1 << 14

# By unit, side by side because they are used together: who was given back after it, who was allocated after it, and
# who stands before and after it in a block table.
_NEXT_RELEASED, _NEXT_ALLOC, _BEFORE, _AFTER = range(4)
# Scalars: the last unit of each class of records; the first unit of the last block table; the request that ended
# last; whether tables are given back from their beginning.
_ALLOC, _ASSIGN, _RELEASE, _CACHE, _OTHER, _FIRST_ASSIGN, _ENDED, _FORWARD = range(8)

_KIND_ALLOC, _KIND_FREE, _KIND_UNSHARE = int(Kind.ALLOC), int(Kind.FREE), int(Kind.UNSHARE)
_KIND_DEFER, _KIND_CACHE, _KIND_ASSIGN = int(Kind.DEFER), int(Kind.CACHE_INSERT), int(Kind.ASSIGN)


class Learned(NamedTuple):
    """What one chunk has taught so far."""

    units: npt.NDArray[np.uint32]  # [unit, neighbour]
    tails: npt.NDArray[np.uint32]  # [request], the last unit of its block table
    scalars: npt.NDArray[np.int64]

    @staticmethod
    def make() -> Learned:
        """With room for the most bits; nothing learned."""
        return Learned(np.zeros((1 << MOST_BITS, 4), np.uint32), np.zeros(_REQUESTS, np.uint32), np.zeros(8, np.int64))

    def begin(self, bits: int) -> Learned:
        """The same room cut to 2**bits units, everything forgotten."""
        units = self.units[: 1 << bits]
        for array in (units, self.tails, self.scalars):
            array[...] = 0
        return Learned(units, self.tails, self.scalars)


def guess_bits(largest_unit: int) -> int:
    """Bits that tell units up to `largest_unit` apart, up to MOST_BITS."""
    return min(max(int(largest_unit) - 1, 1).bit_length(), MOST_BITS)


@kernel
def remember_end(request: Any, learned: Any) -> Any:
    """This request lost its block table: what is given back next is probably its."""
    learned.scalars[_ENDED] = request


@kernel
def _neighbour(which: Any, scalars: Any) -> Any:
    """Which neighbour of a unit follows it in a record of this class."""
    if which == _ALLOC:
        return _NEXT_RELEASED
    if which == _ASSIGN:
        return _NEXT_ALLOC
    if which == _RELEASE:
        return _AFTER if scalars[_FORWARD] else _BEFORE
    return _AFTER


@kernel
def _guess_first(which: Any, n: Any, column: Any, learned: Any) -> Any:
    """The first unit of a record with `n` units."""
    units, scalars = learned.units, learned.scalars
    mask = units.shape[0] - 1
    if which == _RELEASE and scalars[_ENDED]:
        known = np.int64(learned.tails[scalars[_ENDED] & (_REQUESTS - 1)])
        scalars[_ENDED] = 0
        if known:
            return known
    if which == _CACHE:  # the page just filled is the one before the page just taken, or a prompt's first
        return np.int64(units[scalars[_ASSIGN] & mask, _BEFORE]) if n == 1 else scalars[_FIRST_ASSIGN]
    known = np.int64(units[scalars[which] & mask, column])
    return known if known else scalars[which] + 1


@kernel
def _learn(which: Any, previous: Any, unit: Any, units: Any) -> Any:
    """`unit` came after `previous`."""
    mask = units.shape[0] - 1
    if which == _ALLOC:
        units[previous & mask, _NEXT_ALLOC] = unit
    elif which == _RELEASE:
        units[previous & mask, _NEXT_RELEASED] = unit
    elif which == _ASSIGN:
        units[previous & mask, _AFTER] = unit
        units[unit & mask, _BEFORE] = previous


@kernel
def _turn(previous: Any, unit: Any, units: Any, scalars: Any) -> Any:
    """After a wrong guess: whether block tables are given back from their end or from their beginning."""
    at = previous & (units.shape[0] - 1)
    if unit == units[at, _AFTER]:
        scalars[_FORWARD] = 1
    elif unit == units[at, _BEFORE]:
        scalars[_FORWARD] = 0


@kernel
def _close_record(which: Any, request: Any, first: Any, last: Any, learned: Any) -> Any:
    learned.scalars[which] = last
    if which == _ASSIGN:
        learned.scalars[_FIRST_ASSIGN] = first
        learned.tails[request & (_REQUESTS - 1)] = last


def _named(function: Callable[..., Any], which: int) -> Callable[..., Any]:
    """A kernel of its own name. Machine code is kept by name: of two that share one and were compiled by two processes
    at once, a third process would link one in the place of the other.
    """
    function.__name__ = function.__qualname__ = f"{function.__name__}_{which}"
    return kernel(function)


def _encoder(which: int) -> Callable[..., Any]:
    def encode(n: Any, request: Any, words: Any, at: Any, out: Any, to: Any, learned: Any) -> Any:
        units, scalars = learned.units, learned.scalars
        mask = units.shape[0] - 1
        column = _neighbour(which, scalars)
        guess = _guess_first(which, n, column, learned)
        previous = np.int64(learned.tails[request & (_REQUESTS - 1)]) if which == _ASSIGN else scalars[which]
        for k in range(n):
            unit = np.int64(words[at + k])
            difference = np.int64(np.int32(unit - guess))
            out[to + k] = (difference << 1) ^ (difference >> 63)
            _learn(which, previous, unit, units)
            if which == _RELEASE and difference != 0:
                _turn(previous, unit, units, scalars)
                column = _neighbour(which, scalars)
            previous = unit
            known = np.int64(units[unit & mask, column])
            guess = known if known else unit + 1
        if n > 0:
            _close_record(which, request, np.int64(words[at]), previous, learned)

    return _named(encode, which)


def _decoder(which: int) -> Callable[..., Any]:
    def decode(n: Any, request: Any, codes: Any, at: Any, words: Any, to: Any, learned: Any) -> Any:
        units, scalars = learned.units, learned.scalars
        mask = units.shape[0] - 1
        column = _neighbour(which, scalars)
        guess = _guess_first(which, n, column, learned)
        previous = np.int64(learned.tails[request & (_REQUESTS - 1)]) if which == _ASSIGN else scalars[which]
        for k in range(n):
            code = np.int64(codes[at + k])
            unit = (guess + ((code >> 1) ^ -(code & 1))) & 0xFFFFFFFF
            words[to + k] = unit
            _learn(which, previous, unit, units)
            if which == _RELEASE and code != 0:
                _turn(previous, unit, units, scalars)
                column = _neighbour(which, scalars)
            previous = unit
            known = np.int64(units[unit & mask, column])
            guess = known if known else unit + 1
        if n > 0:
            _close_record(which, request, np.int64(words[to]), previous, learned)

    return _named(decode, which)


# One compiled function a class, so that nothing about the class is asked again for each unit.
_encode_alloc, _encode_assign, _encode_release, _encode_cache, _encode_other = (_encoder(which) for which in range(5))
_decode_alloc, _decode_assign, _decode_release, _decode_cache, _decode_other = (_decoder(which) for which in range(5))


@kernel
def encode_units(kind: Any, request: Any, words: Any, at: Any, n: Any, out: Any, to: Any, learned: Any) -> Any:
    """Differences of `words[at:at + n]` to the guesses, into `out[to:to + n]`.

    `request` is 0 where the record names none.
    """
    if kind == _KIND_ALLOC:
        _encode_alloc(n, request, words, at, out, to, learned)
    elif kind == _KIND_ASSIGN:
        _encode_assign(n, request, words, at, out, to, learned)
    elif kind == _KIND_CACHE:
        _encode_cache(n, request, words, at, out, to, learned)
    elif kind in (_KIND_UNSHARE, _KIND_FREE, _KIND_DEFER):
        _encode_release(n, request, words, at, out, to, learned)
    else:
        _encode_other(n, request, words, at, out, to, learned)


@kernel
def decode_units(kind: Any, request: Any, codes: Any, at: Any, n: Any, words: Any, to: Any, learned: Any) -> Any:
    """The other way: differences in `codes[at:at + n]` become units in `words[to:to + n]`."""
    if kind == _KIND_ALLOC:
        _decode_alloc(n, request, codes, at, words, to, learned)
    elif kind == _KIND_ASSIGN:
        _decode_assign(n, request, codes, at, words, to, learned)
    elif kind == _KIND_CACHE:
        _decode_cache(n, request, codes, at, words, to, learned)
    elif kind in (_KIND_UNSHARE, _KIND_FREE, _KIND_DEFER):
        _decode_release(n, request, codes, at, words, to, learned)
    else:
        _decode_other(n, request, codes, at, words, to, learned)
