"""Mooncake's trace: JSON lines with `timestamp` (ms), `input_length`, `output_length`, `hash_ids`.

One id names each 512 tokens of the prompt, the last one its rest; an equal id means an equal prefix up to there
(Mooncake, FAST'25). Ids count from 0 in the file and from 1 here, because identity 0 is taken.

Invariant: rows are taken as they stand; a bad one is an error with its line number, never skipped.
"""

from __future__ import annotations

import json
from pathlib import Path

from kvmon.errors import TraceError
from kvmon.serving.traces.columns import LATEST_NS, Rows, tokens
from kvmon.serving.workload import Workload

__all__ = ["HASH_TOKENS", "looks_like_mooncake", "read_mooncake"]

HASH_TOKENS = 512
_IDS = 2**63 - 1
_FIELDS = ("timestamp", "input_length", "output_length", "hash_ids")


def looks_like_mooncake(first_line: str) -> bool:
    """Whether a line is a JSON object with the fields of the trace."""
    try:
        row = json.loads(first_line)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and "input_length" in row and "output_length" in row


def read_mooncake(path: Path, lines: list[str]) -> Workload:
    """The trace in the `lines` of `path`. Raises TraceError with the line of the first bad row."""
    rows = Rows()
    before = -1
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TraceError(f"{where}: not JSON: the line may be cut off") from error
        if not isinstance(row, dict) or any(name not in row for name in _FIELDS):
            raise TraceError(f"{where}: a JSON object with {', '.join(_FIELDS)} is needed")
        prompt = tokens(row["input_length"], where, "input_length")
        output = tokens(row["output_length"], where, "output_length")
        arrival = _milliseconds(row["timestamp"], where)
        if arrival < before:
            raise TraceError(f"{where}: arrives before the line above it: sort the trace by timestamp")
        before = arrival
        ids = row["hash_ids"]
        if not isinstance(ids, list) or any(
            not isinstance(i, int) or isinstance(i, bool) or not 0 <= i < _IDS for i in ids
        ):
            raise TraceError(f"{where}: hash_ids must be a list of whole numbers from 0, below 2**63")
        if len(ids) > -(-prompt // HASH_TOKENS):
            raise TraceError(f"{where}: {len(ids)} hash_ids for {prompt} tokens: at most one for each {HASH_TOKENS}")
        rows.add(arrival, prompt, output, identities=[i + 1 for i in ids])
    return rows.workload(path.name, HASH_TOKENS)


def _milliseconds(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= LATEST_NS / 1_000_000:
        raise TraceError(f"{where}: timestamp is {value!r}: milliseconds of 0 or more are needed, 140 years at most")
    return round(value * 1_000_000)
