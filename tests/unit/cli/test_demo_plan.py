"""What the demo runs: which scenarios, under which names, how long and how fast."""

from __future__ import annotations

import pytest

from kvmon.allocators import ContiguousConfig, PagedConfig
from kvmon.cli import demo, main
from kvmon.cli.demo_pace import Pace, pace_of
from kvmon.cli.demo_plan import CONTEST_SECONDS, Plan, make_plan, scenario_setups, why_no_demo
from kvmon.errors import ConfigError
from kvmon.serving.scenarios import SCENARIOS, find
from kvmon.simulate import simulate


def test_the_contest_is_one_traffic_through_two_layouts_of_one_size() -> None:
    """Same requests, same policy, same memory; a longer run begins as a shorter one, another seed does not."""
    plan = make_plan(None, 0)
    contiguous, paged = plan.setups["contiguous"], plan.setups["paged"]
    assert contiguous.workload is paged.workload
    assert contiguous.scheduler == paged.scheduler and contiguous.step_time == paged.step_time
    assert isinstance(contiguous.allocator, ContiguousConfig) and isinstance(paged.allocator, PagedConfig)
    assert contiguous.allocator.capacity_units == paged.allocator.capacity_units
    assert contiguous.workload.arrival_ns[-1] > CONTEST_SECONDS * 1e9
    longer, other = (make_plan(None, seed, seconds).setups["paged"].workload for seed, seconds in ((0, 600), (1, 60)))
    assert (longer.arrival_ns == paged.workload.arrival_ns).all()
    assert (other.arrival_ns != paged.workload.arrival_ns).any()


@pytest.mark.parametrize("seed", range(5))
def test_the_contest_shows_what_it_is_about_at_every_seed(seed: int) -> None:
    """The contiguous pool loses several times as many requests as the pages do, and most for want of a run."""
    lost = {}
    for name, setup in make_plan(None, seed).setups.items():
        arrived = int((setup.workload.arrival_ns < CONTEST_SECONDS * 1e9).sum())
        result = simulate(setup.workload.first(arrived), setup.allocator, setup.scheduler, setup.step_time)
        lost[name] = result.errors
        if name == "contiguous":
            assert result.allocation_failures["no_contiguous_run"] > 0.9 * sum(result.allocation_failures.values())
    assert lost["contiguous"] > 30
    assert lost["contiguous"] > 4 * lost["paged"]


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_is_shown_beside_its_twin_or_refused(name: str) -> None:
    """Engines are named by their layouts where those differ, and whoever cannot be shown is sent to the simulator."""
    scenario = find(name)
    setups = scenario_setups(scenario, 0)
    if why_no_demo(scenario, setups) is not None:
        with pytest.raises(ConfigError, match=f"run 'kvmon simulate --scenario {name} --seed 0' instead"):
            make_plan(name, 0)
        return
    plan = make_plan(name, 0)
    layouts = {type(setup.allocator) for setup in plan.setups.values()}
    assert list(plan.setups) == (["contiguous", "paged"] if len(layouts) == 2 else [name, f"{name}-healthy"])
    assert list(plan.about) == list(plan.setups) and all(plan.about.values())


def test_a_scenario_that_is_about_a_damaged_recording_is_not_shown() -> None:
    """Odd seeds of telemetry-untrusted lose events; the demo's recording has all of them."""
    assert make_plan("telemetry-untrusted", 0).setups
    with pytest.raises(ConfigError, match="a recording that lost events"):
        make_plan("telemetry-untrusted", 1)


@pytest.mark.parametrize(
    ("scenario", "seconds", "speed", "shown"),
    [
        (None, None, None, 40.0),
        (None, 30.0, 10.0, 3.0),
        ("server-failures", None, None, 8.0),  # slower than it is
        ("short-burst", None, None, 40.0),
        ("short-burst", 20.0, None, 20.0),
        ("short-burst", 9999.0, 4.0, None),
    ],
)
def test_a_demo_takes_the_better_part_of_a_minute(
    scenario: str | None, seconds: float | None, speed: float | None, shown: float | None
) -> None:
    """Short ones slowed down, long ones sped up; what was asked for stands, and nothing lasts beyond its traffic."""
    plan: Plan = make_plan(scenario, 0)
    pace: Pace = pace_of(plan, scenario, seconds, speed)
    assert shown is None or pace.seconds / pace.speed == pytest.approx(shown)
    assert speed is None or pace.speed == speed
    assert seconds is None or pace.seconds <= seconds
    if seconds == 9999.0:
        assert 30 < pace.seconds < 60


def test_without_torch_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, before anything starts."""
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    assert main.run(["demo"]) == 2
    assert capsys.readouterr() == ("", "kvmon: the demo needs torch: pip install 'kvmon[engine]'\n")
