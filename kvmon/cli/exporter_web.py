"""Options of `kvmon exporter` for its HTTP side: where it listens, whom it lets in, and its limits."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvmon.errors import ConfigError

if TYPE_CHECKING:
    from kvmon.exporter.server import HttpServer, ServerConfig
    from kvmon.exporter.web.live import LiveWebConfig

__all__ = ["Web", "web", "web_options"]

# As kvmon.exporter.server has them, whose import can wait.
_DEFAULT_LISTEN = "127.0.0.1:10490"
_DEFAULT_CONNECTIONS = 512
_DEFAULT_READ_TIMEOUT = "10s"


@dataclass(frozen=True, slots=True)
class Web:
    """How to serve. `systemd`: on the sockets that it passes; `live`: the web configuration, where there is one."""

    config: ServerConfig
    systemd: bool
    live: LiveWebConfig | None
    path: str
    max_requests: int

    def server(self, app: Any) -> HttpServer:
        """A server of an ASGI application, that listens.

        Raises SystemRefused where it cannot, ConfigError where systemd passed nothing.
        """
        from kvmon.exporter.app import HEALTHY_PATH, READY_PATH
        from kvmon.exporter.server import HttpServer
        from kvmon.exporter.web.address import systemd_listeners
        from kvmon.exporter.web.gate import Gate

        guarded = Gate(app, self.live.now if self.live is not None else None, (HEALTHY_PATH, READY_PATH))
        listeners = systemd_listeners(os.environ) if self.systemd else None
        tls = self.live.tls if self.live is not None and self.live.has_tls else None
        return HttpServer(guarded, self.config, listeners=listeners, tls=tls)

    def where(self, address: object) -> str:
        """The metrics at one of the server's addresses, as a person is told."""
        if str(address).startswith("unix:"):
            return f"{address} ({self.path})"
        scheme = "https" if self.live is not None and self.live.has_tls else "http"
        return f"{scheme}://{address}{self.path}"


def web_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options."""
    options = (
        click.option(
            "--web.listen-address",
            "listen",
            multiple=True,
            metavar="ADDRESS",
            help="Where to listen: HOST:PORT, [IPV6]:PORT, :PORT for every interface, or unix:/PATH; may be given "
            f"several times.  [default: {_DEFAULT_LISTEN}]",
        ),
        click.option(
            "--web.systemd-socket", "systemd", is_flag=True, help="Listen on the sockets that systemd passes instead."
        ),
        click.option(
            "--web.config.file",
            "web_config",
            metavar="FILE",
            help="TLS, passwords, headers: Prometheus' web configuration, read again when it changes.",
        ),
        click.option(
            "--web.telemetry-path", "path", default="/metrics", show_default=True, help="Path of the metrics."
        ),
        click.option(
            "--web.max-requests", "max_requests", default=40, show_default=True, help="Scrapes at once; 0: no limit."
        ),
        click.option(
            "--web.max-connections",
            "max_connections",
            default=_DEFAULT_CONNECTIONS,
            show_default=True,
            help="Connections at once; for one more, one that waits is closed.",
        ),
        click.option(
            "--web.read-timeout",
            "read_timeout",
            metavar="DURATION",
            default=_DEFAULT_READ_TIMEOUT,
            show_default=True,
            help="How long a client may take to agree on TLS, and to send a request.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def web(options: Mapping[str, Any]) -> Web:
    """What the options say, with the web configuration read.

    Raises ConfigError for options that cannot be, InputError and SystemRefused for a web configuration.
    """
    from kvmon.exporter.server import ServerConfig
    from kvmon.exporter.web.address import parse_address
    from kvmon.exporter.web.config_file import parse_seconds
    from kvmon.exporter.web.live import LiveWebConfig

    if options["systemd"] and options["listen"]:
        raise ConfigError("--web.systemd-socket and --web.listen-address exclude each other: give one of them")
    if options["max_connections"] < 1:
        raise ConfigError(f"--web.max-connections is {options['max_connections']}: give 1 or more")
    seconds = parse_seconds(options["read_timeout"])
    if not seconds:
        raise ConfigError(f"--web.read-timeout '{options['read_timeout']}' is no duration above 0: write 10s or 1m30s")
    config = ServerConfig(
        listen=tuple(dict.fromkeys(parse_address(text) for text in options["listen"] or (_DEFAULT_LISTEN,))),
        request_timeout=seconds,
        max_connections=options["max_connections"],
    )
    file = options["web_config"]
    live = LiveWebConfig(Path(file)) if file is not None else None
    return Web(config, options["systemd"], live, options["path"], options["max_requests"])
