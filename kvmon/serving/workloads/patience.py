"""Clients that hang up.

Invariant: who hangs up is drawn beforehand; whether the answer was faster is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvmon.serving.workloads.parameters import seconds, share

__all__ = ["Patience"]


@dataclass(frozen=True)
class Patience:
    """`share` of the requests are given up after a time with the mean `mean_s` (exponential), unless they ended before.

    Raises ConfigError for a share or time that is none.
    """

    share: float
    mean_s: float

    def __post_init__(self) -> None:
        share(self.share, "the share of requests that are given up")
        seconds(self.mean_s, "the patience", zero=False)

    def draw(self, random: np.random.Generator, n: int) -> npt.NDArray[np.int64]:
        """Nanoseconds after its arrival at which each of n hangs up (int64); 0: never."""
        waits = np.maximum(random.exponential(self.mean_s, n) * 1e9, 1.0).astype(np.int64)
        return np.where(random.random(n) < self.share, waits, 0)
