"""A plain CSV that anybody can write: header
`arrival_s,prompt_tokens,output_tokens[,class,limit,prefix_id,prefix_tokens]`.

    arrival_s       seconds, any start, never backwards
    prompt_tokens   tokens of the prompt
    output_tokens   tokens that the request will generate
    class           a small whole number (0 when the column is missing or empty)
    limit           most tokens that it may generate (missing or empty: the longest output of the file)
    prefix_id       a number from 1 shared by all requests that begin with the same text (empty: no shared prefix)
    prefix_tokens   how long that common beginning is

Prefix identities name 16 tokens each here, so a page of 16, 32, 64, ... or of 1, 2, 4, 8 tokens can be hit.

Invariant: unknown columns are refused, not ignored; a bad row is an error with its line number, never skipped.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

from kvmon.errors import TraceError
from kvmon.serving.traces.columns import Rows, read_lines, tokens, whole
from kvmon.serving.workload import Workload

__all__ = ["HASH_TOKENS", "looks_plain", "prefix_identities", "read_plain"]

HASH_TOKENS = 16
_NEEDED = ("arrival_s", "prompt_tokens", "output_tokens")
_OPTIONAL = ("class", "limit", "prefix_id", "prefix_tokens")


def looks_plain(first_line: str) -> bool:
    """Whether a line is a header of this format."""
    names = [name.strip() for name in first_line.split(",")]
    return all(name in names for name in _NEEDED)


def prefix_identities(prefix_id: int, prefix_tokens: int, hash_tokens: int = HASH_TOKENS) -> list[int]:
    """Chained identities of the full steps of a common beginning: unique to the prefix and the place in it."""
    return [(prefix_id << 32) + step + 1 for step in range(prefix_tokens // hash_tokens)]


def read_plain(path: Path) -> Workload:
    """Read the trace. Raises TraceError with the line of the first bad row."""
    lines = read_lines(path)
    names = [name.strip() for name in lines[0].split(",")] if lines else []
    missing = [name for name in _NEEDED if name not in names]
    unknown = [name for name in names if name not in _NEEDED + _OPTIONAL]
    if missing or unknown or len(set(names)) != len(names):
        problem = (
            f"lacks {', '.join(missing)}" if missing else f"has the unknown or repeated {', '.join(unknown or names)}"
        )
        raise TraceError(f"{path}, line 1: the header {problem}: use {','.join(_NEEDED)}[,{','.join(_OPTIONAL)}]")
    rows = Rows()
    before = -math.inf
    for number, cells in enumerate(csv.reader(lines[1:]), start=2):
        if not cells:
            continue
        where = f"{path}, line {number}"
        if len(cells) != len(names):
            raise TraceError(f"{where}: {len(cells)} columns instead of {len(names)}: the line may be cut off")
        row = dict(zip(names, (cell.strip() for cell in cells), strict=True))
        arrival = _seconds(row["arrival_s"], where)
        if arrival < before:
            raise TraceError(f"{where}: arrives before the line above it: sort the trace by arrival_s")
        before = arrival
        prompt = tokens(row["prompt_tokens"], where, "prompt_tokens")
        prefix = whole(row.get("prefix_id") or "0", where, "prefix_id")
        common = whole(row.get("prefix_tokens") or "0", where, "prefix_tokens")
        if common > prompt or bool(prefix) != bool(common):
            raise TraceError(
                f"{where}: prefix_id and prefix_tokens go together, and a prefix is no longer than its prompt"
            )
        rows.add(
            round(arrival * 1e9),
            prompt,
            tokens(row["output_tokens"], where, "output_tokens"),
            limit=whole(row.get("limit") or "0", where, "limit"),
            class_id=whole(row.get("class") or "0", where, "class"),
            identities=prefix_identities(prefix, common),
        )
    return rows.workload(path.name, HASH_TOKENS)


def _seconds(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or abs(value) > 9e9:
        raise TraceError(f"{where}: arrival_s is '{text}': a number of seconds is needed")
    return value
