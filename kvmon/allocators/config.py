"""What an allocator is made of: sizes and policy, checked once.

Invariant: a configuration that exists is valid. Sizes are in tokens where a person chooses them and in units inside;
shares are of the pool, 0 to 1. Nothing here allocates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from kvmon.errors import ConfigError

__all__ = [
    "EVICTIONS",
    "MOST_QUOTA_CLASS",
    "PLACEMENTS",
    "RECLAIMS",
    "RESERVATIONS",
    "AllocatorConfig",
    "ContiguousConfig",
    "PagedConfig",
    "Quotas",
    "parse_reserve",
]

_MOST_UNITS = 2**31 - 2

PLACEMENTS = ("first-fit", "best-fit", "buddy")
RESERVATIONS = ("max", "pow2", "oracle", "chunk")
EVICTIONS = ("lru", "lfu", "fifo")
RECLAIMS = ("on-demand", "idle")
#: Highest class that a quota can name.
MOST_QUOTA_CLASS = 62

#: (class, most share of the pool that its requests may hold), each class once.
Quotas = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class PagedConfig:
    """A paged pool of `capacity_units` pages of `unit_tokens` tokens, with or without a prefix cache.

    evict           whose content goes first when pages without content are used up: of the page that is unused for the
                    longest time (`lru`), that was hit least (`lfu`, the longest unused among equals), or that holds its
                    content for the longest time (`fifo`)
    reclaim         `on-demand` evicts whenever a page is needed; `idle` only while no other request holds memory, as
                    engines do whose admission looks at empty pages alone
    pin_after_hits  a page that was hit so often is pinned: its content stays when nobody uses it; 0 pins nothing
    pin_share       most of the pool that pinned pages may take
    quotas          most of the pool that the requests of a class may hold, shared pages counted for each holder
    window_tokens   a second group of layers with a sliding window: it keeps pages of the last so many tokens; 0: none.
                    Pages that leave the window are given back at once and never reused, so the prefix cache must be off
    window_pool_units   pages of the window group's own pool; 0: it draws from the same pool
    """

    capacity_units: int
    unit_tokens: int = 16
    prefix_cache: bool = True
    evict: str = "lru"
    reclaim: str = "on-demand"
    pin_after_hits: int = 0
    pin_share: float = 0.0
    quotas: Quotas = ()
    window_tokens: int = 0
    window_pool_units: int = 0

    def __post_init__(self) -> None:
        _check_sizes(self.capacity_units, self.unit_tokens)
        _check_choice("eviction policy", self.evict, EVICTIONS)
        _check_choice("reclaim policy", self.reclaim, RECLAIMS)
        _check_share("pin_share", self.pin_share)
        _check_quotas(self.quotas)
        if not 0 <= self.pin_after_hits <= _MOST_UNITS:
            raise ConfigError(
                f"pinning after {self.pin_after_hits} hits means nothing: choose 1 to {_MOST_UNITS}, 0 pins nothing"
            )
        if bool(self.pin_after_hits) != bool(self.pin_share):
            raise ConfigError("pins need both: after how many hits a page is pinned, and a cap as a share of the pool")
        if not self.prefix_cache and (self.evict != "lru" or self.reclaim != "on-demand" or self.pin_after_hits):
            raise ConfigError("eviction, reclaim and pins are about cached prefixes: switch the prefix cache on")
        if not 0 <= self.window_tokens <= 2**30:
            raise ConfigError(
                f"a window of {self.window_tokens} tokens is none: choose 1 to {2**30}, 0 has no window group"
            )
        if not 0 <= self.window_pool_units <= _MOST_UNITS:
            raise ConfigError(f"a window pool of {self.window_pool_units} pages is none: choose 1 to {_MOST_UNITS}")
        if self.window_pool_units and not self.window_tokens:
            raise ConfigError("a pool for the window group needs a window: give window_tokens too")
        if self.window_tokens and self.prefix_cache:
            raise ConfigError("pages that leave a sliding window cannot be reused: switch the prefix cache off")

    def resized(self, capacity_units: int) -> PagedConfig:
        """The same pool at another size; a window pool of its own keeps its share."""
        window = self.window_pool_units
        if window:
            window = max(1, round(window * capacity_units / self.capacity_units))
        return replace(self, capacity_units=capacity_units, window_pool_units=window)

    @property
    def quota_units(self) -> dict[int, int]:
        """Most pages of each class with a quota, at least one."""
        return _quota_units(self.quotas, self.capacity_units)


@dataclass(frozen=True)
class ContiguousConfig:
    """A pool of `capacity_units` granules of `unit_tokens` tokens, one block a request.

    placement       the lowest free run that is long enough (`first-fit`), the shortest one (`best-fit`), or blocks of a
                    power of two at multiples of their size (`buddy`, Knuth TAOCP 1, 2.5)
    reserve         what is set aside for a request: the longest it may become (`max`), its prompt and the next power of
                    two of its output (`pow2`), exactly what it will need (`oracle`), or its tokens in multiples of
                    `chunk_tokens`, growing by as many (`chunk`); the first three as in PagedAttention (SOSP'23), 6.1
    chunk_tokens    a number means `reserve="chunk"`
    compaction      when enough is free but in no single run, slide all blocks together
    retained_prefixes   so many shared prefixes stay behind as regions of their own when their requests end, the longest
                    unused is given up for the next; a later request with the same prefix copies it instead of computing
    quotas          most of the pool that the requests of a class may hold
    """

    capacity_units: int
    unit_tokens: int = 1
    chunk_tokens: int | None = None
    reserve: str = "max"
    placement: str = "first-fit"
    compaction: bool = False
    retained_prefixes: int = 0
    quotas: Quotas = ()

    def __post_init__(self) -> None:
        _check_sizes(self.capacity_units, self.unit_tokens)
        _check_choice("placement", self.placement, PLACEMENTS)
        _check_choice("reservation policy", self.reserve, RESERVATIONS)
        _check_quotas(self.quotas)
        if not 0 <= self.retained_prefixes <= 1024:
            raise ConfigError(f"{self.retained_prefixes} retained prefixes are not possible: choose 0 to 1024")
        if self.placement == "buddy" and (self.compaction or self.retained_prefixes):
            raise ConfigError("a buddy block cannot be slid or cut: no compaction and no retained prefixes with buddy")
        if self.compaction and self.retained_prefixes:
            raise ConfigError("retained prefixes do not move: choose them or compaction")
        if self.chunk_tokens is not None and self.reserve == "max":
            object.__setattr__(self, "reserve", "chunk")
        if (self.reserve == "chunk") != (self.chunk_tokens is not None):
            raise ConfigError(
                "a chunk belongs to the reservation policy chunk, and the other way round: give both or none"
            )
        if self.chunk_tokens is None:
            return
        if self.chunk_tokens < 1:
            raise ConfigError(f"a reservation chunk of {self.chunk_tokens} tokens is none: choose at least 1")
        if self.chunk_tokens > self.capacity_units * self.unit_tokens:
            raise ConfigError(
                f"a reservation chunk of {self.chunk_tokens} tokens is larger than the pool of "
                f"{self.capacity_units * self.unit_tokens}: choose a smaller chunk or a larger capacity"
            )

    def resized(self, capacity_units: int) -> ContiguousConfig:
        """The same pool at another size."""
        return replace(self, capacity_units=capacity_units)

    @property
    def quota_units(self) -> dict[int, int]:
        """Most units of each class with a quota, at least one."""
        return _quota_units(self.quotas, self.capacity_units)


AllocatorConfig = PagedConfig | ContiguousConfig


def parse_reserve(text: str) -> tuple[str, int | None]:
    """The reservation policy and its chunk in tokens that `max`, `pow2`, `oracle` or `chunk:N` names.

    Raises ConfigError for anything else.
    """
    if text in RESERVATIONS and text != "chunk":
        return text, None
    kind, colon, number = text.partition(":")
    if kind == "chunk" and colon and number.isdecimal() and len(number) < 10 and int(number) > 0:
        return "chunk", int(number)
    raise ConfigError(
        f"'{text}' is no reservation policy: write max, pow2, oracle, or chunk:N with N tokens, such as chunk:64"
    )


def _check_sizes(capacity_units: int, unit_tokens: int) -> None:
    if unit_tokens < 1:
        raise ConfigError(f"a block of {unit_tokens} tokens is none: choose a block size of at least 1")
    if capacity_units < 1:
        raise ConfigError("the pool is smaller than one block: raise the capacity or choose smaller blocks")
    if capacity_units > _MOST_UNITS:
        raise ConfigError(
            f"{capacity_units} units are more than the {_MOST_UNITS} that can be numbered: use larger blocks"
        )


def _check_choice(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{what} '{value}' is unknown: choose {', '.join(allowed[:-1])} or {allowed[-1]}")


def _check_share(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ConfigError(f"{name} of {value} is no share of the pool: choose 0 to 1")


def _check_quotas(quotas: Quotas) -> None:
    for class_id, share in quotas:
        if not 0 <= class_id <= MOST_QUOTA_CLASS:
            raise ConfigError(f"a quota can name classes 0 to {MOST_QUOTA_CLASS}, not {class_id}")
        if not 0.0 < share <= 1.0:
            raise ConfigError(
                f"a quota of {share:.4g} of the pool for class {class_id} is none: choose more than 0 and at most 1 "
                "(100 %)"
            )
    if len({class_id for class_id, _ in quotas}) < len(quotas):
        raise ConfigError("a class has two quotas: give each class one")


def _quota_units(quotas: Quotas, capacity_units: int) -> dict[int, int]:
    return {class_id: max(1, math.floor(share * capacity_units)) for class_id, share in quotas}
