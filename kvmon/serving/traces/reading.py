"""Reading a trace of any known format: the choice between the readers.

Invariant: `read_trace` either returns a valid workload or raises an error of one line; it never changes a trace.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kvmon.errors import ConfigError, TraceError
from kvmon.serving.traces.azure import looks_like_azure, read_azure
from kvmon.serving.traces.columns import read_lines
from kvmon.serving.traces.mooncake import looks_like_mooncake, read_mooncake
from kvmon.serving.traces.plain import looks_plain, read_plain
from kvmon.serving.workload import Workload

__all__ = ["TRACE_FORMATS", "read_trace"]

_READERS: dict[str, tuple[Callable[[str], bool], Callable[[Path, list[str]], Workload]]] = {
    "mooncake": (looks_like_mooncake, read_mooncake),
    "azure": (looks_like_azure, read_azure),
    "csv": (looks_plain, read_plain),
}

#: Names of the formats that `read_trace` knows.
TRACE_FORMATS = tuple(_READERS)


def read_trace(path: Path, trace_format: str | None = None) -> Workload:
    """Read a request trace; `trace_format` None: recognise it by its first line. The file is read once: a pipe will do.

    Raises ConfigError for an unknown format, TraceError for a trace that cannot be read as it stands.
    """
    if trace_format is not None and trace_format not in _READERS:
        raise ConfigError(f"'{trace_format}' is no trace format: choose {', '.join(TRACE_FORMATS)}")
    lines = read_lines(path)
    if trace_format is not None:
        return _READERS[trace_format][1](path, lines)
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        raise TraceError(f"{path} is empty: nothing to simulate")
    for recognises, reader in _READERS.values():
        if recognises(first):
            return reader(path, lines)
    raise TraceError(f"{path} is in no known format: name it with --format {'|'.join(TRACE_FORMATS)}")
