"""What every trace reader shares: numbers out of text with the line they stand on, and rows into a workload.

Invariant: a reader raises TraceError with one line that names file, line and field; it never guesses a value.
"""

from __future__ import annotations

import contextlib
import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kvmon.errors import TraceError
from kvmon.serving.workload import Workload

__all__ = ["LATEST_NS", "Rows", "cells", "read_lines", "tokens", "whole"]

_MOST = 2**30
#: The latest arrival that a trace may have: the difference of any two still fits 64 bits.
LATEST_NS = 4_500_000_000 * 1_000_000_000


@dataclass
class Rows:
    """Columns as they are read. `limit` 0: the trace does not say; the longest output of the trace is taken."""

    arrival_ns: list[int] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)
    output: list[int] = field(default_factory=list)
    limit: list[int] = field(default_factory=list)
    class_id: list[int] = field(default_factory=list)
    identities: list[Sequence[int]] = field(default_factory=list)
    follows: list[int] = field(default_factory=list)
    abort_ns: list[int] = field(default_factory=list)

    def add(
        self,
        arrival_ns: int,
        prompt: int,
        output: int,
        *,
        limit: int = 0,
        class_id: int = 0,
        identities: Sequence[int] = (),
        follows: int = 0,
        abort_ns: int = 0,
    ) -> None:
        """One request; `arrival_ns` of one that follows another is the pause between them."""
        self.arrival_ns.append(arrival_ns)
        self.prompt.append(prompt)
        self.output.append(output)
        self.limit.append(limit)
        self.class_id.append(class_id)
        self.identities.append(identities)
        self.follows.append(follows)
        self.abort_ns.append(abort_ns)

    def workload(self, name: str, hash_tokens: int) -> Workload:
        """The rows as a workload; arrivals count from the first one."""
        if not self.arrival_ns:
            raise TraceError(f"{name} holds no request: nothing to simulate")
        arrival = np.array(self.arrival_ns, np.int64)
        follows = np.array(self.follows, np.int32)
        output = np.array(self.output, np.int32)
        limit = np.array(self.limit, np.int32)
        limit[limit == 0] = output.max()
        counts = np.array([len(ids) for ids in self.identities], np.int64)
        flat = [identity for ids in self.identities for identity in ids]
        return Workload(
            arrival_ns=np.where(follows == 0, arrival - arrival[0], arrival),
            prompt_tokens=np.array(self.prompt, np.int32),
            output_tokens=output,
            token_limit=limit,
            class_id=np.array(self.class_id, np.int32),
            hash_offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
            hashes=np.array(flat, np.uint64),
            hash_tokens=hash_tokens if flat else 0,
            name=name,
            follows=follows,
            abort_ns=np.array(self.abort_ns, np.int64),
        )


def read_lines(path: Path) -> list[str]:
    """The lines of a text file. Raises TraceError when it cannot be read as one."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise TraceError(f"{path} is no text file: give a request trace in CSV or JSON lines") from error
    except IsADirectoryError as error:
        raise TraceError(f"{path} is a directory: name the trace file in it") from error
    except OSError as error:
        raise TraceError(f"cannot read {path}: {error.strerror or error}") from error


def cells(line: str, where: str) -> list[str]:
    """The cells of one line of a CSV, none of an empty one. Raises TraceError with `where` (file and line)."""
    try:
        return [cell.strip() for cell in next(csv.reader([line]), [])]
    except csv.Error as error:
        raise TraceError(f"{where}: no row of a CSV ({error}): the file may be damaged") from error


def tokens(value: object, where: str, label: str) -> int:
    """A number of tokens of at least 1. Raises TraceError with `where` (file and line)."""
    number = whole(value, where, label)
    if number < 1:
        raise TraceError(f"{where}: {label} is {number}: at least 1 token is needed")
    return number


def whole(value: object, where: str, label: str) -> int:
    """A whole number of at least 0. Raises TraceError with `where` (file and line)."""
    number = math.nan
    # Python also reads 1_000 and the digits of other scripts; a trace that has them is damaged.
    strange = isinstance(value, str) and not (value.isascii() and "_" not in value)
    if isinstance(value, (str, int, float)) and not isinstance(value, bool) and not strange:
        with contextlib.suppress(ValueError, OverflowError):
            number = float(value)
    if not math.isfinite(number) or number != int(number):
        raise TraceError(f"{where}: {label} is {value!r}: a whole number is needed")
    if number < 0 or number > _MOST:
        raise TraceError(f"{where}: {label} is {value}: a number from 0 to {_MOST} is needed")
    return int(number)
