"""Where the exporter listens: unix sockets and what systemd passes (TCP addresses are in test_server)."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from kvmon.errors import ConfigError, SystemRefused
from kvmon.exporter.web.address import Address, UnixAddress, listen_on, parse_address, systemd_listeners

# Takes what systemd would pass, as descriptors from 3 on, and prints where it listens.
ACTIVATED = """
import os, sys
from kvmon.errors import ConfigError
from kvmon.exporter.web.address import systemd_listeners
os.environ["LISTEN_PID"] = str(os.getpid())
try:
    found = systemd_listeners(os.environ)
except ConfigError as error:
    sys.exit(str(error))
print(*[listener.address for listener in found], *[os.get_inheritable(fd) for fd in (3, 4)], "LISTEN_FDS" in os.environ)
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder whose path is short enough for a socket."""
    with TemporaryDirectory(prefix="kvmon-") as folder:
        yield Path(folder)


@pytest.mark.parametrize("text", ["unix:/run/kvmon.sock", "unix:./kvmon.sock", "unix:/with:colon/x"])
def test_a_unix_socket_reads_as_it_is_written(text: str) -> None:
    """A path with a slash is a socket, and is printed the same way."""
    assert parse_address(text) == UnixAddress(text.removeprefix("unix:"))
    assert str(parse_address(text)) == text


def test_a_host_called_unix_is_a_host() -> None:
    """Without a slash it is a host and a port, as it would be for any other name."""
    assert parse_address("unix:80") == Address("unix", 80)


@pytest.mark.parametrize("text", ["unix:", "unix:/run/", "unix:name"])
def test_what_is_no_socket_is_refused(text: str) -> None:
    """No path, a folder, a name without one."""
    with pytest.raises(ConfigError, match="write"):
        parse_address(text)


def test_a_unix_socket_is_its_owners_and_its_groups_and_goes_at_the_end(place: Path) -> None:
    """Whatever the umask says, others cannot connect; the file is removed when it is closed."""
    path = place / "x.sock"
    for umask in (0, 0o177):
        before = os.umask(umask)
        try:
            (listener,) = listen_on([UnixAddress(str(path))])
        finally:
            os.umask(before)
        assert listener.address == UnixAddress(str(path))
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        listener.close()
        assert not path.exists()


def test_the_socket_of_a_dead_process_is_replaced_and_of_a_living_one_refused(place: Path) -> None:
    """What nobody listens on is in nobody's way; what somebody does is, and stays as it is."""
    path = place / "x.sock"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    (listener,) = listen_on([UnixAddress(str(path))])
    with pytest.raises(SystemRefused, match="it is in use: stop what listens there"):
        listen_on([UnixAddress(str(path))])
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    listener.close()


def test_a_socket_that_was_taken_over_is_left_alone(place: Path) -> None:
    """Closing removes the file that was made here, not the one that somebody has put there since."""
    path = place / "x.sock"
    (first,) = listen_on([UnixAddress(str(path))])
    path.rename(place / "kept.sock")
    (second,) = listen_on([UnixAddress(str(path))])
    first.close()
    assert path.exists()
    second.close()


def test_what_cannot_be_a_socket_is_one_clear_line(place: Path) -> None:
    """A file, a missing folder, a path that is too long, an address that is taken: nothing is left behind."""
    (place / "file").write_text("precious", encoding="ascii")
    cases = [
        (place / "file", "there is a file that is no socket"),
        (place / "none" / "x.sock", "no directory .*: make it"),
        (place / ("x" * 120), "the path is too long"),
    ]
    for path, message in cases:
        with pytest.raises(SystemRefused, match=message) as refused:
            listen_on([UnixAddress(str(place / "first.sock")), UnixAddress(str(path))])
        assert "\n" not in str(refused.value)
        assert not (place / "first.sock").exists()
    assert (place / "file").read_text(encoding="ascii") == "precious"


def test_sockets_from_systemd_are_taken() -> None:
    """Descriptors from 3 on are listened on, are not inherited further, and the variables are gone."""
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        done = activated([first.fileno(), second.fileno()], count="2")
        ports = [f"127.0.0.1:{sock.getsockname()[1]}" for sock in (first, second)]
    assert (done.returncode, done.stdout.split()) == (0, [*ports, "False", "False", "False"]), done.stderr


def test_what_systemd_did_not_pass_is_said() -> None:
    """No socket, one that is another process's, one that does not listen."""
    for environment in ({}, {"LISTEN_PID": "1", "LISTEN_FDS": "1"}, {"LISTEN_PID": str(os.getpid())}):
        with pytest.raises(ConfigError, match="systemd passed no socket"):
            systemd_listeners(dict(environment))
    with socket.socket() as idle, socket.create_server(("127.0.0.1", 0)) as good:
        done = activated([good.fileno(), idle.fileno()], count="2")
    assert done.returncode == 1
    assert "descriptor 4 from systemd is no listening stream" in done.stderr


def activated(fds: list[int], count: str) -> subprocess.CompletedProcess[str]:
    """Run ACTIVATED with these descriptors as 3 and 4."""
    shell = " ".join(f"{number}<&{fd}" for number, fd in zip((113, 114), fds, strict=True))
    shell = f'exec {shell} 3<&113 4<&114 && exec "$@"'
    return subprocess.run(
        ["bash", "-c", shell, "bash", sys.executable, "-c", ACTIVATED],
        pass_fds=fds,
        env={**os.environ, "LISTEN_FDS": count},
        capture_output=True,
        text=True,
        timeout=60,
    )
