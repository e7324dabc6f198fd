"""What a demo serves into which pools: its own contest of two layouts, or a scenario beside its healthy twin.

Read by the engines' processes, by the list and by the text about them. The demo's own numbers are small enough for a
tiny model on one core: a pool of 16,384 tokens, steps three times as long as the default clock has them, so that two
minutes are some 6,000 steps, and traffic that holds two thirds of the pool.

Invariant: a plan follows from the scenario's name and the seed alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kvmon.errors import ConfigError

if TYPE_CHECKING:
    from kvmon.allocators import AllocatorConfig
    from kvmon.serving.scenarios import Scenario, Setup

__all__ = ["CONTEST_SECONDS", "Plan", "make_plan", "scenario_setups", "why_no_demo"]

CONTEST_SECONDS = 120.0
"""Of the engines' time; the demo's own traffic goes on for as long as it is asked to."""

_CAPACITY_TOKENS = 16_384
_UNIT_TOKENS = 16
_CHUNK_TOKENS = 64
_PREFIX_TOKENS = 220
_LENGTHS = "uniform:20-700/one-of:50,500"
_LOAD = 0.65
_REQUESTS = 4096  # so many for every usual length: a longer run is a continuation of a shorter one
_PER_SECOND = 2.6  # arrivals, a little more than there are
_SLOWER = 3.0
_STEP_S = 0.0216  # of such a step with some dozen sequences


@dataclass(frozen=True)
class Plan:
    """One demo: engines by name in the order of their panels, and what stands about each of them.

    traffic     what both serve, in words
    """

    traffic: str
    setups: dict[str, Setup]
    about: dict[str, str]


def make_plan(name: str | None, seed: int, seconds: float = CONTEST_SECONDS) -> Plan:
    """The plan of scenario `name`; None: the demo's own, with traffic for `seconds`.

    Raises ConfigError where the name is none, or the reference engine cannot run it.
    """
    return _contest(seed, seconds) if name is None else _scenario(name, seed)


def why_no_demo(scenario: Scenario, setups: dict[str, Setup]) -> str | None:
    """Why the demo cannot show a scenario with these setups; None where it can."""
    from kvmon.engine.runnable import why_not

    for setup in setups.values():
        lacking = why_not(setup)
        if lacking is not None:
            return lacking
        if setup.lost_s:
            return "at this seed it is about a recording that lost events, and the demo's is whole"
    if len({setup.token_bytes for setup in setups.values()}) > 1:
        return "it compares models, and the reference engine has one"
    return None


def scenario_setups(scenario: Scenario, seed: int) -> dict[str, Setup]:
    """A scenario and its twin by the names of their engines: those of their layouts where they differ in it."""
    from kvmon.serving.scenarios import Draw

    draws_as = scenario.draws_as or scenario.name
    sick, cured = (
        replace(setup, workload=replace(setup.workload, name=f"{scenario.name} (seed {seed})"))
        for setup in (scenario.build(Draw(draws_as, seed), healthy) for healthy in (False, True))
    )
    layouts = [_layout(setup.allocator) for setup in (sick, cured)]
    names = layouts if len(set(layouts)) == 2 else [scenario.name, scenario.twin().name]
    return dict(zip(names, (sick, cured), strict=True))


def _contest(seed: int, seconds: float) -> Plan:
    from kvmon.allocators import ContiguousConfig, PagedConfig
    from kvmon.serving import SchedulerConfig, StepTime
    from kvmon.serving.scenarios import Setup
    from kvmon.serving.scenarios.traffic import at_load
    from kvmon.serving.workloads import SharedPrefixes

    work = at_load(
        seed,
        max(_REQUESTS, int(seconds * _PER_SECOND)),
        _LENGTHS,
        pool_tokens=_CAPACITY_TOKENS,
        load=_LOAD,
        prefixes=SharedPrefixes(1, _PREFIX_TOKENS),
        step_s=_STEP_S,
    )
    default = StepTime()
    slower = StepTime(
        default.base_ns * _SLOWER,
        default.prefill_token_ns * _SLOWER,
        default.decode_sequence_ns * _SLOWER,
        default.context_token_ns * _SLOWER,
    )
    # What grows in the middle of an answer and finds no room is lost; what has not begun waits.
    policy = SchedulerConfig(max_sequences=128, on_growth_failure="abort")
    units = _CAPACITY_TOKENS // _UNIT_TOKENS
    pools: list[AllocatorConfig] = [
        ContiguousConfig(units, _UNIT_TOKENS, chunk_tokens=_CHUNK_TOKENS),
        PagedConfig(units, _UNIT_TOKENS),
    ]
    setups = {_layout(pool): Setup(work, pool, policy, slower) for pool in pools}
    return Plan(
        f"requests with {_PREFIX_TOKENS} tokens of a common prompt and 20 to 700 of their own, answered by 50 or 500",
        setups,
        {name: _pool_in_words(setup.allocator) for name, setup in setups.items()},
    )


def _scenario(name: str, seed: int) -> Plan:
    from kvmon.serving.scenarios import find

    scenario = find(name)
    if scenario.cured:
        base = name.removesuffix("-healthy")
        raise ConfigError(f"the demo shows '{name}' beside '{base}': run 'kvmon demo {base}'")
    setups = scenario_setups(scenario, seed)
    lacking = why_no_demo(scenario, setups)
    if lacking is not None:
        raise ConfigError(
            f"there is no demo of '{name}': {lacking}; run 'kvmon simulate --scenario {name} --seed {seed}' instead"
        )
    about = {engine: _pool_in_words(setup.allocator) for engine, setup in setups.items()}
    if scenario.name in setups:
        about = dict(zip(setups, (scenario.sees, f"the same with the cure: {scenario.avoids}"), strict=True))
        if scenario.verdict == "healthy":
            about = dict(zip(setups, (scenario.sees, scenario.avoids), strict=True))
    return Plan(scenario.traffic, setups, about)


def _layout(pool: AllocatorConfig) -> str:
    from kvmon.allocators import PagedConfig

    return "paged" if isinstance(pool, PagedConfig) else "contiguous"


def _pool_in_words(pool: AllocatorConfig) -> str:
    from kvmon.allocators import PagedConfig

    if isinstance(pool, PagedConfig):
        shared = ", equal beginnings stored once" if pool.prefix_cache else ""
        return f"pages of {pool.unit_tokens} tokens, anywhere{shared}"
    sizes = {
        "max": "as long as the request may become",
        "pow2": "with the next power of two for the answer",
        "oracle": "exactly as long as it will be",
        "chunk": f"that grows by {pool.chunk_tokens} tokens",
    }
    kept = f"; {pool.retained_prefixes} shared beginnings stay behind" if pool.retained_prefixes else ""
    return f"every sequence is one block {sizes[pool.reserve]}{kept}"
