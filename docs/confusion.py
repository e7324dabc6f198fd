"""What the diagnosis makes of every scenario, for `docs/verdicts/README.md`: thresholds were frozen on seeds 0 to 9.

`rows` runs a scenario and its twin through the simulator, with a stretch of the recording lost where it is asked for;
`pairs` runs two faults at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from kvmon.diagnosis import Diagnosis
from kvmon.replay.simulated import record_setup
from kvmon.serving.faults import EngineError, Faults
from kvmon.serving.scenarios import SCENARIOS, find
from kvmon.serving.scenarios.scenario import Scenario, Setup
from kvmon.state import StreamState

__all__ = ["PAIRS", "allowed", "diagnosed", "pairs", "rows"]

LOST_S = 5.0
#: Policies of figure 2 that reserve; the others stand beside them in the same scenario.
RESERVING = ("max",)


def diagnosed(setup: Setup) -> Diagnosis:
    """A setup, simulated and diagnosed as it would be recorded."""
    state, diagnosis = StreamState(), Diagnosis()
    diagnosis.follow(state)
    record_setup(lambda words: state.apply(words, verify_checksums=False), setup)
    return diagnosis


def allowed(scenario: Scenario) -> tuple[str, ...]:
    """What the first finding may be."""
    return scenario.healthy if scenario.cured else (scenario.verdict,)


def with_a_loss(setup: Setup) -> Setup:
    """The same with five seconds of its recording lost in the middle; nothing is lost of a run that is shorter."""
    middle = float(setup.workload.arrival_ns[-1]) / 2e9
    return setup if middle < LOST_S else replace(setup, lost_s=(middle, middle + LOST_S))


def rows(seeds: range, *, loss: bool = False) -> Iterator[tuple[Scenario, Counter[str]]]:
    """Each scenario and twin with how often each verdict came first."""
    for base in SCENARIOS.values():
        for scenario in (base, base.twin()):
            found: Counter[str] = Counter()
            for seed in seeds:
                for label, setup in scenario.setups(seed)[0].items():
                    if not label or label in RESERVING:
                        found[diagnosed(with_a_loss(setup) if loss else setup).verdict()] += 1
            yield scenario, found


#: Two causes at once: a scenario, and what happens in it besides.
PAIRS = (
    ("capacity", "leak"),
    ("partition", "leak"),
    ("pinned", "leak"),
    ("reclaim-failed", "double_free"),
    ("cache-thrash", "leak"),
    ("cache-thrash", "not_kv"),
    ("preemption-storm", "not_kv"),
    ("capacity", "telemetry_untrusted"),
)


def pairs(seeds: range) -> Iterator[tuple[str, str, str, Counter[str]]]:
    """The verdict of each pair's scenario, the one beside it, which came first, and how often both were found."""
    for name, second in PAIRS:
        first, found = find(name).verdict, Counter[str]()
        for seed in seeds:
            setup = find(name).setups(seed)[0][""]
            end = int(setup.workload.arrival_ns[-1])
            error = EngineError(end // 2, 384 << 20, 330 << 20, 402 << 20)
            faults = {
                "leak": Faults(seed=seed, leak_share=0.2, claims_every_ns=10**9),
                "double_free": Faults(seed=seed, double_free_share=0.1, claims_every_ns=10**9),
                "not_kv": Faults(errors=(error,)),
                "telemetry_untrusted": Faults(wrong_gauge=True, claims_every_ns=10**9),
            }[second]
            verdicts = [finding.verdict for finding in diagnosed(replace(setup, faults=faults)).findings()]
            found["both" if {first, second} <= set(verdicts) else "+".join(sorted(set(verdicts))) or "none"] += 1
        yield name, first, second, found
