"""What goes wrong in the wild, injected into the allocator, so that events, claims and state differ as they do there.

    leak          a request ends and its last page is not given back: no event, no owner; the engine's claims lack it
    double free   its last page is given back twice: two events, and the engine counts it as available twice
    strand        the transfer of its pages never ends (or ends after `strand_ns`): they stay deferred
    gauge         the engine's own usage gauge counts the tokens of the last step instead of the memory in use
    error         something else than the pool fails: an engine error with bytes, and the longest running request dies

Invariant: which request is struck follows from `seed` and its number alone; nothing strikes before `from_ns`. A fault
is never visible to the scheduler, only its consequences are. Shares are of the requests that end, 0 to 1; only the
transfers of requests that were aborted are stranded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from kvmon.allocators.config import AllocatorConfig, PagedConfig
from kvmon.errors import ConfigError

__all__ = ["EngineError", "Faults"]


class EngineError(NamedTuple):
    """An allocation outside of the KV pool that failed at `at_ns`; bytes asked for, free, and reserved but unused."""

    at_ns: int
    asked_bytes: int
    free_bytes: int
    reserved_bytes: int


@dataclass(frozen=True)
class Faults:
    """Which faults strike, and how often the engine states its own numbers.

    claims_every_ns     time between two statements of the engine's own numbers; 0: it never states them
    strand_ns           how long a stranded transfer holds its pages; 0: for ever
    from_ns             when faults begin
    """

    seed: int = 0
    leak_share: float = 0.0
    double_free_share: float = 0.0
    strand_share: float = 0.0
    strand_ns: int = 0
    wrong_gauge: bool = False
    errors: tuple[EngineError, ...] = ()
    claims_every_ns: int = 0
    from_ns: int = 0

    def __post_init__(self) -> None:
        for name in ("leak_share", "double_free_share", "strand_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} of {getattr(self, name)} is no share of the requests: choose 0 to 1")
        if min(self.strand_ns, self.claims_every_ns, self.from_ns, self.seed) < 0:
            raise ConfigError("seeds and times of faults are 0 or more")
        if self.wrong_gauge and not self.claims_every_ns:
            raise ConfigError("a wrong gauge is only seen where the engine states its numbers: give claims_every_ns")
        if any(min(error) < 0 for error in self.errors):
            raise ConfigError("times and bytes of engine errors are 0 or more")

    @property
    def any_in_pool(self) -> bool:
        """Whether a fault of the allocator itself is wanted."""
        return bool(self.leak_share or self.double_free_share or self.strand_share)

    def check_for(self, allocator: AllocatorConfig) -> None:
        """Raise ConfigError where these faults cannot be injected."""
        if self.any_in_pool and not isinstance(allocator, PagedConfig):
            raise ConfigError("leaks, double frees and stranded transfers are injected into paged pools: choose paged")
