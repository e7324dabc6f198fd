"""What a scenario is: traffic, an engine and its faults as data, drawn from a seed, with the verdict it stands for.

Invariant: a setup follows from the scenario's name and the seed alone; nothing here runs. Twins share their draw, so
that a scenario and its healthy twin see the same traffic unless the cure is in the traffic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from zlib import crc32

import numpy as np

from kvmon.allocators.config import AllocatorConfig
from kvmon.serving.config import SchedulerConfig
from kvmon.serving.faults import Faults
from kvmon.serving.step_time import StepTime
from kvmon.serving.workload import Workload

__all__ = ["Draw", "Scenario", "Setup"]

_LLAMA_8B = 131_072


@dataclass(frozen=True)
class Setup:
    """Everything a run needs.

    token_bytes     bytes of one token's keys and values, for the recording
    linger_s        how long a run goes on after nothing can move any more
    lost_s          the recording lacks the steps between these simulated seconds; empty: it is whole
    """

    workload: Workload
    allocator: AllocatorConfig
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    step_time: StepTime = field(default_factory=StepTime)
    faults: Faults = field(default_factory=Faults)
    token_bytes: int = _LLAMA_8B
    linger_s: float = 0.0
    lost_s: tuple[float, ...] = ()


class Draw:
    """Parameters of one scenario for one seed; `drawn` holds them by name."""

    def __init__(self, name: str, seed: int) -> None:
        self.seed = seed
        self.drawn: dict[str, float | int] = {}
        self._random = np.random.default_rng([seed, crc32(name.encode())])

    def number(self, name: str, low: float, high: float) -> float:
        """A number from `low` to `high`."""
        value = round(float(self._random.uniform(low, high)), 4)
        self.drawn[name] = value
        return value

    def whole(self, name: str, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both possible."""
        value = int(self._random.integers(low, high + 1))
        self.drawn[name] = value
        return value

    def one_of(self, name: str, values: tuple[int, ...]) -> int:
        """One of `values`."""
        value = values[int(self._random.integers(len(values)))]
        self.drawn[name] = value
        return value

    @property
    def traffic_seed(self) -> int:
        """The seed of generators: another one for each scenario."""
        return int(np.random.SeedSequence([self.seed, 1]).generate_state(1)[0])


Build = Callable[[Draw, bool], Setup]


@dataclass(frozen=True)
class Scenario:
    """One row of the catalogue.

    verdict     what a diagnosis has to find
    healthy     what it may find in the twin
    traffic, sees, avoids   the traffic, what an operator sees, what would have avoided it
    build       the setup for a draw; True: with the cure
    draws_as    the scenario whose parameters it draws, to be compared with it at the same seed; empty: its own
    compare     more setups of the same traffic, by name, to be shown side by side with it; None: there are none
    """

    name: str
    verdict: str
    traffic: str
    sees: str
    avoids: str
    build: Build = field(repr=False)
    healthy: tuple[str, ...] = ("healthy",)
    draws_as: str = ""
    compare: Callable[[Draw], dict[str, Setup]] | None = field(default=None, repr=False)
    cured: bool = False

    def twin(self) -> Scenario:
        """The same with the cure."""
        return replace(self, name=f"{self.name}-healthy", verdict=self.healthy[0], compare=None, cured=True)

    def setups(self, seed: int) -> tuple[dict[str, Setup], dict[str, float | int]]:
        """The runs for `seed` by name (one without a name unless they are compared), and the parameters drawn."""
        draw = Draw(self.draws_as or self.name.removesuffix("-healthy"), seed)
        setups = {"": self.build(draw, self.cured)} if self.compare is None else self.compare(draw)
        label = f"{self.name} (seed {seed})"
        named = {
            name: replace(setup, workload=replace(setup.workload, name=f"{label} {name}".strip()))
            for name, setup in setups.items()
        }
        return named, draw.drawn
