"""The options of `kvmon exporter` for its HTTP side, from what is typed to what is served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from kvmon.cli.exporter_web import Web, web, web_options
from kvmon.errors import ConfigError, InputError
from kvmon.exporter.server import ServerConfig
from kvmon.exporter.web.address import Address, UnixAddress


def options(*arguments: str) -> Web:
    """What these arguments say."""
    found: list[Web] = []

    @click.command()
    @web_options
    def command(**given: Any) -> None:
        found.append(web(given))

    command.main(list(arguments), standalone_mode=False)
    return found[0]


def test_the_defaults_are_those_that_the_server_has() -> None:
    """Written down twice, because the command line does not load the server for its help."""
    found = options()
    assert found.config == ServerConfig()
    assert (found.path, found.max_requests, found.live, found.systemd) == ("/metrics", 40, None, False)


def test_addresses_and_limits_are_taken() -> None:
    """Each address once, in the order given."""
    found = options(
        *("--web.listen-address", ":1", "--web.listen-address", "unix:/run/x", "--web.listen-address", ":1"),
        *("--web.listen-address", "[::1]:2", "--web.read-timeout", "1m30s", "--web.max-connections", "7"),
    )
    assert found.config.listen == (Address("", 1), UnixAddress("/run/x"), Address("::1", 2))
    assert (found.config.request_timeout, found.config.max_connections) == (90, 7)


def test_where_the_metrics_are_is_told() -> None:
    """As an address for a browser, or as what was typed."""
    found = options("--web.telemetry-path", "/kv")
    assert found.where(Address("::1", 80)) == "http://[::1]:80/kv"
    assert found.where(UnixAddress("/run/x")) == "unix:/run/x (/kv)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--web.listen-address", "nonsense"], "is no address to listen on"),
        (["--web.read-timeout", "soon"], "--web.read-timeout 'soon' is no duration above 0"),
        (["--web.read-timeout", "10"], "is no duration above 0: write 10s or 1m30s"),
        (["--web.read-timeout", "0s"], "is no duration above 0"),
        (["--web.max-connections", "0"], "--web.max-connections is 0: give 1 or more"),
        (["--web.systemd-socket", "--web.listen-address", ":1"], "exclude each other: give one of them"),
    ],
)
def test_what_cannot_be_is_said(arguments: list[str], message: str) -> None:
    """With the option and what to give."""
    with pytest.raises(ConfigError, match=message):
        options(*arguments)


def test_a_web_configuration_is_read_at_once(tmp_path: Path) -> None:
    """One that is not there is an input that cannot be used."""
    with pytest.raises(InputError, match="there is no file"):
        options("--web.config.file", str(tmp_path / "none.yml"))
