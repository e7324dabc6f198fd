"""Both allocators as a person would keep them on paper: a list for the queue, a list of owners for the slots.

Slow on purpose, and no code or constant in common with the package.
"""

from __future__ import annotations


class PaperPages:
    """Pages 1..capacity: a queue, reference counts, and which content each page holds.

    With `evict` other than `lru`, pages with content stand in no queue and go when it is empty: the one hit least, the
    longest unused of equals (`lfu`), or the one registered first (`fifo`). A page that was hit `pin_after` times is
    pinned while fewer than `pin_most` are.
    """

    def __init__(self, capacity: int, evict: str = "lru", pin_after: int = 0, pin_most: int = 0) -> None:
        self.evict = evict
        self.pin_after = pin_after
        self.pin_most = pin_most
        self.pinned: set[int] = set()
        self.hits: dict[int, int] = {}
        self.unused: list[int] = []  # with content and in no queue, the longest unused first
        self.queue = list(range(1, capacity + 1))
        self.references = dict.fromkeys(self.queue, 0)
        self.content: dict[int, int] = {}
        self.age: list[int] = []  # pages with content, in the order in which it was registered
        self.tables: dict[int, list[int]] = {}
        self.evictions = 0

    def lookup(self, names: list[int]) -> list[int]:
        """The longest chain from the beginning; of equal contents the oldest."""
        found: list[int] = []
        for name in names:
            page = next((page for page in self.age if self.content[page] == name), None)
            if page is None:
                break
            found.append(page)
        return found

    def share(self, request: int, pages: list[int]) -> None:
        """One more reference each."""
        for page in pages:
            if self.references[page] == 0 and page not in self.pinned:
                (self.queue if page in self.queue else self.unused).remove(page)
            self.references[page] += 1
            self.hits[page] += 1
        for page in pages:
            if self.pin_after and self.hits[page] >= self.pin_after and len(self.pinned | {page}) <= self.pin_most:
                self.pinned.add(page)
        self.tables[request] = list(pages)

    def order(self) -> list[int]:
        """Everything that could be taken, in the order in which it would be."""
        if self.evict == "lfu":
            return self.queue + sorted(self.unused, key=lambda page: self.hits[page])
        return self.queue + [page for page in self.age if page in self.unused]

    def allocate(self, request: int, n: int) -> bool:
        """In order, or nothing."""
        pages = self.order()[:n]
        if n > len(pages):
            return False
        for page in pages:
            (self.queue if page in self.queue else self.unused).remove(page)
            self.references[page] = 1
            if page in self.content:
                del self.content[page]
                self.age.remove(page)
                self.evictions += 1
            self.tables.setdefault(request, []).append(page)
        return True

    def register(self, page: int, name: int) -> None:
        """Content for a page that had none."""
        self.content[page] = name
        self.age.append(page)
        self.hits[page] = 0

    def release(self, request: int) -> None:
        """Last page first; without content to the front as a group, with content to the back."""
        front = []
        for page in reversed(self.tables.pop(request, [])):
            self.references[page] -= 1
            if self.references[page] == 0 and page not in self.pinned:
                kept = self.queue if self.evict == "lru" else self.unused
                (kept if page in self.content else front).append(page)
        self.queue = front + self.queue

    def reset(self) -> None:
        """Every content forgotten; what stands in no queue joins its back by number."""
        idle = [page for page in self.pinned if self.references[page] == 0]
        self.queue += sorted(idle + self.unused)
        self.unused.clear()
        self.pinned.clear()
        self.content.clear()
        self.age.clear()


