"""Shared beginnings: system prompts, tool headers, tenants.

Invariant: prefix 1 is the most popular one; a request has one of them or none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvmon.serving.workloads.parameters import share, within

__all__ = ["SharedPrefixes"]


@dataclass(frozen=True)
class SharedPrefixes:
    """`count` prefixes of `tokens` each; number k is used in proportion to k**-zipf, by `share` of all requests.

    zipf 0: all alike; about 1: as popularity usually is (Zipf's law). Raises ConfigError for what cannot be.
    """

    count: int
    tokens: int
    zipf: float = 1.0
    share: float = 1.0

    def __post_init__(self) -> None:
        within(self.count, "the number of prefixes", 1, 2**20)
        within(self.tokens, "the length of a prefix in tokens", 1, 2**30)
        within(self.zipf, "the exponent of the prefixes' popularity", 0.0, 100.0)
        share(self.share, "the share of requests with a prefix")

    def popularity(self) -> npt.NDArray[np.float64]:
        """Of the requests that have a prefix, the share of each (float64, count)."""
        weight: npt.NDArray[np.float64] = np.arange(1, self.count + 1, dtype=np.float64) ** -self.zipf
        weight /= weight.sum()
        return weight

    def draw(self, random: np.random.Generator, n: int) -> npt.NDArray[np.int64]:
        """Number of the prefix of each of n, from 1; 0: none (int64)."""
        which = random.choice(self.count, n, p=self.popularity()) + 1
        return np.where(random.random(n) < self.share, which, 0)
