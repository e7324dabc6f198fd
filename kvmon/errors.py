"""The exception tree of kvmon, drawn once.

    KvmonError                      exit 70 unless a subclass says otherwise
    ├── ConfigError                 2   an option, parameter or combination that cannot work
    ├── InputError                  3   a file or directory that cannot be used as what it was given for
    │   ├── TraceError                  a request trace: unknown format, bad row (with its line number)
    │   ├── RecordingError              a recording directory or segment
    │   ├── CaptureError                a capture file
    │   └── NewerFormatError            written by a newer kvmon than this one
    ├── SystemRefused               4   permission, port, disk: the machine said no
    └── InvariantError              70  a structure of ours contradicts itself: a bug, never an input

The library raises; the command line maps to exit codes once. Every message is one line and says what to do next.
Exit code 1 is no exception: a check ran and found something (`kvmon verify`, `kvmon status`).
"""

from __future__ import annotations

__all__ = [
    "CaptureError",
    "ConfigError",
    "InputError",
    "InvariantError",
    "KvmonError",
    "NewerFormatError",
    "RecordingError",
    "SystemRefused",
    "TraceError",
]


class KvmonError(Exception):
    """Base of every error that kvmon raises on purpose; `exit_code` is what the command line ends with."""

    exit_code = 70


class ConfigError(KvmonError):
    """An option, a parameter or a combination of them cannot work."""

    exit_code = 2


class InputError(KvmonError):
    """A file or directory cannot be used as what it was given for."""

    exit_code = 3


class TraceError(InputError):
    """A request trace cannot be read; bad rows are named by line number."""


class RecordingError(InputError):
    """A recording directory or one of its segments cannot be read."""


class CaptureError(InputError):
    """A capture file cannot be read or is not a capture."""


class NewerFormatError(InputError):
    """The data was written by a newer kvmon than this one."""


class SystemRefused(KvmonError):
    """The machine said no: permission, port in use, disk full."""

    exit_code = 4


class InvariantError(KvmonError):
    """A structure contradicts itself; always a bug in kvmon, never an input."""
