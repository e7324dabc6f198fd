"""When requests, chats or tasks begin: on their own at a rate, all at once, or each after another one of its client.

Invariant: the first one begins at 0; beginnings that wait for nobody never run backwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvmon.serving.workloads.parameters import seconds, within

__all__ = ["ARRIVALS", "Arrivals", "AtOnce", "Beginnings", "ClosedLoop", "OpenLoop"]

#: Name -> what it is.
ARRIVALS = {
    "poisson": "independent, at a rate a second",
    "bursty": "gaps from a gamma with a coefficient of variation: above 1 in bursts, below 1 evenly",
    "closed-loop": "clients that wait for an answer, think, and ask again",
    "at-once": "everybody at 0: saturated",
}


class Beginnings(NamedTuple):
    """When each of n begins: at `time_s` (float64, n), or `time_s` after the end of number `after` (int64, n).

    `after` counts from 1 and is always an earlier one; 0: after none.
    """

    time_s: npt.NDArray[np.float64]
    after: npt.NDArray[np.int64]


@dataclass(frozen=True)
class OpenLoop:
    """Arrivals whatever the engine does: gaps from a gamma with mean 1 / rate_per_s and this coefficient of variation.

    A CV of 1 is a Poisson process. Raises ConfigError for a rate or CV that is none.
    """

    rate_per_s: float
    cv: float = 1.0

    def __post_init__(self) -> None:
        within(self.rate_per_s, "the rate a second", 1e-6, 1e9)
        within(self.cv, "the coefficient of variation", 0.01, 100.0)

    def begin(self, random: np.random.Generator, n: int) -> Beginnings:
        """`n` beginnings."""
        variance = self.cv**2
        gaps = random.gamma(1 / variance, variance / self.rate_per_s, n - 1)
        return Beginnings(np.concatenate([np.zeros(1), np.cumsum(gaps)]), np.zeros(n, np.int64))


@dataclass(frozen=True)
class ClosedLoop:
    """`clients` of which each has one thing running at a time and thinks `think_s` (mean, exponential) in between.

    All clients begin at 0. Raises ConfigError for fewer than one client or a think time that is none.
    """

    clients: int
    think_s: float = 0.0

    def __post_init__(self) -> None:
        within(self.clients, "the number of clients", 1, 2**30)
        seconds(self.think_s, "the think time")

    def begin(self, random: np.random.Generator, n: int) -> Beginnings:
        """`n` beginnings, the clients in turn."""
        number = np.arange(1, n + 1)
        after = np.maximum(number - self.clients, 0)
        pause = random.exponential(abs(self.think_s), n)
        return Beginnings(np.where(after == 0, 0.0, pause), after)


@dataclass(frozen=True)
class AtOnce:
    """Everybody at 0."""

    def begin(self, random: np.random.Generator, n: int) -> Beginnings:
        """`n` beginnings."""
        return Beginnings(np.zeros(n), np.zeros(n, np.int64))


Arrivals = OpenLoop | ClosedLoop | AtOnce
