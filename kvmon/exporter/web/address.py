"""Where to listen: TCP addresses, unix sockets, and sockets that systemd has bound.

Invariant: every socket is bound, or nothing is; a unix socket is its owner's and its group's from its first moment on,
and only the one that was made here is ever removed, or one that nobody listens on any more.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import NamedTuple

from kvmon.errors import ConfigError, SystemRefused

__all__ = ["DEFAULT_PORT", "Address", "Listener", "UnixAddress", "listen_on", "parse_address", "systemd_listeners"]

DEFAULT_PORT = 10490
"""Prometheus' list of default ports has given away 9100 to 9999 whole and goes on from 10000 one by one; this is far
from both, and clear of Kubernetes' own agents (10248 to 10259) and of Thanos (10901 to 10912)."""

_BACKLOG = 2048  # connections that the kernel holds until they are accepted; it caps this at net.core.somaxconn
_SOCKET_MODE = 0o660
_FIRST_PASSED_FD = 3  # sd_listen_fds(3)


class Address(NamedTuple):
    """A TCP address; an empty host is every interface, port 0 any free port."""

    host: str
    port: int

    def __str__(self) -> str:
        """As it is typed: `127.0.0.1:10490`, `[::1]:10490`, `:10490`."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class UnixAddress(NamedTuple):
    """A unix socket in the file system."""

    path: str

    def __str__(self) -> str:
        """As it is typed: `unix:/run/kvmon.sock`."""
        return f"unix:{self.path}"


def parse_address(text: str) -> Address | UnixAddress:
    """An address from `HOST:PORT`, `[IPV6]:PORT`, `:PORT` or `unix:/PATH`.

    Raises ConfigError for anything else.
    """
    scheme, colon, path = text.partition(":")
    if scheme == "unix" and "/" in path:
        if path.endswith("/") or "\0" in path:
            raise ConfigError(f"'{text}' names no socket: write unix: and the path of a file")
        return UnixAddress(path)
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if colon and re.fullmatch("[0-9]{1,5}", port) and int(port) <= 65535 and (bracketed or ":" not in host):
        return Address(host[1:-1] if bracketed else host, int(port))
    raise ConfigError(
        f"'{text}' is no address to listen on: write HOST:PORT, [IPV6]:PORT, :PORT for every interface, or unix:/PATH"
    )


class Listener:
    """A bound socket that listens. `mine`: the file of a unix socket that goes when this is closed."""

    def __init__(self, sock: socket.socket, *, mine: Path | None = None) -> None:
        self.socket = sock
        self._mine = mine
        self._identity = _identity(mine) if mine is not None else None

    @property
    def address(self) -> Address | UnixAddress:
        """Where it listens, with the port that the system chose for port 0."""
        name = self.socket.getsockname()
        return UnixAddress(os.fsdecode(name)) if self.socket.family == socket.AF_UNIX else Address(*name[:2])

    def close(self) -> None:
        """Stop listening."""
        self.socket.close()
        if self._mine is not None and _identity(self._mine) == self._identity:
            with contextlib.suppress(OSError):
                self._mine.unlink()
        self._mine = None


def listen_on(addresses: Sequence[Address | UnixAddress]) -> list[Listener]:
    """A listener for each address.

    Raises SystemRefused where one is taken, forbidden or not this machine's; ConfigError for none.
    """
    if not addresses:
        raise ConfigError(f"there is no address to listen on: give one, such as 127.0.0.1:{DEFAULT_PORT}")
    listeners: list[Listener] = []
    try:
        for address in addresses:
            listeners.append(_bind_unix(address) if isinstance(address, UnixAddress) else _bind_tcp(address))
            listeners[-1].socket.listen(_BACKLOG)
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def systemd_listeners(environment: MutableMapping[str, str]) -> list[Listener]:
    """The sockets that systemd passed to this process (sd_listen_fds(3)); the variables that say so are taken out.

    Raises ConfigError where there is none, or one of them is no listening stream.
    """
    process, count = (environment.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS"))
    environment.pop("LISTEN_FDNAMES", None)
    if process != str(os.getpid()) or not re.fullmatch("[1-9][0-9]{0,3}", count):
        raise ConfigError("systemd passed no socket: start the exporter from a .socket unit, or give an address")
    listeners = []
    for fd in range(_FIRST_PASSED_FD, _FIRST_PASSED_FD + int(count)):
        try:
            sock = socket.socket(fileno=fd)
            listens = sock.type == socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError:
            listens = False
        if not listens:
            raise ConfigError(f"descriptor {fd} from systemd is no listening stream: use ListenStream= and Accept=no")
        os.set_inheritable(fd, False)
        _without_delay(sock)
        listeners.append(Listener(sock))
    return listeners


def _without_delay(sock: socket.socket) -> None:
    """Let accepted sockets, which inherit it, send at once.

    asyncio sets it only on sockets made with an explicit protocol, and headers and body are two writes: without it
    every scrape waits 40 ms for a delayed acknowledgement.
    """
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _bind_tcp(address: Address) -> Listener:
    try:
        if not address.host and socket.has_dualstack_ipv6():
            sock = socket.create_server(("", address.port), family=socket.AF_INET6, dualstack_ipv6=True)
        else:
            found = socket.getaddrinfo(address.host or "0.0.0.0", address.port, type=socket.SOCK_STREAM)
            family = min(entry[0] for entry in found)  # IPv4 first: where a name has both, that is what scrapers try
            target = next(entry[4] for entry in found if entry[0] == family)
            sock = socket.create_server((str(target[0]), address.port), family=family)
    except (socket.gaierror, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not a name"
        raise SystemRefused(f"cannot listen on {address}: the host is unknown ({reason})") from None
    except OSError as error:
        advice = {
            errno.EADDRINUSE: "the port is in use: stop what uses it or give another",
            errno.EACCES: "no permission: give a port above 1023",
            errno.EADDRNOTAVAIL: "this machine has no such address: give one of its own, or :PORT for all",
        }.get(error.errno or 0, os.strerror(error.errno or 0))
        raise SystemRefused(f"cannot listen on {address}: {advice}") from None
    _without_delay(sock)
    return Listener(sock)


def _bind_unix(address: UnixAddress) -> Listener:
    path = Path(address.path)
    sock = socket.socket(socket.AF_UNIX)
    try:
        # Linux gives the file the mode of the socket: it is never open to all, not even for a moment.
        os.fchmod(sock.fileno(), _SOCKET_MODE)
        try:
            sock.bind(address.path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_stale(address, path)
            sock.bind(address.path)
        os.chmod(path, _SOCKET_MODE)  # a umask may have taken away what the group may do
    except OSError as error:
        sock.close()
        if isinstance(error.errno, int):
            advice = {
                errno.ENOENT: f"no directory {path.parent}: make it",
                errno.EADDRINUSE: "it is in use: stop what listens there or give another path",
            }.get(error.errno, os.strerror(error.errno))
        else:
            advice = "the path is too long: 107 bytes are the most"
        raise SystemRefused(f"cannot listen on {address}: {advice}") from None
    except SystemRefused:
        sock.close()
        raise
    return Listener(sock, mine=path)


def _remove_stale(address: UnixAddress, path: Path) -> None:
    """Remove a socket that nobody listens on. Raises SystemRefused for anything else."""
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise SystemRefused(f"cannot listen on {address}: there is a file that is no socket: give another path")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(address.path)
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as error:
            if error.errno != errno.EAGAIN:  # a full queue: somebody listens
                raise
    raise SystemRefused(f"cannot listen on {address}: it is in use: stop what listens there or give another path")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
