"""`kvmon demo --list`: what it can show, and how long that takes."""

from __future__ import annotations

__all__ = ["print_demos"]

_START_SECONDS = 6.0  # until engines of a machine that has compiled before are there


def print_demos(seed: int) -> None:
    """The scenarios that the reference engine can run at `seed`, in a line or two each, and those that it cannot."""
    from rich.table import Table

    from kvmon.cli.console import QuietPipe
    from kvmon.cli.demo_pace import shown_seconds, work_seconds
    from kvmon.cli.demo_plan import scenario_setups, why_no_demo
    from kvmon.cli.patience import patience
    from kvmon.cli.record import run_setup
    from kvmon.serving.scenarios import SCENARIOS

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("scenario", no_wrap=True)
    table.add_column("shows", no_wrap=True)
    table.add_column("traffic")
    table.add_column("takes", justify="right", no_wrap=True)
    left_out = []
    with patience():
        for scenario in SCENARIOS.values():
            setups = scenario_setups(scenario, seed)
            lacking = why_no_demo(scenario, setups)
            if lacking is not None:
                left_out.append(f"{scenario.name} ({lacking})")
                continue
            results = {name: run_setup(setup) for name, setup in setups.items()}
            length = max(result.duration_s for result in results.values())
            work = max(work_seconds(setup, results[name]) for name, setup in setups.items())
            takes = _START_SECONDS + max(shown_seconds(length), work)
            table.add_row(scenario.name, scenario.verdict, scenario.traffic, _about(takes))
    console = QuietPipe(highlight=False)
    console.print(table)
    console.print(
        "\nEach runs beside its healthy twin: kvmon demo NAME. Times are those of two small cores; --seconds N serves "
        "the first N seconds only."
    )
    console.print("\nWhat 'kvmon simulate --scenario NAME' alone can show:")
    for line in left_out:
        console.print(f"  {line}")


def _about(seconds: float) -> str:
    """`20 s`, `2 min`: to ten seconds, and to whole minutes from two on."""
    return f"{max(round(seconds, -1), 10):.0f} s" if seconds < 115 else f"{round(seconds / 60)} min"
