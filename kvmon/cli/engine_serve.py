"""`kvmon engine serve`: the reference engine behind OpenAI's HTTP interface.

Wiring only: options into an engine, a bridge, an application and a server. Nothing heavy is imported before the verb
runs.
"""

from __future__ import annotations

from typing import Any

import click

from kvmon.cli.engine_options import BUILDING, SECTIONS, build_options, engine_options
from kvmon.cli.sections import SectionedCommand
from kvmon.errors import ConfigError

__all__ = ["command"]

_STOP_SECONDS = 2  # for answers in progress when the server is told to end
_MOST_CONNECTIONS = 4096
_DEFAULT_MAX_WAITING = 64


@click.command(
    "serve",
    cls=SectionedCommand,
    sections={"The server": ("host", "port", "overload", "max_waiting"), **SECTIONS},
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; there is no authentication.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="The port; 0 is any that is free."
)
@click.option(
    "--overload",
    default="wait",
    show_default=True,
    help="When memory is short, requests wait without limit, or refuse answers 429 once --max-waiting wait.",
)
@click.option("--max-waiting", type=int, help=f"refuse: most answers that wait.  [default: {_DEFAULT_MAX_WAITING}]")
@engine_options
def command(host: str, port: int, overload: str, max_waiting: int | None, **engine: Any) -> None:
    """Serve a model at /v1/completions and /v1/chat/completions.

    Without --model, a small model with random weights: its text means nothing, its memory behaves as any other's. Ends
    with SIGTERM or SIGINT.
    """
    if not host.strip():
        raise ConfigError("--host is empty: give an address of this machine, 0.0.0.0 or :: for all of them")
    most = _most_waiting(overload, max_waiting)
    options = build_options(engine)

    import logging

    from kvmon.cli.engine_build import build_engine
    from kvmon.cli.patience import patience
    from kvmon.engine.server.app import create_app
    from kvmon.engine.server.assembly import engine_builder, load_service
    from kvmon.engine.server.bridge import Bridge
    from kvmon.exporter.server import HttpServer, ServerConfig
    from kvmon.exporter.web.address import Address

    service = load_service(options["model"])
    logging.basicConfig(level=logging.WARNING, format="kvmon: %(message)s")
    # What goes wrong in a request is logged by the application, in a line; uvicorn adds tracebacks and its own words.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    bridge = Bridge(engine_builder(build_engine, service, options, engine["threads"]), failed=lambda: server.stop())
    server = HttpServer(
        create_app(service, bridge, max_waiting=most),
        ServerConfig((Address(host, port),), stop_timeout=_STOP_SECONDS, max_connections=_MOST_CONNECTIONS),
    )
    with patience(BUILDING):
        bridge.start()
    try:
        for address in server.addresses:
            click.echo(f"kvmon: serving {service.model} at http://{address}/v1", err=True)
        server.run()
    finally:
        bridge.close()
    if bridge.failure is not None:
        raise bridge.failure


def _most_waiting(overload: str, given: int | None) -> int | None:
    """How many may wait before one more is refused; None is no limit."""
    if overload not in ("wait", "refuse"):
        raise ConfigError(f"--overload '{overload}' is unknown: choose wait or refuse")
    if overload == "wait":
        if given is not None:
            raise ConfigError("--max-waiting goes with --overload refuse: give that too, or leave it out")
        return None
    if given is not None and given < 1:
        raise ConfigError(f"--max-waiting {given} would refuse every request: give 1 or more")
    return _DEFAULT_MAX_WAITING if given is None else given
