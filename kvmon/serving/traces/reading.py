"""Reading a trace of any known format: the choice between the readers.

Invariant: `read_trace` either returns a valid workload or raises TraceError with one line; it never changes a trace.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kvmon.errors import TraceError
from kvmon.serving.traces.azure import looks_like_azure, read_azure
from kvmon.serving.traces.columns import read_lines
from kvmon.serving.traces.mooncake import looks_like_mooncake, read_mooncake
from kvmon.serving.traces.plain import looks_plain, read_plain
from kvmon.serving.workload import Workload

__all__ = ["TRACE_FORMATS", "read_trace"]

_READERS: dict[str, tuple[Callable[[str], bool], Callable[[Path], Workload]]] = {
    "mooncake": (looks_like_mooncake, read_mooncake),
    "azure": (looks_like_azure, read_azure),
    "csv": (looks_plain, read_plain),
}

#: Names of the formats that `read_trace` knows.
TRACE_FORMATS = tuple(_READERS)


def read_trace(path: Path, trace_format: str | None = None) -> Workload:
    """Read a request trace; `trace_format` None: recognise it by its first line."""
    if trace_format is not None:
        if trace_format not in _READERS:
            raise TraceError(f"'{trace_format}' is no trace format: choose {', '.join(TRACE_FORMATS)}")
        return _READERS[trace_format][1](path)
    if path.is_dir():
        raise TraceError(f"{path} is a directory: name the trace file in it")
    first = next((line for line in read_lines(path) if line.strip()), None)
    if first is None:
        raise TraceError(f"{path} is empty: nothing to simulate")
    for recognises, reader in _READERS.values():
        if recognises(first):
            return reader(path)
    raise TraceError(f"{path} is in no known format: name it with --format {'|'.join(TRACE_FORMATS)}")
