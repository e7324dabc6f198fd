"""`--web.config.file`: Prometheus' web configuration, from a file to what the server needs.

The format is exporter-toolkit's, so that the file of a node_exporter works here too:
https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md. Paths in it are relative to it.
Invariant: it is valid as a whole, or an error that names the file and the key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from kvmon.exporter.web import tls
from kvmon.exporter.web.config_file import Section, parse_seconds, read_sections
from kvmon.exporter.web.door import Tls

__all__ = ["Rate", "WebConfig", "read_web_config"]

_SECTIONS = ("tls_server_config", "http_server_config", "basic_auth_users", "rate_limit")
# Those that may be set, and the values of those that have few.
_HEADERS: dict[str, tuple[str, ...]] = {
    "Content-Security-Policy": (),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-Content-Type-Options": ("nosniff",),
    "X-XSS-Protection": (),
    "Strict-Transport-Security": (),
}
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")
_BCRYPT = re.compile(r"\$2[abxy]\$(\d\d)\$[./A-Za-z0-9]{53}")
_MOST_COST = 16  # each step doubles it: here it is several seconds for one password
_HTTP1_ONLY = "http_server_config.http2: the exporter speaks HTTP/1.1, to which every client falls back"


@dataclass(frozen=True, slots=True)
class Rate:
    """Requests that may be made: one every `interval` seconds, and `burst` of them at once."""

    interval: float
    burst: int


@dataclass(frozen=True, slots=True)
class WebConfig:
    """What a web configuration says.

    `tls`: None is plain HTTP. `headers`: for every answer, names in lower case. `users`: names and bcrypt hashes; none
    is no authentication. `files`: what it was made from. `guards`: the keys by which it keeps anybody out. `notes`:
    what the file asks for and is told at start, because it makes no difference here.
    """

    tls: Tls | None
    headers: dict[bytes, bytes]
    users: dict[bytes, bytes]
    rate: Rate | None
    files: tuple[Path, ...]
    guards: frozenset[str]
    notes: tuple[str, ...]


def read_web_config(file: Path) -> WebConfig:
    """The configuration in `file`. Raises InputError or SystemRefused, naming file and key."""
    top = read_sections(file, _SECTIONS)
    guards: set[str] = set()
    notes: list[str] = []
    files = [file]
    section = top.section("tls_server_config", tls.KEYS)
    made = tls.make_tls(section) if section is not None else None
    if made is not None:
        guards.add("tls_server_config")
        if made.verifies_clients:
            guards.add("client_auth_type")
        files += made.files
        notes += made.notes
    headers: dict[bytes, bytes] = {}
    http = top.section("http_server_config", ("http2", "headers"))
    if http is not None:
        if "http2" in http and http.flag("http2", True):
            notes.append(_HTTP1_ONLY)
        headers = _headers(http)
    users = _users(top)
    if users:
        guards.add("basic_auth_users")
    return WebConfig(
        tls=made.tls if made is not None else None,
        headers=headers,
        users=users,
        rate=_rate(top),
        files=tuple(files),
        guards=frozenset(guards),
        notes=tuple(notes),
    )


def _headers(http: Section) -> dict[bytes, bytes]:
    section = http.section("headers", tuple(_HEADERS))
    headers = {}
    for name in section or ():
        assert section is not None
        value = section.text(name, blank=True) or ""
        if _HEADER_VALUE.fullmatch(value) is None:
            raise section.error(name, "a header is one line of ASCII text: write it so")
        few = _HEADERS[name]
        if value and few and value not in few:
            raise section.error(name, f"'{value}' is unknown: give {' or '.join(few)}")
        if value:
            headers[name.lower().encode()] = value.encode()
    return headers


def _users(top: Section) -> dict[bytes, bytes]:
    section = top.section("basic_auth_users", None)
    users = {}
    for name in section or ():
        assert section is not None
        if not name or ":" in name:
            raise section.error(name, "a name of a user is not empty and has no colon: give another")
        value = section.text(name)
        found = _BCRYPT.fullmatch(value or "")
        if found is None:
            raise section.error(name, "it is no bcrypt hash: make one with 'htpasswd -nBC 10 \"\"'")
        if not 4 <= int(found.group(1)) <= _MOST_COST:
            raise section.error(
                name, f"a cost of {found.group(1)} is not between 4 and {_MOST_COST}: hash it with 10 to 12"
            )
        users[name.encode()] = found.group().encode()
    return users


def _rate(top: Section) -> Rate | None:
    section = top.section("rate_limit", ("interval", "burst"))
    if section is None:
        return None
    text = section.text("interval") or "0"
    interval = parse_seconds(text)
    if interval is None:
        raise section.error("interval", f"'{text}' is no duration: write it as 500ms, 1s or 1m30s, or 0 for no limit")
    burst = section.text("burst") or "0"
    if re.fullmatch("[0-9]{1,9}", burst) is None:
        raise section.error("burst", f"'{burst}' is no number of requests: give 1 or more")
    if interval == 0:
        return None
    if int(burst) == 0:
        raise section.error("burst", "0 would refuse every request: give 1 or more")
    return Rate(interval, int(burst))
