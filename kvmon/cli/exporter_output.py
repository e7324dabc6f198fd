"""Options of `kvmon exporter` for what leaves it otherwise than by a scrape: a page in a file, a push, the log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvmon.errors import ConfigError

if TYPE_CHECKING:
    from kvmon.exporter.sidecar import Sidecar

__all__ = ["Output", "output", "output_options", "pusher_of", "write_once"]

# As kvmon.exporter.logs has them, whose import can wait.
_LEVELS, _FORMATS = ("debug", "info", "warning", "error"), ("logfmt", "json")
_STDOUT = "-"


@dataclass(frozen=True, slots=True)
class Output:
    """Where it goes. `textfile`: a page that is made once, instead of serving; `push_seconds` apart to `push_to`."""

    textfile: str | None
    push_to: str | None
    push_seconds: float


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options."""
    options = (
        click.option(
            "--textfile",
            metavar="FILE.prom",
            help="Write the page once, for node_exporter's textfile collector, and end; '-' is standard output.",
        ),
        click.option(
            "--otlp.endpoint",
            "otlp_endpoint",
            metavar="URL",
            help="Push the metrics too, over OTLP/HTTP; without a path to /v1/metrics. Headers: OTEL_EXPORTER_OTLP_*.",
        ),
        click.option(
            "--otlp.interval", "otlp_interval", default=15.0, show_default=True, help="Seconds between two pushes."
        ),
        click.option(
            "--log.level",
            "log_level",
            type=click.Choice(_LEVELS),
            help="What is logged to standard error.  [default: info; warning with --textfile]",
        ),
        click.option(
            "--log.format", "log_format", type=click.Choice(_FORMATS), default="logfmt", show_default=True, help="How."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def output(context: click.Context, options: Mapping[str, Any]) -> Output:
    """What the options say, with the log set up as they say.

    Raises ConfigError for what cannot be, and for options that a page made once does not heed.
    """
    from kvmon.exporter.logs import configure
    from kvmon.exporter.textfile import check_name

    textfile, endpoint, seconds = options["textfile"], options["otlp_endpoint"], options["otlp_interval"]
    if textfile is not None:
        _check_alone(context)
        if textfile != _STDOUT:
            check_name(Path(textfile))
    if not seconds > 0:
        raise ConfigError(f"--otlp.interval is {seconds:g}: give more than 0 seconds")
    configure(options["log_level"] or ("info" if textfile is None else "warning"), options["log_format"])
    return Output(textfile, endpoint, seconds)


def write_once(sidecar: Sidecar, textfile: str) -> None:
    """Read everything that is recorded by now, and write the page of it."""
    from kvmon.exporter.textfile import write_page

    try:
        sidecar.read_once()
        page = sidecar.render(False)
    finally:
        sidecar.stop()
    if textfile == _STDOUT:
        click.echo(page, nl=False)
    else:
        write_page(Path(textfile), page)


def pusher_of(sidecar: Sidecar, output: Output) -> AbstractContextManager[object]:
    """What pushes within its block; nothing where that is not wanted. Raises ConfigError where it cannot be done."""
    if output.push_to is None:
        return nullcontext()
    try:
        from kvmon.exporter.otlp import Pusher
    except ImportError:
        raise ConfigError("OTLP needs the OpenTelemetry SDK: pip install 'kvmon[otlp]'") from None
    return Pusher(sidecar.snapshot, output.push_to, output.push_seconds)


def _check_alone(context: click.Context) -> None:
    """Raise ConfigError for an option of serving or pushing beside --textfile."""
    for parameter in context.command.get_params(context):
        given = context.get_parameter_source(parameter.name or "") is click.core.ParameterSource.COMMANDLINE
        if given and parameter.opts[0].startswith(("--web.", "--otlp.")):
            raise ConfigError(f"{parameter.opts[0]} does not go with --textfile: a page is written and nothing served")
