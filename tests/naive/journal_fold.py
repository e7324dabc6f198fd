"""What an observer can rebuild from the journal alone: dictionaries, lists and the rules of its documentation.

Slow on purpose. It shares no code and no constant with the allocators, so that both can only agree by being right.
"""

from __future__ import annotations

from dataclasses import dataclass, field

UNITS = {1: "alloc", 4: "share", 5: "unshare", 6: "cache", 8: "assign"}
FIXED = {
    2: ("alloc_run", 3),
    3: ("free_run", 3),
    7: ("reset", 0),
    9: ("assign_run", 3),
    10: ("reserve", 2),
    20: ("arrive", 6),
    21: ("admit", 3),
    22: ("progress", 2),
    23: ("first_token", 1),
    24: ("finish", 4),
    25: ("preempt", 2),
    26: ("fail", 8),
    27: ("relocate", 6),
    28: ("step", 8),
}


@dataclass
class Seen:
    """One request as the journal tells it."""

    prompt: int
    target: int
    arrived: bool = True
    running: bool = False
    ended: int = 0
    output: int = 0
    first_token: bool = False
    computed: int = 0
    decoding: bool = False
    reserved: int = 0
    table: list[int] = field(default_factory=list)


class JournalFold:
    """State of pool and requests after every entry so far; unit numbers and requests as in the journal."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.references = dict.fromkeys(range(1, capacity + 1), 0)
        self.cached: set[int] = set()
        self.queue = list(range(1, capacity + 1))
        self.owner: dict[int, int] = {}
        self.requests: dict[int, Seen] = {}
        self.fails: list[list[int]] = []
        self.steps: list[list[int]] = []
        self.evicted = 0
        self.assigned: set[int] = set()
        self.told: set[int] = set()
        self.decoded_before: set[int] = set()
        self.moving: list[int] | None = None

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

    def alloc(self, request: int, units: list[int]) -> None:
        """Pages leave the front of the queue; what they held is gone."""
        assert self.queue[: len(units)] == units, "pages do not come from the front of the queue"
        del self.queue[: len(units)]
        for unit in units:
            assert self.references[unit] == 0
            self.references[unit] = 1
            if unit in self.cached:
                self.cached.discard(unit)
                self.evicted += 1

    def share(self, request: int, units: list[int]) -> None:
        """One more reference; a page in the queue leaves it."""
        for unit in units:
            assert unit in self.cached, "a page without content cannot be hit"
            if self.references[unit] == 0:
                self.queue.remove(unit)
            self.references[unit] += 1

    def unshare(self, request: int, units: list[int]) -> None:
        """One reference fewer; with content to the back, the others as a group to the front."""
        assert units == self.requests[request].table[::-1], "a request is released from its last page to its first"
        front = []
        for unit in units:
            self.references[unit] -= 1
            assert self.references[unit] >= 0
            if self.references[unit] == 0:
                (self.queue if unit in self.cached else front).append(unit)
        self.queue = front + self.queue
        self.requests[request].table = []

    def cache(self, request: int, units: list[int]) -> None:
        """Content for pages that had none."""
        for unit in units:
            assert self.references[unit] > 0 and unit in self.requests[request].table
            self.cached.add(unit)

    def reset(self) -> None:
        """Every content forgotten."""
        self.cached.clear()

    def assign(self, request: int, units: list[int]) -> None:
        """The block table grows, at most once a step."""
        assert request not in self.assigned, "a request is assigned units once a step"
        self.assigned.add(request)
        self.requests[request].table += units

    def alloc_run(self, request: int, start: int, n: int) -> None:
        """Units from nobody to a request."""
        for unit in range(start, start + n):
            assert 1 <= unit <= self.capacity and unit not in self.owner
            self.owner[unit] = request

    def free_run(self, request: int, start: int, n: int) -> None:
        """Units from a request to nobody."""
        for unit in range(start, start + n):
            assert self.owner.pop(unit) == request
            if unit in self.requests[request].table:
                self.requests[request].table.remove(unit)
        self.moving = None

    def assign_run(self, request: int, start: int, n: int) -> None:
        """The block of the request gains these units."""
        assert all(self.owner[unit] == request for unit in range(start, start + n))
        self.requests[request].table += list(range(start, start + n))

    def reserve(self, request: int, tokens: int) -> None:
        """Slots set aside for the request."""
        self.requests[request].reserved = tokens

    def relocate(self, request: int, old: int, old_n: int, new: int, new_n: int, copied: int) -> None:
        """Old and new block exist side by side."""
        assert all(self.owner[unit] == request for unit in [*range(old, old + old_n), *range(new, new + new_n)])
        assert copied == self.requests[request].computed

    def arrive(self, request: int, at: int, class_id: int, prompt: int, limit: int, intended: int) -> None:
        """A new number, counted in order."""
        assert request == len(self.requests) + 1
        self.requests[request] = Seen(prompt=prompt, target=prompt)

    def admit(self, request: int, hit: int, lookup: int) -> None:
        """From the queue into memory, with what the cache had."""
        seen = self.requests[request]
        assert not seen.running and not seen.ended and hit < max(lookup, 1)
        seen.running, seen.computed, seen.decoding = True, hit, False

    def progress(self, request: int, computed: int) -> None:
        """A number that stands at the end of this step."""
        seen = self.requests[request]
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
        """Back to the queue with nothing computed."""
        seen = self.requests[request]
        assert seen.running and lost == seen.computed
        if seen.decoding:
            seen.target = lost + 1
        seen.running, seen.computed, seen.decoding, seen.reserved = False, 0, False, 0

    def fail(self, *fields: int) -> None:
        """Kept as it is: request, need, contiguity, free, evictable, largest, reason, outcome."""
        _, need, contiguity, free, evictable, largest, reason, _ = fields
        if contiguity:
            runs, length = [0], 0
            for unit in range(1, self.capacity + 1):
                length = 0 if unit in self.owner else length + 1
                runs.append(length)
            assert (free, evictable, largest) == (self.capacity - len(self.owner), 0, max(runs))
            assert (reason == 2) == (free >= need > largest)
        else:
            empty = sum(1 for unit in self.queue if unit not in self.cached)
            assert (free, evictable, largest) == (empty, len(self.queue) - empty, empty)
            assert reason != 1 or need > len(self.queue)
        self.fails.append(list(fields))

    def step(self, *fields: int) -> None:
        """The step closes: decodes that nobody mentioned have one token more."""
        for request in self.decoded_before - self.told:
            seen = self.requests[request]
            if seen.running and seen.decoding:
                seen.computed += 1
        self.decoded_before = {number for number, seen in self.requests.items() if seen.running and seen.decoding}
        self.told, self.assigned = set(), set()
        self.steps.append(list(fields))
