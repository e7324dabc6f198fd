"""What the engine itself said of its memory, of its last step, and of what a request holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Claims", "Step", "Table"]


@dataclass(frozen=True, slots=True)
class Claims:
    """What the engine itself said it has, in units; None where it did not say."""

    time_ns: int
    available: int | None
    evictable: int | None
    protected: int | None
    in_flight: int | None
    usage: float | None

    def residual(self, capacity: int) -> int | None:
        """Sum of the claims less the capacity: negative = leak, positive = double free; None unless all is claimed."""
        parts = (self.available, self.evictable, self.protected, self.in_flight)
        known = [part for part in parts if part is not None]
        return None if len(known) < len(parts) else sum(known) - capacity


@dataclass(frozen=True, slots=True)
class Step:
    """The last engine step that was folded; times in ns of the engine's monotonic clock, tokens, requests, units."""

    start_ns: int
    duration_ns: int
    prefill_tokens: int
    decode_tokens: int
    context_tokens: int
    running: int
    waiting: int
    head_need: int | None


@dataclass(frozen=True, slots=True)
class Table:
    """The units of one request in one pool for one group of layers, in the order of the sequence, and their slots."""

    units: npt.NDArray[np.int64]
    written: int
    tail: int
    reserved: int
