"""Keep an exporter's cumulative numbers over its own death: one small JSON file a stream, replaced whole.

    {"version": 1, "epoch": "<hex>", "frame": N, "began": T, "stream": [...], "pools": [[...], ...],
     "inserted": [...], "content": [...], "resets": [...]}

The numbers are those before frame N of that life of the engine, which count since wall clock T in ns. A file that is
damaged, of another version or of another life is as good as none: it is never an error, because a recording says most
of it again. Mode 0600; a crash leaves the old file or the new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from kvmon.events.totals import MAX_POOLS
from kvmon.exporter.follow.continuation import Anchor, Saved

__all__ = ["StateFiles"]

_VERSION = 1
_NAME = "exporter.json"
_LARGEST = 1 << 20


class StateFiles:
    """Where the files are: in `directory`, or without one beside the segments of each stream."""

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory

    def path_of(self, stream: Path) -> Path:
        """The file of the stream in directory `stream`."""
        if self._directory is None:
            return stream / _NAME
        place = hashlib.sha256(os.fsencode(stream.absolute())).hexdigest()[:16]
        return self._directory / f"{stream.name}-{place}.json"

    def load(self, stream: Path, epoch: bytes) -> Saved | None:
        """What was saved for this life of the engine; None where there is nothing usable."""
        try:
            with open(os.open(self.path_of(stream), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb") as file:
                saved = _decode(json.loads(file.read(_LARGEST)))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            return None
        return saved if saved.epoch == epoch else None

    def save(self, stream: Path, saved: Saved) -> bool:
        """Replace the stream's file; False where that is not possible (read-only, full, gone)."""
        path = self.path_of(stream)
        fresh = path.with_name(f".{path.name}.new")
        try:
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with open(fd, "w", encoding="ascii") as file:
                file.write(json.dumps(_encode(saved), separators=(",", ":")))
            os.replace(fresh, path)
        except OSError:
            with contextlib.suppress(OSError):
                fresh.unlink()
            return False
        return True


def _encode(saved: Saved) -> dict[str, Any]:
    used = np.flatnonzero(saved.pools.any(axis=1))
    rows = int(used[-1]) + 1 if len(used) else 0
    return {
        "version": _VERSION,
        "epoch": saved.epoch.hex(),
        "frame": saved.frame,
        "began": saved.began,
        "stream": saved.stream.tolist(),
        "pools": saved.pools[:rows].tolist(),
        **{name: values.tolist() for name, values in saved.anchor._asdict().items()},
    }


def _decode(fields: Any) -> Saved:
    if fields["version"] != _VERSION or not isinstance(fields["frame"], int) or fields["frame"] < 0:
        raise ValueError("not a file of this version")
    length, rows, columns = Saved.widths()
    stream = np.array(fields["stream"], np.int64)
    pools = np.zeros((rows, columns), np.int64)
    given = np.array(fields["pools"], np.int64).reshape(-1, columns)
    pools[: len(given)] = given
    if stream.shape != (length,) or (stream < 0).any() or (pools < 0).any():
        raise ValueError("not the numbers of this version")
    anchor = Anchor(*(np.array(fields[name], np.int64) for name in Anchor._fields))
    if any(values.shape != (MAX_POOLS,) for values in anchor):
        raise ValueError("not the pools of this version")
    began = fields.get("began", 0)
    if not isinstance(began, int) or began < 0:
        raise ValueError("not a time")
    return Saved(bytes.fromhex(fields["epoch"]), fields["frame"], stream, pools, anchor, began)
