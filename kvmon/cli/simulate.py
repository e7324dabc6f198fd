"""`kvmon simulate`: a request trace or a scenario under an allocator, as fast as the machine computes it.

Wiring only: options into configurations, a result onto the terminal. Nothing heavy is imported before the verb runs.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvmon.cli.output_file import not_the_input, output_option
from kvmon.cli.sections import SectionedCommand
from kvmon.cli.simulate_options import (
    ENGINE_OPTIONS,
    SECTIONS,
    capacity,
    engine_options,
)
from kvmon.errors import ConfigError

if TYPE_CHECKING:
    from kvmon.serving.scenarios import Setup

__all__ = ["command"]

_COMPILING = "simulating; the first run on a machine compiles for the better part of a minute"


@click.command(
    "simulate",
    cls=SectionedCommand,
    sections={
        "Traffic": ("scenario", "seed", "listing", "trace_format", "limit"),
        "Output": ("out", "force", "as_json", "shapes", "help"),
        **SECTIONS,
    },
)
@click.argument("trace", required=False, type=click.Path(path_type=Path, readable=False))
@click.option("--format", "trace_format", help="mooncake, azure or csv; without it, the first line decides.")
@click.option("--limit", type=int, help="Only the first N requests of the trace.")
@click.option("--scenario", metavar="NAME", help="Run a scenario instead of a trace.")
@click.option("--seed", type=int, default=0, show_default=True, help="Other traffic, other parameters.")
@click.option("--list", "listing", is_flag=True, help="List the scenarios.")
@click.option("--shapes", is_flag=True, help="List the known models with the bytes of a token.")
@engine_options
@output_option("--out", help="Write every event of the run into this capture.")
@click.option("--force", is_flag=True, help="Replace the capture if it is there.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def command(
    context: click.Context,
    /,
    trace: Path | None,
    trace_format: str | None,
    limit: int | None,
    scenario: str | None,
    seed: int,
    listing: bool,
    shapes: bool,
    out: Path | None,
    force: bool,
    as_json: bool,
    **engine: Any,
) -> None:
    """Run the requests of TRACE through a scheduler and an allocator and say what the memory did.

    TRACE is Mooncake's JSON lines, Azure's CSV, or a plain CSV as `kvmon workload` writes it. With --scenario NAME
    traffic, engine and faults come from the catalogue (--list); NAME-healthy is the same with the cure.

    Time is simulated: by default 6 ms a step, 30 us a prompt token, 20 us a decoding sequence and 40 ns a token of
    context, an 8-billion-parameter model on one H100; `kvmon fit` takes other constants from a recording.
    """
    if sum((trace is not None, scenario is not None, listing, shapes)) != 1:
        raise ConfigError("give one thing to do: a TRACE, --scenario NAME, --list, or --shapes")
    if force and out is None:
        raise ConfigError("--force replaces a capture: it goes with --out")
    if listing or shapes:
        _refuse(context, (*ENGINE_OPTIONS, "limit", "trace_format", "seed", "out"), "a list runs nothing")
    if listing:
        _list(as_json)
    elif shapes:
        _shapes(as_json)
    elif scenario is not None:
        _refuse(
            context, (*ENGINE_OPTIONS, "limit", "trace_format"), "a scenario brings its own traffic, engine and clock"
        )
        _scenario(scenario, seed, out, force=force, as_json=as_json)
    elif trace is not None:
        not_the_input(out, trace)
        _refuse(context, ("seed",), "a trace is what it is; a seed goes with --scenario")
        _trace(trace, trace_format, limit, engine, out, force=force, as_json=as_json)


def _refuse(context: click.Context, names: tuple[str, ...], why: str) -> None:
    """Raise ConfigError when one of these options was given."""
    for name in names:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            flag = {"trace_format": "format"}.get(name, name).replace("_", "-")
            raise ConfigError(f"--{flag} does not go here: {why}")


def _list(as_json: bool) -> None:
    from kvmon.cli.simulate_output import print_catalogue
    from kvmon.serving.scenarios import SCENARIOS

    if as_json:
        rows = [
            {
                "name": scenario.name,
                "verdict": scenario.verdict,
                "traffic": scenario.traffic,
                "sees": scenario.sees,
                "avoids": scenario.avoids,
                "healthy": {"name": scenario.twin().name, "verdicts": list(scenario.healthy)},
            }
            for scenario in SCENARIOS.values()
        ]
        click.echo(json.dumps({"scenarios": rows}, indent=2))
    else:
        print_catalogue(SCENARIOS)


def _shapes(as_json: bool) -> None:
    from kvmon.cli.simulate_output import print_shapes
    from kvmon.serving.model_shape import KNOWN_MODELS

    if as_json:
        click.echo(json.dumps({"models": [asdict(shape) for shape in KNOWN_MODELS.values()]}, indent=2))
    else:
        print_shapes(KNOWN_MODELS)


def _scenario(name: str, seed: int, out: Path | None, *, force: bool, as_json: bool) -> None:
    from rich.console import Console

    from kvmon.cli.record import run_setup, simulate_into_capture
    from kvmon.cli.simulate_output import comparison, print_comparison, print_result, print_scenario
    from kvmon.serving.scenarios import PAPER, find

    if seed < 0:
        raise ConfigError(f"a seed of {seed} is none: choose 0 or more")
    scenario = find(name)
    with Console(stderr=True).status(_COMPILING):
        setups, drawn = scenario.setups(seed)
        if out is None:
            results = {label: run_setup(setup) for label, setup in setups.items()}
        else:
            details = {"scenario": scenario.name, "seed": seed, "parameters": drawn}
            results = simulate_into_capture(setups, out, details=details, force=force)
    about = {"scenario": scenario.name, "seed": seed, "verdict": scenario.verdict, "parameters": drawn}
    if scenario.cured:
        about["verdicts"] = list(scenario.healthy)
    if as_json:
        if scenario.compare is not None:
            click.echo(json.dumps({**about, "rows": comparison(results), "paper": PAPER}, indent=2))
        else:
            click.echo(json.dumps({**about, **_described(setups[""]), **results[""].to_json()}, indent=2))
        return
    print_scenario(scenario, seed, drawn)
    if scenario.compare is not None:
        print_comparison(results, PAPER)
    else:
        print_result(results[""], _title(setups[""]), setups[""].token_bytes)
    _say_where(out, len(setups))


def _trace(
    trace: Path,
    trace_format: str | None,
    limit: int | None,
    engine: dict[str, Any],
    out: Path | None,
    *,
    force: bool,
    as_json: bool,
) -> None:
    from rich.console import Console

    from kvmon.cli.record import run_setup, simulate_into_capture
    from kvmon.cli.simulate_output import print_result
    from kvmon.serving.options import allocator_config, scheduler_config
    from kvmon.serving.scenarios import Setup
    from kvmon.serving.step_time import StepTime, read_step_time
    from kvmon.serving.traces import read_trace

    tokens, token_bytes = capacity(engine)
    pool = allocator_config(engine, tokens)
    scheduler = scheduler_config(engine)
    step_time = StepTime() if engine["step_time"] is None else read_step_time(engine["step_time"])
    with Console(stderr=True).status(_COMPILING):
        workload = read_trace(trace, trace_format)
        if limit is not None:
            workload = workload.first(limit)
        setup = Setup(workload, pool, scheduler, step_time, token_bytes=token_bytes)
        result = run_setup(setup) if out is None else simulate_into_capture({"": setup}, out, force=force)[""]
    if as_json:
        click.echo(json.dumps({"trace": trace.name, **_described(setup), **result.to_json()}, indent=2))
        return
    print_result(result, f"{trace.name}, {_title(setup)}", token_bytes)
    _say_where(out, 1)


def _title(setup: Setup) -> str:
    from kvmon.allocators import PagedConfig

    pool = setup.allocator
    if isinstance(pool, PagedConfig):
        kind = "paged"
    else:
        kind = f"{pool.placement}, reserve {pool.reserve}" + (f":{pool.chunk_tokens}" if pool.chunk_tokens else "")
    size = "1 token" if pool.unit_tokens == 1 else f"{pool.unit_tokens:,} tokens"
    return f"{kind}, {pool.capacity_units:,} units of {size}"


def _described(setup: Setup) -> dict[str, Any]:
    """The engine that ran, for a result that explains itself."""
    return {
        "allocator": {"kind": type(setup.allocator).__name__.removesuffix("Config").lower(), **asdict(setup.allocator)},
        "scheduler": asdict(setup.scheduler),
        "step_time_ns": asdict(setup.step_time),
        "token_bytes": setup.token_bytes or None,
    }


def _say_where(out: Path | None, streams: int) -> None:
    if out is not None:
        click.echo(f"recorded in {out}" + (f", {streams} streams" if streams > 1 else ""))
