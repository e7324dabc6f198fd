"""What an allocator is made of: sizes and policy, checked once.

Invariant: a configuration that exists is valid. Sizes are in tokens where a person chooses them and in units inside.
Nothing here allocates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvmon.errors import ConfigError

__all__ = ["AllocatorConfig", "ContiguousConfig", "PagedConfig", "parse_reserve"]

_MOST_UNITS = 2**31 - 2


@dataclass(frozen=True)
class PagedConfig:
    """A paged pool of `capacity_units` pages of `unit_tokens` tokens, with or without a prefix cache."""

    capacity_units: int
    unit_tokens: int = 16
    prefix_cache: bool = True

    def __post_init__(self) -> None:
        _check_sizes(self.capacity_units, self.unit_tokens)

    def resized(self, capacity_units: int) -> PagedConfig:
        """The same pool at another size."""
        return replace(self, capacity_units=capacity_units)


@dataclass(frozen=True)
class ContiguousConfig:
    """A first-fit pool of `capacity_units` granules of `unit_tokens` tokens.

    `chunk_tokens` None reserves once for the longest that a request may become; a number reserves its prompt in
    multiples of that many tokens and grows by as many.
    """

    capacity_units: int
    unit_tokens: int = 1
    chunk_tokens: int | None = None

    def __post_init__(self) -> None:
        _check_sizes(self.capacity_units, self.unit_tokens)
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


AllocatorConfig = PagedConfig | ContiguousConfig


def parse_reserve(text: str) -> int | None:
    """The chunk in tokens that `chunk:N` names; None for `max`. Raises ConfigError for anything else."""
    if text == "max":
        return None
    kind, colon, number = text.partition(":")
    if kind == "chunk" and colon and number.isdecimal() and int(number) > 0:
        return int(number)
    raise ConfigError(f"'{text}' is no reservation policy: write max or chunk:N with N tokens, such as chunk:64")


def _check_sizes(capacity_units: int, unit_tokens: int) -> None:
    if unit_tokens < 1:
        raise ConfigError(f"a block of {unit_tokens} tokens is none: choose a block size of at least 1")
    if capacity_units < 1:
        raise ConfigError("the pool is smaller than one block: raise the capacity or choose smaller blocks")
    if capacity_units > _MOST_UNITS:
        raise ConfigError(
            f"{capacity_units} units are more than the {_MOST_UNITS} that can be numbered: use larger blocks"
        )
