"""What every allocator can be asked, whatever its policy.

Invariant: asking changes nothing. Sizes are units; a request is a number from 1.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from kvmon.allocators.refusal import Refusal

__all__ = ["Allocator"]


class Allocator(Protocol):
    """One pool that hands units to requests."""

    @property
    def capacity_units(self) -> int:
        """Units in all."""

    @property
    def free_units(self) -> int:
        """Units without owner and without content (F)."""

    @property
    def evictable_units(self) -> int:
        """Units without owner whose content would be lost."""

    @property
    def largest_free_units(self) -> int:
        """The largest block that could be granted now without eviction (G)."""

    def probe(self, units: int) -> Refusal | None:
        """Why `units` could not be given now; None when they could."""

    def allocate(self, request: int, units: int) -> Refusal | None:
        """Give `units` to `request`, or say why not and change nothing."""

    def release(self, request: int) -> None:
        """Take back everything that `request` holds."""

    def units_of(self, request: int) -> npt.NDArray[np.int64]:
        """Units of `request` in the order of its tokens; empty when it holds none."""

    def drain(self) -> npt.NDArray[np.int64]:
        """The journal since the last drain; empty when it is off."""

    def check(self) -> None:
        """Walk every invariant; raises InvariantError."""
