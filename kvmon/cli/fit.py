"""`kvmon fit`: constants of the step-time model from the steps that an engine took, for `kvmon simulate`.

Wiring only: steps are read by `kvmon.capture.steps`, fitted by `kvmon.simulate.fitting`, kept by
`kvmon.serving.step_time`. The source is read and never changed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvmon.cli.capture import progress_of_words
from kvmon.cli.output_file import not_the_input, output_option
from kvmon.errors import ConfigError, InputError
from kvmon.units import format_count, format_ratio

if TYPE_CHECKING:
    from kvmon.capture.steps import Steps
    from kvmon.simulate.fitting import Fit

__all__ = ["as_text", "command"]

_ROUGH = 0.1  # a standard error of this share of its constant is worth a word


@click.command("fit")
@click.argument("source", type=click.Path(path_type=Path, readable=False))
@output_option("-o", "--output", help="The file to write.")
@click.option("--engine", help="Which engine, where SOURCE holds several; its ranks are fitted together.")
@click.option("--model", default="", help="Name of the model that ran, kept in the file.")
@click.option("--device", default="", help="Name of the device that it ran on, kept in the file.")
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@click.option("--json", "json_", is_flag=True, help="Print the fit as one JSON object.")
def command(
    source: Path, output: Path | None, engine: str | None, model: str, device: str, force: bool, json_: bool
) -> None:
    """Fit the step-time model to the steps in SOURCE, a capture file or a recording directory.

    A step takes base + prefill tokens * a + decoding sequences * b + tokens of context read * c. The constants are
    those of least squared relative error, none negative; pauses such as compilation are set aside and counted. Give the
    file to the simulator as its clock.
    """
    from kvmon.capture.steps import read_steps
    from kvmon.cli.streams import damage_told
    from kvmon.serving.step_time import Origin, write_step_time
    from kvmon.simulate.fitting import fit_step_time

    if force and output is None:
        raise ConfigError("--force replaces a file: it goes with --output")
    not_the_input(output, source)
    damage: list[str] = []
    with damage_told(source, lambda: damage), progress_of_words([source], "reading steps") as advance:
        steps = _chosen(read_steps(source, advance, damage.append), source, engine)
        fit = fit_step_time(steps.duration_ns, steps.prefill_tokens, steps.decode_sequences, steps.context_tokens)
    if output is not None:
        origin = Origin(model, device, f"{source.name} ({steps.engine})", fit.quality())
        write_step_time(output, fit.step_time, origin, force=force)
    if json_:
        constants = {
            name: round(value, 6)
            for name, value in zip(fit.quality()["standard_errors_ns"], fit.constants, strict=True)
        }
        click.echo(json.dumps({"engine": steps.engine, "constants_ns": constants, **fit.quality()}, indent=2))
        return
    click.echo(as_text(fit, steps.engine))
    if output is not None:
        click.echo(f"written to {output}")


def as_text(fit: Fit, engine: str) -> str:
    """What was found, for people: the constants, how well they explain the steps, and what the steps do not say."""
    from kvmon.simulate.fitting import CONSTANTS

    lines = [f"{engine}: {format_count(fit.steps_used)} steps fitted"]
    for name, value, error in zip(CONSTANTS, fit.constants, fit.standard_errors, strict=True):
        lines.append(f"  {name:<18}{_nanoseconds(value):>12}  {_remark(name, value, error, fit)}".rstrip())
    explained = "-" if fit.r_squared is None else f"{fit.r_squared:.4f}"
    lines.append(f"  R^2 {explained}   relative error p50 {format_ratio(fit.median_relative_error)}")
    lines[-1] += f"   p95 {format_ratio(fit.p95_relative_error)}"
    lines.append(f"  set aside: {format_count(fit.outliers)} far from the rest, {format_count(fit.idle)} idle")
    return "\n".join(lines)


def _chosen(found: list[Steps], source: Path, engine: str | None) -> Steps:
    """The steps of the engine that is meant. Raises InputError where there is none, or more than one to choose from."""
    names = [steps.engine for steps in found]
    if engine is not None and engine not in names:
        raise InputError(f"no engine '{engine}' in {source}: it has {', '.join(names) or 'none'}")
    wanted = [steps for steps in found if engine in (None, steps.engine)]
    if len(wanted) > 1:
        raise InputError(f"{source} holds the engines {', '.join(names)}: choose one with --engine")
    if not wanted or not len(wanted[0]):
        raise InputError(f"{source} holds no step: record an engine while it serves requests")
    return wanted[0]


def _remark(name: str, value: float, error: float, fit: Fit) -> str:
    if name in fit.not_determined:
        return f"not determined: {fit.not_determined[name]}"
    if value == 0:
        return "the steps show no cost of it"
    said = f"+- {format_ratio(error / value)}"
    return f"{said}, roughly determined: record more varied steps" if error > _ROUGH * value else said


def _nanoseconds(value: float) -> str:
    for size, unit in ((1e6, "ms"), (1e3, "us")):
        if value >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value:.4g} ns"
