"""One row of the table of `make bench`: what was measured, what came out, what was aimed at."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """`met` is None where there is no target to hold the figure against; `limit` says what keeps the figure from it."""

    work: str
    figure: str
    target: str = ""
    met: bool | None = None
    limit: str = ""


def best_of(runs: int, measured: Callable[[], object]) -> float:
    """Seconds of the fastest of `runs` calls: the machine is shared, and noise only ever adds."""
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        measured()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