class PaperSlots:
    """Slots 1..capacity with the request that owns each, 0 = free; placed by first fit or by best fit."""

    def __init__(self, capacity: int, placement: str = "first-fit") -> None:
        self.owner = [0] * (capacity + 1)
        self.shortest = placement == "best-fit"

    def runs(self) -> list[tuple[int, int]]:
        """First slot and length of each maximal free run."""
        runs: list[tuple[int, int]] = []
        for slot in range(1, len(self.owner)):
            if self.owner[slot] == 0:
                if runs and runs[-1][0] + runs[-1][1] == slot:
                    runs[-1] = (runs[-1][0], runs[-1][1] + 1)
                else:
                    runs.append((slot, 1))
        return runs

    def needs(self, n: int) -> int:
        """Slots that a request for `n` gets."""
        return n

    def place(self, request: int, n: int) -> int | None:
        """The lowest run that is long enough, or the lowest of the shortest that are."""
        enough = [run for run in self.runs() if run[1] >= n]
        if not enough:
            return None
        start = min(enough, key=lambda run: run[1])[0] if self.shortest else enough[0][0]
        self.owner[start : start + n] = [request] * n
        return start

    def block(self, request: int) -> list[int]:
        """Slots of a request."""
        return [slot for slot, owner in enumerate(self.owner) if slot and owner == request]

    def release(self, request: int) -> None:
        """All slots of a request are free again."""
        self.owner = [0 if owner == request else owner for owner in self.owner]

    def extend(self, request: int, n: int) -> bool:
        """In place if the next slots are free, otherwise into a new block beside the old one."""
        block = self.block(request)
        after = block[-1] + 1
        if after + n <= len(self.owner) and not any(self.owner[after : after + n]):
            self.owner[after : after + n] = [request] * n
            return True
        if self.place(-1, len(block) + n) is None:
            return False
        self.release(request)
        self.owner = [request if owner == -1 else owner for owner in self.owner]
        return True

    def compact(self) -> int:
        """Everybody moves to the front and nobody overtakes; how many slots belong to somebody who moved."""
        first = {request: self.block(request)[0] for request in self.owner if request}
        held = [request for request in self.owner if request]
        self.owner = [0, *held, *[0] * (len(self.owner) - 1 - len(held))]
        return sum(len(self.block(request)) for request, slot in first.items() if self.block(request)[0] != slot)

    def owners(self) -> dict[int, int]:
        """The request of each slot that has one."""
        return {slot: request for slot, request in enumerate(self.owner) if request}


class PaperBuddies:
    """Slots from 1 on strips of paper that are only ever cut in half and glued to their other half."""

    def __init__(self, capacity: int) -> None:
        self.asked: dict[int, int] = {}
        self.given: dict[int, tuple[int, int]] = {}  # request: (order, offset)
        self.free: dict[int, set[int]] = {order: set() for order in range(20)}
        for slot in range(capacity):
            self._glue(0, slot)

    def runs(self) -> list[tuple[int, int]]:
        """First slot and length of each free piece, by address."""
        return sorted((offset + 1, 2**order) for order, pieces in self.free.items() for offset in pieces)

    def needs(self, n: int) -> int:
        """Slots that a request for `n` gets: the smallest piece that holds it."""
        return 1 if n == 1 else 2 * self.needs((n + 1) // 2)

    def _cut(self, order: int) -> int | None:
        """A free piece of this order, cut from the smallest larger one where there is none; the lowest of equals."""
        if order not in self.free:
            return None
        if not self.free[order]:
            larger = self._cut(order + 1)
            if larger is None:
                return None
            self.free[order] = {larger, larger + 2**order}
        lowest = min(self.free[order])
        self.free[order].remove(lowest)
        return lowest

    def _glue(self, order: int, offset: int) -> None:
        other = offset - 2**order if offset // 2**order % 2 else offset + 2**order
        if other in self.free[order]:
            self.free[order].remove(other)
            self._glue(order + 1, min(offset, other))
        else:
            self.free[order].add(offset)

    def place(self, request: int, n: int) -> int | None:
        """The smallest piece that holds `n`."""
        order = next(order for order in self.free if 2**order == self.needs(n))
        offset = self._cut(order)
        if offset is None:
            return None
        self.given[request] = (order, offset)
        self.asked[request] = n
        return offset + 1

    def block(self, request: int) -> list[int]:
        """Slots of a request."""
        order, offset = self.given[request]
        return list(range(offset + 1, offset + 1 + 2**order))

    def owners(self) -> dict[int, int]:
        """The request of each slot that has one."""
        return {slot: request for request in self.given for slot in self.block(request)}

    def release(self, request: int) -> None:
        """The piece goes back."""
        self._glue(*self.given.pop(request))
        del self.asked[request]

    def extend(self, request: int, n: int) -> bool:
        """Nothing to do while the piece holds it, otherwise a larger piece while the old one is held."""
        asked = self.asked[request] + n
        if asked > len(self.block(request)):
            old = self.given[request]
            if self.place(request, asked) is None:
                return False
            self._glue(*old)
        self.asked[request] = asked
        return True
