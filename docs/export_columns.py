"""docs/export.md with the tables of columns as `kvmon.replay.export.schema` has them, on standard output.

    python docs/export_columns.py > export.new && mv export.new docs/export.md

Invariant: nothing but what stands between the two marks is written anew.
"""

from __future__ import annotations

import sys
from pathlib import Path

from kvmon.replay.export.schema import TABLES, Column

BEGIN, END = "<!-- columns -->\n", "<!-- /columns -->"
EXTREMES = ("least", "most", "mean")
TYPES = {"small": "int", "word": "text"}


def page(text: str) -> str:
    """The page with its tables anew."""
    head, _, rest = text.partition(BEGIN)
    return head + BEGIN + "\n" + tables() + "\n" + END + rest.partition(END)[2]


def tables() -> str:
    """The columns that every table begins with once, then the others of each."""
    first = next(iter(TABLES.values()))
    count = sum(all(columns[: place + 1] == first[: place + 1] for columns in TABLES.values()) for place in range(9))
    parts = [("Every table begins with", first[:count])]
    parts += [(f"`{name}`", columns[count:]) for name, columns in TABLES.items()]
    return "\n".join(f"{title}\n\n{table(columns)}" for title, columns in parts)


def table(columns: tuple[Column, ...]) -> str:
    """A row a column, and one for a curve with its extremes."""
    names = {column.name for column in columns}
    lines = ["| column | type | unit | meaning |", "| --- | --- | --- | --- |"]
    for column in columns:
        base, _, part = column.name.rpartition("_")
        if part in EXTREMES and base in names:
            continue
        extremes = [f"`_{part}`" for part in EXTREMES if f"{column.name}_{part}" in names]
        type_ = TYPES.get(column.type, column.type)
        lines.append(f"| {', '.join([f'`{column.name}`', *extremes])} | {type_} | {column.unit} | {column.meaning} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.stdout.write(page((Path(__file__).parent / "export.md").read_text(encoding="utf-8")))
