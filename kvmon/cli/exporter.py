"""`kvmon exporter`: the sidecar that serves the metrics of recordings to Prometheus."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvmon.cli.exporter_collectors import ExporterCommand, collecting, collecting_options
from kvmon.cli.exporter_output import output, output_options, pusher_of, write_once
from kvmon.cli.exporter_web import web, web_options

if TYPE_CHECKING:
    from kvmon.exporter.sidecar import Sidecar

__all__ = ["command"]


@click.command("exporter", cls=ExporterCommand)
@click.option(
    "--dir",
    "directories",
    multiple=True,
    metavar="DIR",
    help="Recording directory that the engines write to; may be given several times.  [env: KVMON_DIR]",
)
@click.option(
    "--stall-seconds",
    default=10.0,
    show_default=True,
    help="After how long without an event an engine with work counts as stalled.",
)
@click.option(
    "--state-dir",
    metavar="DIR",
    help="Where cumulative numbers are kept over restarts.  [default: beside each recording]",
)
@web_options
@collecting_options
@output_options
@click.pass_context
def command(
    context: click.Context,
    /,
    directories: tuple[str, ...],
    stall_seconds: float,
    state_dir: str | None,
    **options: Any,
) -> None:
    """Follow recordings and serve their metrics to Prometheus.

    An empty directory is fine: engines may come later. Ready (/-/ready) when everything that was recorded before has
    been read; healthy (/-/healthy) while the recordings are looked at. Ends with SIGTERM or SIGINT.
    """
    import logging

    from kvmon import __version__
    from kvmon.errors import ConfigError, SystemRefused
    from kvmon.recording import find_streams

    directories = directories or tuple(filter(None, [os.environ.get("KVMON_DIR")]))
    if not directories:
        raise ConfigError("no recording directory: give --dir or set KVMON_DIR to the one that the engine has")
    if not stall_seconds > 0:
        raise ConfigError(f"--stall-seconds is {stall_seconds:g}: give more than 0")
    paths = list(dict.fromkeys(Path(directory) for directory in directories))
    for directory in paths:
        find_streams(directory)
    if state_dir is not None and not os.access(state_dir, os.W_OK | os.X_OK):
        raise SystemRefused(f"cannot write to the state directory {state_dir}: make it or give another")
    out, what = output(context, options), collecting(options)

    def make_sidecar() -> Sidecar:
        from kvmon.exporter.sidecar import Sidecar

        return Sidecar(
            paths,
            collectors=what.collectors,
            series_budget=what.series_budget,
            max_series=what.max_series,
            stall_seconds=stall_seconds,
            state_dir=Path(state_dir) if state_dir else None,
            compile_apart=True,
        )

    if out.textfile is not None:
        write_once(make_sidecar(), out.textfile)
        return

    serving = web(options)
    sidecar = make_sidecar()
    pusher = pusher_of(sidecar, out)

    from kvmon.exporter.app import create_app

    app = create_app(
        sidecar.render,
        sidecar.health,
        sidecar.ready,
        __version__,
        telemetry_path=serving.path,
        max_requests=serving.max_requests,
    )
    log = logging.getLogger(__name__)
    server = serving.server(app)
    for address in server.addresses:
        log.info(f"metrics at {serving.where(address)}", extra={"version": __version__})
    for directory in paths:
        log.info("recordings are followed", extra={"directory": str(directory)})
    # A scrape changes threads a few times; where it meets the following thread it waits so long each time, not 5 ms.
    sys.setswitchinterval(0.0001)
    sidecar.start()
    try:
        with pusher:
            server.run()
    finally:
        server.close()
        sidecar.stop()
