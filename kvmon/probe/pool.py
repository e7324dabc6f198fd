"""The hot path: what happens to the units of one pool, published call by call.

One call is one record. A single unit is one packed word stored by index, several are one array stored as a slice;
then the cursor moves. The engine's numbering is translated by whoever attaches the pool: units here are numbered from
1.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from threading import get_ident

from kvmon.events.kinds import FailureReason, Kind
from kvmon.events.totals import MAX_POOLS, POOL_SLOTS, PoolTotal
from kvmon.events.wire import ABSENT, LIST, LONG, MAX_LONG, MAX_UNIT, RUN, encode
from kvmon.probe.emitter import Emitter, Loss
from kvmon.probe.guard import guarded

__all__ = ["PoolProbe"]

_FAILED = LONG << 27 | Kind.ALLOC_FAILED << 19 | 8
_ASSIGN = LONG << 27 | Kind.ASSIGN << 19
_ASSIGN_RUN = LONG << 27 | Kind.ASSIGN_RUN << 19 | 4
_RESERVE = LONG << 27 | Kind.RESERVE << 19 | 2
_COMMIT = LONG << 27 | Kind.COMMIT << 19 | 2
_MIGRATED = LONG << 27 | Kind.MIGRATED << 19 | 6


def _one(kind: Kind) -> Callable[[PoolProbe, int], None]:
    head, slot = int(kind) << 27, int(kind)

    def record(self: PoolProbe, unit: int) -> None:
        emitter = self.emitter
        try:
            if (
                emitter.owner != self.number or get_ident() != emitter.thread or not 0 < unit <= MAX_UNIT
            ) and not self._may_write(unit):
                return
            at = emitter.at
            emitter.words[at] = head + unit
            emitter.at = emitter.live[0] = at + 1
            self.totals[slot] += 1
        except IndexError:  # the segment is full
            if emitter.put((head + unit,)):
                self.totals[slot] += 1
        except Exception:  # a guest: no value may raise into the engine
            emitter.lose(1, Loss.VALUE)

    record.__doc__ = f"{kind.name}, one unit."
    return record


def _many(kind: Kind) -> Callable[[PoolProbe, Sequence[int]], None]:
    head, slot = int(kind + LIST) << 27, int(kind)
    one = _one(kind)

    def record(self: PoolProbe, units: Sequence[int]) -> None:
        emitter = self.emitter
        try:
            count = len(units)
            if count < 2:
                if count:
                    one(self, units[0])
                return
            if (emitter.owner != self.number or get_ident() != emitter.thread) and not emitter.select(self.number):
                return
            at = emitter.at
            end = at + count + 1
            emitter.words[at:end] = array("I", (head | count, *units))
            emitter.at = emitter.live[0] = end
            self.totals[slot] += count
        except ValueError:  # more than the segment has room for
            self._put_parts(lambda part: (head | len(part), *part), units, 1, slot)
        except Exception:  # a guest: no value may raise into the engine
            emitter.lose(1, Loss.VALUE)

    record.__doc__ = f"{kind.name}, any number of units in the order they were handled."
    return record


def _run(kind: Kind) -> Callable[[PoolProbe, int, int], None]:
    head, slot = int(kind + RUN) << 27, int(kind)

    @guarded
    def record(self: PoolProbe, start: int, count: int) -> None:
        if self._may_write(start) and self.emitter.put((head + start, count)):
            self.totals[slot] += count

    record.__doc__ = f"{kind.name}, `count` adjacent units from `start` on."
    return record


class PoolProbe:
    """Records what the allocator does with the units of one pool. No method raises; what cannot be written is
    counted.
    """

    __slots__ = ("emitter", "number", "totals")

    def __init__(self, emitter: Emitter, number: int) -> None:
        """`number` counts pools from 1; one beyond MAX_POOLS is never recorded, and says so with every call."""
        self.emitter = emitter
        self.number = number
        self.totals = [0] * POOL_SLOTS
        if number <= MAX_POOLS:
            emitter.pools.append(self.totals)

    alloc_one = _one(Kind.ALLOC)
    free_one = _one(Kind.FREE)
    share_one = _one(Kind.SHARE)
    unshare_one = _one(Kind.UNSHARE)
    cache_one = _one(Kind.CACHE_INSERT)
    evict_one = _one(Kind.EVICT)

    alloc = _many(Kind.ALLOC)
    free = _many(Kind.FREE)
    share = _many(Kind.SHARE)
    unshare = _many(Kind.UNSHARE)
    cache = _many(Kind.CACHE_INSERT)
    evict = _many(Kind.EVICT)
    pin = _many(Kind.PIN)
    unpin = _many(Kind.UNPIN)
    defer = _many(Kind.DEFER)

    alloc_run = _run(Kind.ALLOC)
    free_run = _run(Kind.FREE)

    @guarded
    def reset(self) -> None:
        """Every content of the pool was forgotten (prefix cache reset)."""
        if self._put(encode(Kind.POOL_RESET)):
            self.totals[PoolTotal.RESETS] += 1

    def assign(self, request: int, units: Sequence[int], group: int = 0) -> None:
        """These units joined the block table of `request`."""
        emitter = self.emitter
        try:
            count = len(units)
            if (emitter.owner != self.number or get_ident() != emitter.thread) and not emitter.select(self.number):
                return
            if 0 < count < MAX_LONG - 2 and request:
                at = emitter.at
                end = at + count + 3
                emitter.words[at:end] = array("I", (_ASSIGN | count + 2, request, group + 1, *units))
                emitter.at = emitter.live[0] = end
            elif count:
                raise ValueError
        except ValueError:  # more than one record holds, or than the segment has room for
            self._put_parts(lambda part: (_ASSIGN | len(part) + 2, request, group + 1, *part), units, 3)
        except Exception:  # a guest: no value may raise into the engine
            emitter.lose(1, Loss.VALUE)

    @guarded
    def assign_run(self, request: int, start: int, count: int, group: int = 0) -> None:
        """A run of units became the block of `request`."""
        self._put((_ASSIGN_RUN, request, group + 1, start, count))

    @guarded
    def reserve(self, request: int, tokens: int) -> None:
        """So many slots are now set aside for `request` in all, written ones included."""
        self._put((_RESERVE, request, tokens + 1))

    @guarded
    def commit(self, request: int, tokens: int) -> None:
        """`tokens` of what was set aside for `request` are written now, in all."""
        self._put((_COMMIT, request, tokens + 1))

    @guarded
    def truncate(self, request: int, tokens: int, units: Sequence[int] = ()) -> None:
        """`request` keeps `tokens` written tokens; `units` leave its table, and go back by a call of their own."""
        self._put(encode(Kind.TRUNCATE, request=request, tokens=tokens, units=units))

    @guarded
    def offloaded(self, request: int | None, to_pool: int, units: Sequence[int]) -> None:
        """The content of these units was copied to another pool (a host tier); None: it belongs to no one request."""
        self._put(encode(Kind.OFFLOADED, request=request, to_pool=to_pool, units=units))

    @guarded
    def onboarded(self, request: int | None, from_pool: int, units: Sequence[int]) -> None:
        """Content of another pool was copied into these units."""
        self._put(encode(Kind.ONBOARDED, request=request, from_pool=from_pool, units=units))

    @guarded
    def compacted(self, moved_units: int) -> None:
        """The allocator moved so many units to make free memory contiguous; each move has records of its own."""
        self._put(encode(Kind.COMPACTED, moved_units=moved_units))

    @guarded
    def failed(
        self,
        request: int | None,
        need: int,
        contiguity: int,
        free: int,
        evictable: int,
        largest: int | None,
        reason: int,
        outcome: int,
    ) -> None:
        """An allocation of `need` units was refused; numbers in units, reason and outcome as the enumerations of
        events.
        """
        slot = PoolTotal.FAILED_FIRST + FailureReason(reason)
        if self._put(
            (
                _FAILED,
                ABSENT if request is None else request + 1,
                need + 1,
                contiguity + 1,
                free + 1,
                evictable + 1,
                ABSENT if largest is None else largest + 1,
                reason + 1,
                outcome + 1,
            )
        ):
            self.totals[slot] += 1

    @guarded
    def migrated(
        self, request: int, old_start: int, old_units: int, new_start: int, new_units: int, copied_tokens: int
    ) -> None:
        """The block of `request` moved; both blocks were held at once while it did."""
        if self._put((_MIGRATED, request, old_start, old_units + 1, new_start, new_units + 1, copied_tokens + 1)):
            self.totals[PoolTotal.MIGRATIONS] += 1
            self.totals[PoolTotal.MOVED_TOKENS] += copied_tokens

    @guarded
    def claims(
        self,
        available: int | None,
        evictable: int | None = None,
        protected: int | None = None,
        in_flight: int | None = None,
        usage: float | None = None,
    ) -> None:
        """What the engine itself says it has, in units; `usage` is its own gauge, 0 to 1."""
        millionths = None if usage is None else round(usage * 1_000_000)
        self._put(
            encode(
                Kind.CLAIMS,
                available=available,
                evictable=evictable,
                protected=protected,
                in_flight=in_flight,
                usage=millionths,
            )
        )

    def _may_write(self, unit: int) -> bool:
        if not 0 < unit <= MAX_UNIT:
            return self.emitter.lose(1, Loss.VALUE)
        return self.emitter.select(self.number)

    def _put(self, words: Sequence[int]) -> bool:
        return self.emitter.select(self.number) and self.emitter.put(words)

    def _put_parts(
        self,
        words: Callable[[Sequence[int]], Sequence[int]],
        units: Sequence[int],
        head_words: int,
        slot: int | None = None,
    ) -> None:
        """A list that is too long for one record, or for what is left of the segment, as several."""
        size = self.emitter.largest - head_words
        if size < 1:  # nothing is written now
            self.emitter.refuse()
            return
        everything = tuple(units)
        for first in range(0, len(everything), size):
            part = everything[first : first + size]
            if self._put(words(part)) and slot is not None:
                self.totals[slot] += len(part)
