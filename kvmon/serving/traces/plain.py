"""A plain CSV that anybody can write: header
`arrival_s,prompt_tokens,output_tokens[,class,limit,prefix_id,prefix_tokens,follows,abort_s,chat_id]`.

    arrival_s       seconds, any start, never backwards
    prompt_tokens   tokens of the prompt
    output_tokens   tokens that the request will generate
    class           a small whole number (0 when the column is missing or empty)
    limit           most tokens that it may generate (missing or empty: the longest output of the file)
    prefix_id       a number from 1 shared by all requests that begin with the same text (empty: no shared prefix)
    prefix_tokens   how long that common beginning is
    follows         number (from 1) of an earlier row that has to end first; arrival_s is then the pause after that end
    abort_s         seconds after its arrival at which the client hangs up (empty: never)
    chat_id         a number from 1 shared by the requests of a conversation: each one's prompt and what it generates is
                    a beginning of the same text, which starts with the shared prefix (empty: no conversation)

Rows count from 1 below the header, blank lines not counted. Seconds are read to the nanosecond.

Invariant: unknown columns are refused, not ignored; a bad row is an error with its line number, never skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from pathlib import Path

import numpy as np

from kvmon.errors import TraceError
from kvmon.serving.traces.columns import LATEST_NS, Rows, cells, tokens, whole
from kvmon.serving.traces.identities import Names, named
from kvmon.serving.workload import Workload

__all__ = ["NEEDED", "OPTIONAL", "looks_plain", "read_plain"]

NEEDED = ("arrival_s", "prompt_tokens", "output_tokens")
OPTIONAL = ("class", "limit", "prefix_id", "prefix_tokens", "follows", "abort_s", "chat_id")


def looks_plain(first_line: str) -> bool:
    """Whether a line is a header of this format."""
    names = [name.strip() for name in first_line.split(",")]
    return all(name in names for name in NEEDED)


def read_plain(path: Path, lines: list[str]) -> Workload:
    """The trace in the `lines` of `path`. Raises TraceError with the line of the first bad row."""
    rows = Rows()
    shared: list[tuple[int, int, int]] = []
    headers: dict[int, tuple[int, int]] = {}
    before = None
    for where, row in _rows(path, lines):
        number = len(shared) + 1
        follows = whole(row.get("follows") or "0", where, "follows")
        if follows >= number:
            raise TraceError(f"{where}: this is row {number} and follows row {follows}: only an earlier row, or none")
        arrival = _nanoseconds(row["arrival_s"], where, "arrival_s")
        if follows and arrival < 0:
            raise TraceError(f"{where}: the pause after row {follows} is negative: arrival_s has to be 0 or more here")
        if not follows:
            if before is not None and arrival < before:
                raise TraceError(f"{where}: arrives before the line above it: sort the trace by arrival_s")
            before = arrival
        prompt = tokens(row["prompt_tokens"], where, "prompt_tokens")
        prefix, common, chat = names = _names(row, where, prompt)
        shared.append(names)
        if chat and headers.setdefault(chat, (prefix, common)) != (prefix, common):
            raise TraceError(
                f"{where}: chat {chat} began with another shared prefix: prefix_id and prefix_tokens stay the same in "
                "a conversation"
            )
        rows.add(
            arrival,
            prompt,
            tokens(row["output_tokens"], where, "output_tokens"),
            limit=whole(row.get("limit") or "0", where, "limit"),
            class_id=whole(row.get("class") or "0", where, "class"),
            follows=follows,
            abort_ns=_patience(row.get("abort_s") or "", where),
        )
    workload = rows.workload(path.name, 0)
    return named(workload, Names(*np.array(shared, np.int64).T))


def _rows(path: Path, lines: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """File and line, and the cells of each row by their column."""
    names = [name.strip() for name in lines[0].split(",")] if lines else []
    missing = [name for name in NEEDED if name not in names]
    unknown = [name for name in names if name not in NEEDED + OPTIONAL]
    if missing or unknown or len(set(names)) != len(names):
        problem = (
            f"lacks {', '.join(missing)}" if missing else f"has the unknown or repeated {', '.join(unknown or names)}"
        )
        raise TraceError(f"{path}, line 1: the header {problem}: use {','.join(NEEDED)}[,{','.join(OPTIONAL)}]")
    for number, line in enumerate(lines[1:], start=2):
        where = f"{path}, line {number}"
        row = cells(line, where)
        if not row:
            continue
        if len(row) != len(names):
            raise TraceError(f"{where}: {len(row)} columns instead of {len(names)}: the line may be cut off")
        yield where, dict(zip(names, row, strict=True))


def _names(row: dict[str, str], where: str, prompt: int) -> tuple[int, int, int]:
    """What a row shares: prefix_id, prefix_tokens, chat_id."""
    prefix = whole(row.get("prefix_id") or "0", where, "prefix_id")
    common = whole(row.get("prefix_tokens") or "0", where, "prefix_tokens")
    if common > prompt or bool(prefix) != bool(common):
        raise TraceError(f"{where}: prefix_id and prefix_tokens go together, and a prefix is no longer than its prompt")
    return prefix, common, whole(row.get("chat_id") or "0", where, "chat_id")


def _patience(text: str, where: str) -> int:
    """Nanoseconds of abort_s; 0 for an empty one."""
    if not text:
        return 0
    value = _nanoseconds(text, where, "abort_s")
    if value < 1:
        raise TraceError(f"{where}: abort_s is '{text}': more than 0 is needed; leave it empty for never")
    return value


def _nanoseconds(text: str, where: str, label: str) -> int:
    """Nanoseconds of a number of seconds, exact to the last digit that a nanosecond has."""
    try:
        value = Decimal(text)
    except InvalidOperation:
        value = Decimal("nan")
    if not value.is_finite() or value.copy_abs() > LATEST_NS // 1_000_000_000:
        raise TraceError(f"{where}: {label} is '{text}': a number of seconds is needed")
    return int((value * 1_000_000_000).to_integral_value())
