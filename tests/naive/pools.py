"""Both allocators as a person would keep them on paper: a list for the queue, a list of owners for the slots.

Slow on purpose, and no code or constant in common with the package.
"""

from __future__ import annotations


class PaperPages:
    """Pages 1..capacity: a queue, reference counts, and which content each page holds."""

    def __init__(self, capacity: int) -> None:
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
            if self.references[page] == 0:
                self.queue.remove(page)
            self.references[page] += 1
        self.tables[request] = list(pages)

    def allocate(self, request: int, n: int) -> bool:
        """From the front of the queue, or nothing."""
        if n > len(self.queue):
            return False
        for _ in range(n):
            page = self.queue.pop(0)
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

    def release(self, request: int) -> None:
        """Last page first; without content to the front as a group, with content to the back."""
        front = []
        for page in reversed(self.tables.pop(request, [])):
            self.references[page] -= 1
            if self.references[page] == 0:
                (self.queue if page in self.content else front).append(page)
        self.queue = front + self.queue

    def reset(self) -> None:
        """Every content forgotten."""
        self.content.clear()
        self.age.clear()


class PaperSlots:
    """Slots 1..capacity with the request that owns each, 0 = free."""

    def __init__(self, capacity: int) -> None:
        self.owner = [0] * (capacity + 1)

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

    def place(self, request: int, n: int) -> int | None:
        """The lowest run that is long enough."""
        for start, length in self.runs():
            if length >= n:
                self.owner[start : start + n] = [request] * n
                return start
        return None

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
