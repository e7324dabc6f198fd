"""A page in a file, for node_exporter's textfile collector: made once, given its name when it is whole.

Everyone may read the file (0644, whatever the umask): node_exporter runs as somebody else, and a page of metrics holds
names of engines and pools, never anything of a request. Invariant: a reader sees the old page or the new one. There
are no timestamps in it, because node_exporter refuses them: how old a page is, its own
`node_textfile_mtime_seconds` tells.
"""

from __future__ import annotations

from pathlib import Path

from kvmon.errors import ConfigError
from kvmon.files import NewFile

__all__ = ["check_name", "write_page"]

_SUFFIX = ".prom"
_MODE = 0o644


def check_name(path: Path) -> None:
    """Raise ConfigError for a name that node_exporter would not read."""
    if path.suffix != _SUFFIX or path.name == _SUFFIX:
        raise ConfigError(f"{path} does not end in {_SUFFIX}: node_exporter would not read it; '-' is standard output")


def write_page(path: Path, page: bytes) -> None:
    """Write or replace the file.

    Raises ConfigError for a name that node_exporter would not read, otherwise as `NewFile`, with nothing left behind.
    """
    check_name(path)
    file = NewFile(path, "the page", force=True, mode=_MODE)
    try:
        file.write(page)
        file.close()
    finally:
        file.abort()
