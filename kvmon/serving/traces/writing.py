"""A workload as a plain CSV trace, the other half of `plain.py`.

Invariant: reading what is written gives the same workload, with its arrivals counted from the first one. A file that
has the name that was asked for is whole, and readable by its owner alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from kvmon.files import write_whole
from kvmon.serving.traces.identities import names_of
from kvmon.serving.traces.plain import NEEDED
from kvmon.serving.workload import Workload

__all__ = ["plain_lines", "write_plain"]


def plain_lines(workload: Workload) -> Iterator[str]:
    """The lines of the trace, header first, each with its line end; a column that nobody needs is left out.

    Raises TraceError when the workload's prefix identities are not those of this format.
    """
    n = len(workload)
    names = names_of(workload)
    start = int(workload.arrival_ns[0])
    arrivals = (workload.arrival_ns - start * workload.independent).tolist()
    columns: dict[str, list[str]] = {
        NEEDED[0]: [_seconds(arrival) for arrival in arrivals],
        NEEDED[1]: [str(tokens) for tokens in workload.prompt_tokens.tolist()],
        NEEDED[2]: [str(tokens) for tokens in workload.output_tokens.tolist()],
    }
    optional: tuple[tuple[str, list[int], Callable[[int], str]], ...] = (
        ("class", workload.class_id.tolist(), str),
        ("limit", workload.token_limit.tolist(), str),
        ("prefix_id", names.prefix_id.tolist(), str),
        ("prefix_tokens", names.prefix_tokens.tolist(), str),
        ("follows", workload.follows.tolist(), str),
        ("abort_s", workload.abort_ns.tolist(), _seconds),
        ("chat_id", names.chat_id.tolist(), str),
    )
    for name, values, write in optional:
        if any(values):
            columns[name] = [write(value) if value else "" for value in values]
    yield ",".join(columns) + "\n"
    for index in range(n):
        yield ",".join([column[index] for column in columns.values()]) + "\n"


def write_plain(workload: Workload, path: Path, *, force: bool = False) -> None:
    """Write the trace to `path`; `force` replaces a file that is there.

    Raises InputError where `path` is taken or its directory is missing, SystemRefused where it cannot be written, and
    TraceError as `plain_lines`.
    """
    write_whole(path, plain_lines(workload), "the trace", force=force)


def _seconds(nanoseconds: int) -> str:
    """All digits of a time in seconds, without zeros at the end."""
    whole, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{whole}.{rest:09d}".rstrip("0") if rest else str(whole)
