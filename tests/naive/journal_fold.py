"""What an observer can rebuild from the journal alone: dictionaries, lists and the rules of its documentation.

Slow on purpose. It shares no code and no constant with the allocators, so that both can only agree by being right.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

UNITS = {
    1: "alloc",
    4: "share",
    5: "unshare",
    6: "cache",
    8: "assign",
    12: "pin",
    13: "evict",
    14: "defer",
    15: "free",
    16: "assign_window",
    17: "offload",
    18: "onboard",
}
FIXED = {
    2: ("alloc_run", 3),
    3: ("free_run", 3),
    7: ("reset", 0),
    9: ("assign_run", 3),
    10: ("reserve", 2),
    11: ("use_pool", 1),
    19: ("commit", 2),
    20: ("arrive", 6),
    21: ("admit", 3),
    22: ("progress", 2),
    23: ("first_token", 1),
    24: ("finish", 4),
    25: ("preempt", 2),
    26: ("fail", 8),
    27: ("relocate", 6),
    28: ("step", 8),
    30: ("compact", 2),
    31: ("claims", 5),
    32: ("error", 4),
    33: ("lost", 2),
    34: ("copy", 5),
}


@dataclass
class Seen:
    """One request as the journal tells it."""

    prompt: int
    target: int
    class_id: int = 0
    arrived: bool = True
    running: bool = False
    ended: int = 0
    output: int = 0
    first_token: bool = False
    computed: int = 0
    decoding: bool = False
    reserved: int = 0
    copied: int = 0  # units that were copied to the host tier and not back
    kept: int = 0  # tokens there
    table: list[int] = field(default_factory=list)
    window: list[int] = field(default_factory=list)


class JournalFold:
    """State of pools and requests after every entry so far; unit numbers and requests as in the journal.

    `evict` is the policy by which pages with content go, `pins` how often a page is hit before it may be pinned and how
    many may be, `second` the capacity of pool 2, `aligned` that blocks of pool 1 are buddies, `levels` the priorities
    of classes where they alone decide who is preempted.
    """

    def __init__(
        self,
        capacity: int,
        *,
        unit_tokens: int = 1,
        evict: str = "lru",
        pins: tuple[int, int] = (0, 0),
        second: int = 0,
        aligned: bool = False,
        gauge_is_right: bool = True,
        levels: dict[int, int] | None = None,
    ) -> None:
        self.capacity = capacity
        self.unit_tokens = unit_tokens
        self.policy = evict
        self.pins = pins
        self.second = second
        self.aligned = aligned
        self.gauge_is_right = gauge_is_right
        self.levels = levels or {}
        self.pool = 1
        self.references = dict.fromkeys(range(1, capacity + 1), 0)
        self.cached: set[int] = set()
        self.pinned: set[int] = set()
        self.deferred: set[int] = set()
        self.queue = list(range(1, capacity + 1))
        self.unused: set[int] = set()  # with content, not in the queue: the policy says who goes first
        self.hits: Counter[int] = Counter()
        self.registered_at: dict[int, int] = {}
        self.returned_at: dict[int, int] = {}
        self.moments = 0
        self.window_pool = 1
        self.stack = list(range(second, 0, -1))  # free pages of the window's own pool, the next one last
        self.owner: dict[int, int] = {}
        self.regions: set[int] = set()
        self.host: dict[int, int] = {}
        self.requests: dict[int, Seen] = {}
        self.fails: list[list[int]] = []
        self.second_fails: list[list[int]] = []
        self.steps: list[list[int]] = []
        self.all_claims: list[list[int]] = []
        self.errors: list[list[int]] = []
        self.preempted: list[int] = []
        self.admitted: list[int] = []
        self.evicted = 0
        self.twice = 0
        self.compactions = 0
        self.filled: list[tuple[int, int]] = []  # pages that are said to be full by the end of this step
        self.relocating = 0
        self.moved: set[int] = set()  # since the last compaction or step
        self.assigned: set[int] = set()
        self.told: set[int] = set()
        self.decoded_before: set[int] = set()

    def feed(self, words: list[int]) -> None:
        """Apply a piece of journal that ends between two entries."""
        at = 0
        while at < len(words):
            code = words[at]
            if code in UNITS:
                request, n = words[at + 1], words[at + 2]
                units = words[at + 3 : at + 3 + n]
                assert n > 0 and len(set(units)) == n
                getattr(self, UNITS[code])(request, units)
                at += 3 + n
            else:
                name, length = FIXED[code]
                getattr(self, name)(*words[at + 1 : at + 1 + length])
                at += 1 + length

    def use_pool(self, pool: int) -> None:
        """What follows is about this pool."""
        assert pool in (1, 2) and pool != self.pool and self.second
        self.pool = pool

    # Pages

    def next_out(self) -> int:
        """The page that is taken next: the front of the queue, then by the rule of the policy."""
        if self.queue:
            return self.queue[0]
        if self.policy == "lfu":
            return min(self.unused, key=lambda unit: (self.hits[unit], self.returned_at[unit]))
        return min(self.unused, key=lambda unit: self.registered_at[unit])

    def alloc(self, request: int, units: list[int]) -> None:
        """Pages leave in the order of the policy; what they held is gone."""
        if self.pool == 2:
            assert [self.stack.pop() for _ in units] == units, "the last page given back is the first one out"
            return
        for unit in units:
            assert self.next_out() == unit, "pages do not come in the order of the policy"
            assert self.references[unit] == 0 and unit not in self.pinned | self.deferred
            if self.queue:
                self.queue.pop(0)
            self.unused.discard(unit)
            self.references[unit] = 1
            if unit in self.cached:
                self.cached.discard(unit)
                self.evicted += 1

    def share(self, request: int, units: list[int]) -> None:
        """One more reference; a page that could be taken cannot be any more."""
        for unit in units:
            assert unit in self.cached or self.references[unit], "a page without content or owner cannot be shared"
            self.hits[unit] += 1
            if self.references[unit] == 0:
                if unit in self.deferred:
                    self.deferred.discard(unit)
                elif unit not in self.pinned:
                    (self.queue if unit in self.queue else self.unused).remove(unit)
            self.references[unit] += 1

    def unshare(self, request: int, units: list[int]) -> None:
        """One reference fewer each; the second return of a page is an error of the engine, and only counted."""
        seen = self.requests[request]
        if self.pool == 2:
            self.leave_window(seen, units)
            self.stack += units
        elif all(self.owner.get(unit) == request for unit in units):
            self.leave_region(seen, units)
        elif all(unit in seen.table for unit in units):
            self.leave_table(seen, units)
            self.give_back(units)
        elif self.window_pool == 1 and all(unit in seen.window for unit in units):
            self.leave_window(seen, units)
            self.give_back(units)
        else:
            assert seen.ended and len(units) == 1 and self.references[units[0]] == 0
            assert units[0] not in self.deferred
            self.twice += 1

    def leave_table(self, seen: Seen, units: list[int]) -> None:
        """A request that runs no more is released from its last page to its first."""
        assert not seen.running and units == [unit for unit in reversed(seen.table) if unit in set(units)]
        for unit in units:
            seen.table.remove(unit)
            self.references[unit] -= 1
            assert self.references[unit] >= 0

    def leave_window(self, seen: Seen, units: list[int]) -> None:
        """The window moves on, or everything goes: the last page first."""
        assert units[::-1] == seen.window[: len(units)] and (seen.running or len(units) == len(seen.window))
        seen.window = seen.window[len(units) :]
        if self.pool == 1:
            for unit in units:
                self.references[unit] -= 1
                assert self.references[unit] == 0 and unit not in self.cached

    def give_back(self, units: list[int]) -> None:
        """Pages nobody refers to: without content as a group to the front, with it to the back or by the policy."""
        front = []
        for unit in units:
            if self.references[unit]:
                continue
            if unit in self.pinned:
                assert unit in self.cached
            elif unit not in self.cached:
                front.append(unit)
            elif self.policy == "lru":
                self.queue.append(unit)
            else:
                self.unused.add(unit)
                self.moments += 1
                self.returned_at[unit] = self.moments
        self.queue = front + self.queue

    def defer(self, request: int, units: list[int]) -> None:
        """The last reference goes while a transfer reads the page."""
        self.leave_table(self.requests[request], units)
        for unit in units:
            assert self.references[unit] == 0
            self.deferred.add(unit)

    def free(self, request: int, units: list[int]) -> None:
        """The transfer has read them."""
        assert self.requests[request].ended
        for unit in units:
            assert self.references[unit] == 0
            self.deferred.remove(unit)
        self.give_back(units)

    def cache(self, request: int, units: list[int]) -> None:
        """Content for pages that had none; in a contiguous pool for the front of a block that ends."""
        seen = self.requests[request]
        for unit in units:
            assert unit in seen.table and unit not in self.cached
            if unit in self.owner:
                assert seen.ended
            else:
                assert self.references[unit] > 0
                self.hits[unit] = 0
                self.moments += 1
                self.registered_at[unit] = self.moments
                self.filled.append((request, seen.table.index(unit)))
            self.cached.add(unit)

    def pin(self, request: int, units: list[int]) -> None:
        """Content that stays, of pages that were hit often enough, under a cap."""
        for unit in units:
            assert unit in self.cached and unit not in self.pinned
            self.pinned.add(unit)
            if unit not in self.owner:
                assert self.references[unit] > 0 and self.hits[unit] >= self.pins[0] > 0
                assert len(self.pinned) <= self.pins[1]

    def evict(self, request: int, units: list[int]) -> None:
        """A region is given up."""
        assert request == 0
        for unit in units:
            self.regions.remove(unit)
            self.pinned.remove(unit)
            self.cached.remove(unit)

    def reset(self) -> None:
        """Every content and pin forgotten; what was in no queue joins its back in the order of the numbers."""
        idle = {unit for unit in self.pinned - self.deferred if self.references[unit] == 0}
        self.queue += sorted(idle | self.unused)
        self.unused.clear()
        self.pinned.clear()
        self.cached.clear()

    def assign(self, request: int, units: list[int]) -> None:
        """The block table grows, at most once a step."""
        assert request not in self.assigned, "a request is assigned units once a step"
        self.assigned.add(request)
        self.requests[request].table += units

    def assign_window(self, request: int, units: list[int]) -> None:
        """The window group's table grows."""
        self.window_pool = self.pool
        self.requests[request].window += units

    # Contiguous blocks

    def leave_region(self, seen: Seen, units: list[int]) -> None:
        """The front of a block stays behind its request."""
        assert seen.ended and units == seen.table[: len(units)] and set(units) <= self.pinned & self.cached
        seen.table = seen.table[len(units) :]
        for unit in units:
            del self.owner[unit]
            self.regions.add(unit)

    def alloc_run(self, request: int, start: int, n: int) -> None:
        """Units from nobody to a request; in the host tier the lowest that are enough."""
        owner, capacity = (self.owner, self.capacity) if self.pool == 1 else (self.host, self.second)
        if self.pool == 2:
            places = range(1, capacity - n + 2)
            assert start == next(at for at in places if not any(unit in owner for unit in range(at, at + n)))
        for unit in range(start, start + n):
            assert 1 <= unit <= capacity and unit not in owner and (self.pool == 2 or unit not in self.regions)
            owner[unit] = request

    def free_run(self, request: int, start: int, n: int) -> None:
        """Units from a request to nobody."""
        seen = self.requests[request]
        if self.pool == 2:
            assert [unit for unit, who in self.host.items() if who == request] == list(range(start, start + n))
            assert (seen.running and not seen.copied) or seen.ended
            for unit in range(start, start + n):
                del self.host[unit]
            seen.kept = seen.copied = 0
            return
        if request == self.relocating:
            self.relocating = 0
        elif seen.running:
            assert seen.table == list(range(start, start + n))
        for unit in range(start, start + n):
            assert self.owner.pop(unit) == request
            if unit in seen.table:
                seen.table.remove(unit)

    def assign_run(self, request: int, start: int, n: int) -> None:
        """The block of the request gains these units."""
        if self.pool == 2:
            assert all(self.host[unit] == request for unit in range(start, start + n))
            assert n == self.requests[request].copied
            return
        assert all(self.owner[unit] == request for unit in range(start, start + n))
        self.requests[request].table += list(range(start, start + n))

    def reserve(self, request: int, tokens: int) -> None:
        """Slots set aside for the request."""
        self.requests[request].reserved = tokens

    def relocate(self, request: int, old: int, old_n: int, new: int, new_n: int, copied: int) -> None:
        """Old and new block exist side by side."""
        assert all(self.owner[unit] == request for unit in [*range(old, old + old_n), *range(new, new + new_n)])
        assert copied == self.requests[request].computed
        self.relocating = request

    def compact(self, units: int, copied: int) -> None:
        """Who moved stands above; afterwards nothing is free between two blocks."""
        assert units == sum(len(self.requests[request].table) for request in self.moved)
        assert copied == sum(self.requests[request].computed for request in self.moved)
        assert sorted(self.owner) == list(range(1, len(self.owner) + 1))
        self.moved.clear()
        self.compactions += 1

    def copy(self, request: int, source: int, target: int, tokens: int, why: int) -> None:
        """What is copied is there, and where it goes is the request's own, or free for a block that slides."""
        seen = self.requests[request]
        if why == 1:
            assert seen.table[seen.computed // self.unit_tokens] == target and self.references[target] == 1
            assert 0 < tokens == seen.computed % self.unit_tokens
            assert self.references[source] and source not in seen.table
        elif why == 2:
            assert source in self.regions and seen.table[0] == target and tokens == seen.computed
        else:
            assert why == 3 and target < source == seen.table[0] and tokens == seen.computed
            assert self.owner.get(target, request) == request
            self.moved.add(request)

    # Requests

    def arrive(self, request: int, at: int, class_id: int, prompt: int, limit: int, intended: int) -> None:
        """A new number, counted in order when nobody follows another one."""
        assert request not in self.requests
        self.requests[request] = Seen(prompt=prompt, target=prompt, class_id=class_id)

    def admit(self, request: int, hit: int, lookup: int) -> None:
        """From the queue into memory, with what the cache had."""
        seen = self.requests[request]
        assert not seen.running and not seen.ended and hit < max(lookup, seen.prompt)
        assert not seen.table and not seen.window
        self.admitted.append(request)
        seen.running, seen.computed, seen.decoding = True, hit, False

    def progress(self, request: int, computed: int) -> None:
        """A number that stands at the end of this step."""
        seen = self.requests[request]
        assert seen.running and seen.computed <= computed and not seen.kept
        self.told.add(request)
        seen.computed = computed
        seen.decoding = computed >= seen.target

    def first_token(self, request: int) -> None:
        """Once in a life, and only when the prompt is complete."""
        seen = self.requests[request]
        assert not seen.first_token and seen.computed == seen.prompt
        seen.first_token = True

    def finish(self, request: int, reason: int, output: int, intended: int) -> None:
        """The end, before its units are given back."""
        seen = self.requests[request]
        assert not seen.ended
        seen.running, seen.ended, seen.output, seen.decoding = False, reason, output, False

    def preempt(self, request: int, lost: int) -> None:
        """Back to the queue with nothing computed, or with all of it in the host tier."""
        seen = self.requests[request]
        assert seen.running and lost == (0 if seen.copied else seen.computed)
        assert all(other != request for other, _ in self.filled), "content that nobody is going to compute"
        if self.levels:
            running = [other for other in self.requests.values() if other.running]
            assert self.level(seen) == max(map(self.level, running)), "somebody less urgent keeps its memory"
        if seen.decoding:
            seen.target = seen.computed + 1
        self.preempted.append(request)
        seen.kept = seen.computed if seen.copied else 0
        seen.running, seen.computed, seen.decoding, seen.reserved = False, 0, False, 0

    def level(self, seen: Seen) -> int:
        """How urgent a request is, lower is more."""
        return self.levels.get(seen.class_id, 0)

    def offload(self, request: int, units: list[int]) -> None:
        """The units with written tokens are copied to the host tier."""
        seen = self.requests[request]
        assert seen.running and units == seen.table[: self.units_for(seen.computed)]
        seen.copied = len(units)

    def commit(self, request: int, tokens: int) -> None:
        """All tokens that were written are kept."""
        seen = self.requests[request]
        assert not seen.running and tokens == seen.kept > 0

    def onboard(self, request: int, units: list[int]) -> None:
        """Exactly what was kept comes back."""
        seen = self.requests[request]
        assert seen.running and seen.computed == 0 and units == seen.table[: self.units_for(seen.kept)]
        assert len(units) == seen.copied
        seen.computed, seen.kept, seen.copied = seen.kept, 0, 0

    def units_for(self, tokens: int) -> int:
        """Units that hold so many tokens."""
        return -(-tokens // self.unit_tokens)

    # What the engine says

    def fail(self, *fields: int) -> None:
        """Kept as it is: request, need, contiguity, free, evictable, largest, reason, outcome."""
        _, need, contiguity, free, evictable, largest, reason, _ = fields
        if self.pool == 2 and contiguity == 0:
            assert (free, evictable, largest) == (len(self.stack), 0, len(self.stack))
            assert reason != 6 or need > free
        elif contiguity:
            owner, capacity = (self.owner, self.capacity) if self.pool == 1 else (self.host, self.second)
            taken = set(owner) | (self.regions if self.pool == 1 else set())
            most = largest_block(taken, capacity, self.aligned and self.pool == 1)
            assert (free, evictable, largest) == (capacity - len(taken), 0, most)
            assert reason != 1 or need > free
            assert reason in (5, 7) or (reason == 2) == (free >= need > largest)
            assert reason in ((1, 2) if self.pool == 2 else (1, 2, 5, 7, 8))
        else:
            states = self.states()
            assert (free, evictable, largest) == (states["free"], states["cached"], states["free"])
            assert reason != 1 or need > free + evictable + states["pinned"]
            assert reason != 3 or free < need <= free + evictable
            assert reason != 4 or free + evictable < need <= free + evictable + states["pinned"]
            assert reason in (1, 3, 4, 5, 7, 8)
        (self.fails if self.pool == 1 or contiguity == 0 else self.second_fails).append(list(fields))

    def claims(self, available: int, evictable: int, protected: int, in_flight: int, usage: int) -> None:
        """The engine's own numbers: they lack what leaked, and count twice what was given back twice."""
        states = self.states()
        leaked = len(self.unowned())
        assert available == states["free"] + self.twice
        assert (evictable, in_flight) == (states["cached"], states["deferred"])
        assert protected == states["active"] + states["pinned"] - leaked
        assert available + evictable + protected + in_flight - self.capacity == self.twice - leaked
        if self.gauge_is_right:
            assert usage == (protected + in_flight) * 1_000_000 // self.capacity
        self.all_claims.append([available, evictable, protected, in_flight, usage])

    def error(self, *fields: int) -> None:
        """Something else failed."""
        self.errors.append(list(fields))

    def lost(self, entries: int, reason: int) -> None:
        """An allocator's own journal has no gaps."""
        raise AssertionError(f"{entries} entries are missing")

    def step(self, *fields: int) -> None:
        """The step closes: decodes that nobody mentioned have one token more."""
        assert self.pool == 1
        for request in self.decoded_before - self.told:
            seen = self.requests[request]
            if seen.running and seen.decoding:
                seen.computed += 1
        for request, page in self.filled:
            seen = self.requests[request]
            computed = seen.prompt + seen.output - 1 if seen.ended else seen.computed
            assert (page + 1) * self.unit_tokens <= computed, "content of tokens that nobody computed"
        self.filled.clear()
        self.decoded_before = {number for number, seen in self.requests.items() if seen.running and seen.decoding}
        self.told, self.assigned = set(), set()
        assert not self.moved and not self.relocating
        self.steps.append(list(fields))

    def states(self) -> dict[str, int]:
        """Units of pool 1 by state, each counted once."""
        sums = dict.fromkeys(("active", "cached", "pinned", "deferred", "free"), 0)
        for unit in range(1, self.capacity + 1):
            if self.references[unit] or unit in self.owner:
                state = "active"
            elif unit in self.deferred:
                state = "deferred"
            elif unit in self.pinned:
                state = "pinned"
            else:
                state = "cached" if unit in self.cached else "free"
            sums[state] += 1
        return sums

    def unowned(self) -> set[int]:
        """Active units that are in the table of nobody who runs."""
        running = [seen for seen in self.requests.values() if seen.running]
        owned = {unit for seen in running for unit in seen.table}
        if self.window_pool == 1:
            owned |= {unit for seen in running for unit in seen.window}
        return {unit for unit, count in self.references.items() if count} - owned


def largest_block(taken: set[int], capacity: int, aligned: bool) -> int:
    """The longest run without a taken unit, or the largest power of two of them that begins at a multiple of itself."""
    if not aligned:
        longest = length = 0
        for unit in range(1, capacity + 1):
            length = 0 if unit in taken else length + 1
            longest = max(longest, length)
        return longest
    size = 1
    while 2 * size <= capacity:
        size *= 2
    while size:
        for start in range(1, capacity - size + 2, size):
            if not any(unit in taken for unit in range(start, start + size)):
                return size
        size //= 2
    return 0
