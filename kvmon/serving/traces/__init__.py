"""Request traces: one reader a format, and the choice between them.

Invariant: a trace is read as it stands or refused with the line of its first fault; nothing is guessed or skipped.
"""

from __future__ import annotations

from kvmon.serving.traces.reading import TRACE_FORMATS, read_trace

__all__ = ["TRACE_FORMATS", "read_trace"]
