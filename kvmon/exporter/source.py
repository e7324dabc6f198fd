"""What the collectors look at: one object a rank with everything that is asked of it more than once.

Made afresh for each scrape, under the lock that keeps the followers still. A dead engine is there and has nothing but
its name. Of two streams with the same engine and rank the one that lives, then the younger one, is shown. Nothing
here is a metric.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from kvmon.catalog import SERIES_BUDGET
from kvmon.diagnosis import Diagnosis
from kvmon.exporter.families import Budget
from kvmon.exporter.follow.stream import Life, StreamFollower, Surveyed
from kvmon.state import Marks, PoolState, Slots, Survey

__all__ = ["POOLS_WITH_BUDGET", "Need", "PoolView", "RankView", "View", "view"]

Need = Literal["survey", "diagnosis"]
"""What a collector looks at that is worked out beforehand, and only where some collector is on that wants it."""

POOLS_WITH_BUDGET = 4
"""Pools of a rank that each bring a budget of series; what more pools would need is dropped and counted."""


class PoolView:
    """One pool at this moment."""

    def __init__(self, rank: RankView, pool: PoolState) -> None:
        self.rank = rank
        self.pool = pool
        taken = any(other.pool.name == pool.name for other in rank.pools)
        self.labels = (*rank.labels, f"{pool.name}-{pool.number}" if taken else pool.name)

    @cached_property
    def surveyed(self) -> Surveyed:
        """A look at every unit, and the sizes of requests that it was asked about; not older than the rank allows."""
        return self.rank.follower.survey(self.pool.number, self.rank.survey_age_ns)

    @property
    def survey(self) -> Survey:
        """What that look saw."""
        return self.surveyed.survey

    @cached_property
    def slots(self) -> Slots:
        """Token slots of active units."""
        return self.pool.slots(self.survey)

    @cached_property
    def marks(self) -> Marks:
        """Extremes of the last minute of event time."""
        return self.pool.marks()

    @property
    def head_need(self) -> int | None:
        """Units that the request at the head of the queue waits for."""
        return self.rank.follower.head_need(self.pool.number)


@dataclass
class RankView:
    """One rank at this moment: its follower, its labels and its budget of series."""

    follower: StreamFollower
    budget: Budget
    survey_age_ns: int = 0
    pools: list[PoolView] = field(default_factory=list)

    @property
    def labels(self) -> tuple[str, str]:
        """Engine and rank."""
        return self.follower.engine, str(self.follower.rank)

    @property
    def life(self) -> Life:
        """How the engine is."""
        return self.follower.life

    @cached_property
    def diagnosis(self) -> Diagnosis:
        """The diagnosis as of now."""
        return self.follower.diagnose(self.survey_age_ns)

    @property
    def converged(self) -> bool:
        """Whether the past that matters is known."""
        return self.follower.state.converged

    @property
    def shown(self) -> bool:
        """Whether it has numbers to show.

        Dead engines have none, and one that is read for the first time has none yet.
        """
        return self.life is not Life.DEAD and self.follower.caught_up

    @property
    def settled_pools(self) -> list[PoolView]:
        """Pools whose state is known; none while it is converging."""
        return self.pools if self.converged else []


@dataclass
class View:
    """All ranks, how many are hidden by another one of the same name, and the budget of the machine's GPUs."""

    ranks: list[RankView]
    hidden: int
    machine: Budget = field(default_factory=lambda: Budget(sys.maxsize))

    @property
    def shown(self) -> list[RankView]:
        """Ranks that have numbers to show."""
        return [rank for rank in self.ranks if rank.shown]

    @property
    def budgets(self) -> dict[str, Budget]:
        """Every budget, by the name of who has it: `engine/rank`, and the machine's GPUs."""
        return {**{"/".join(rank.labels): rank.budget for rank in self.ranks}, "the GPUs": self.machine}

    def limit(self, series: int) -> None:
        """Let all ranks and the machine have no more than so many series together."""
        whole = Budget(series)
        for budget in self.budgets.values():
            budget.whole = whole


def view(followers: Sequence[StreamFollower], series_budget: int = SERIES_BUDGET, survey_age_ns: int = 0) -> View:
    """The ranks that `followers` follow, by engine and rank.

    `series_budget` series for each pool, up to four of them.
    """
    best: dict[tuple[str, int], StreamFollower] = {}
    known = [follower for follower in followers if follower.header is not None]
    for follower in known:
        key = (follower.engine, follower.rank)
        if key not in best or _precedence(follower) > _precedence(best[key]):
            best[key] = follower
    ranks = []
    for _, follower in sorted(best.items()):
        pools = follower.state.pools
        count = min(max(1, len(pools)), POOLS_WITH_BUDGET)
        rank = RankView(follower, Budget(series_budget * count, follower.fidelity), survey_age_ns)
        for _, pool in sorted(pools.items()):
            rank.pools.append(PoolView(rank, pool))
        ranks.append(rank)
    return View(ranks, len(known) - len(best))


def _precedence(follower: StreamFollower) -> tuple[bool, int]:
    return follower.life is not Life.DEAD, follower.header.wall_ns if follower.header else 0
