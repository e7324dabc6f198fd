"""`kvmon exporter`: the sidecar that serves the metrics of recordings to Prometheus."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

__all__ = ["command"]

_DEFAULT_LISTEN = "127.0.0.1:10490"


@click.command("exporter")
@click.option(
    "--dir",
    "directories",
    multiple=True,
    metavar="DIR",
    help="Recording directory that the engines write to; may be given several times.  [env: KVMON_DIR]",
)
@click.option(
    "--web.listen-address",
    "listen",
    multiple=True,
    metavar="HOST:PORT",
    help=f"Where to listen, may be given several times; :PORT is every interface.  [default: {_DEFAULT_LISTEN}]",
)
@click.option("--web.telemetry-path", "path", default="/metrics", show_default=True, help="Path of the metrics.")
@click.option(
    "--web.max-requests",
    "max_requests",
    default=40,
    show_default=True,
    help="Scrapes at once; 0: no limit.",
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
def command(
    directories: tuple[str, ...],
    listen: tuple[str, ...],
    path: str,
    max_requests: int,
    stall_seconds: float,
    state_dir: str | None,
) -> None:
    """Follow recordings and serve their metrics to Prometheus.

    An empty directory is fine: engines may come later. Ready (/-/ready) when everything that was recorded before has
    been read; healthy (/-/healthy) while the recordings are looked at. Ends with SIGTERM or SIGINT.
    """
    import logging

    from kvmon import __version__
    from kvmon.errors import ConfigError, SystemRefused
    from kvmon.exporter.app import create_app
    from kvmon.exporter.server import HttpServer, ServerConfig, parse_address
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
    addresses = tuple(parse_address(text) for text in listen or (_DEFAULT_LISTEN,))

    from kvmon.exporter.sidecar import Sidecar

    logging.basicConfig(level=logging.WARNING, format="kvmon: %(message)s")
    sidecar = Sidecar(
        paths,
        stall_seconds=stall_seconds,
        state_dir=Path(state_dir) if state_dir else None,
        compile_apart=True,
    )
    app = create_app(
        sidecar.render,
        sidecar.health,
        sidecar.ready,
        __version__,
        telemetry_path=path,
        max_requests=max_requests,
    )
    server = HttpServer(app, ServerConfig(listen=addresses))
    for address in server.addresses:
        click.echo(f"kvmon: metrics at http://{address}{path}", err=True)
    sys.setswitchinterval(0.001)  # a scrape that meets the following thread waits 1 ms for its turn, not 5
    sidecar.start()
    try:
        server.run()
    finally:
        sidecar.stop()
