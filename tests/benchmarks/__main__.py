"""`make bench`: run every benchmark beside this file and print one table; `--markdown FILE` writes it too.

A benchmark is a module `bench_*.py` with `rows() -> list[Row]`. Names on the command line choose some of them.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.benchmarks.table import Row

HERE = Path(__file__).parent
VERDICTS = {None: "", True: "met", False: "missed"}


def machine() -> str:
    """What the figures were taken on, without naming the machine."""
    return f"CPython {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores"


def markdown(rows: list[Row]) -> str:
    """The table as a page of the docs."""
    lines = [
        "# Benchmarks",
        "",
        f"Written by `make bench` on {machine()}, a shared machine: best of several runs; compare ratios, not figures.",
        "",
        "| work | measured | target | |",
        "| --- | --- | --- | --- |",
        *(f"| {row.work} | {row.figure} | {row.target} | {VERDICTS[row.met]} |" for row in rows),
        "",
        "What keeps a figure from its target, where it is missed or near:",
        "",
        *(f"- {row.work}: {row.limit}" for row in rows if row.limit),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    """Run the benchmarks that `arguments` name, all of them without names."""
    page = None
    if "--markdown" in arguments:
        at = arguments.index("--markdown")
        page = Path(arguments[at + 1])
        arguments = arguments[:at] + arguments[at + 2 :]
    console = Console()
    rows: list[Row] = []
    for path in sorted(HERE.glob("bench_*.py")):
        name = path.stem.removeprefix("bench_")
        if arguments and name not in arguments:
            continue
        start = time.perf_counter()
        rows += importlib.import_module(f"tests.benchmarks.{path.stem}").rows()
        console.print(f"{name}: {time.perf_counter() - start:.0f} s", style="dim")
    table = Table("work", "measured", "target", "", title=machine(), title_justify="left")
    for row in rows:
        table.add_row(row.work, row.figure, row.target, VERDICTS[row.met])
    console.print(table)
    if page is not None:
        page.write_text(markdown(rows), encoding="utf-8")


main(sys.argv[1:])
