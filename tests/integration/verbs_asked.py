"""The verbs that read a capture or a recording, asked within the process of a test: what they say, and what they leave.

Everything goes through `kvmon.cli.main.run`, so that errors become what a user sees.
"""

from __future__ import annotations

import io
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import NamedTuple

from kvmon.cli.main import run

__all__ = ["PATIENCE_S", "READS", "SHARES", "STATUS", "WRITES", "Command", "Said", "ask", "command"]

_COMPILES = "kvmon: compiling kernels (first run only, about a minute) ...\n"
PATIENCE_S = 300  # kernels may have to be compiled first
DAMAGE = re.compile(
    "damaged|cut off|not clean|cannot be read|the part that can be read|as far as it (can be read|was seen)"
    "|what can be read was exported"
)

Command = Callable[[Path, Path], list[str]]


def command(*parts: str) -> Command:
    """Of a source and a folder for what is written: `PATH` and `OUT/...` among the parts are those."""

    def of(path: Path, out: Path) -> list[str]:
        return [str(path) if part == "PATH" else part.replace("OUT", str(out)) for part in parts]

    return of


#: Every verb that reads, by a name of its own.
READS: dict[str, Command] = {
    "replay": command("replay", "PATH"),
    "replay --json": command("replay", "PATH", "--json"),
    "replay --at": command("replay", "PATH", "--at", "worst"),
    "replay --what-if": command("replay", "PATH", "--what-if", "pool=+20%"),
    "replay --sweep": command("replay", "PATH", "--sweep", "pool=90%,110%", "--executor", "none"),
    "replay --no-what-if": command("replay", "PATH", "--no-what-if"),
    "replay --html": command("replay", "PATH", "--html", "OUT/report.html"),
    "why": command("why", "PATH"),
    "holders": command("holders", "PATH"),
    "verify": command("verify", "PATH"),
    "fit": command("fit", "PATH", "-o", "OUT/fit.json"),
    "export parquet": command("export", "PATH", "-o", "OUT/parquet"),
    "export perfetto": command("export", "PATH", "-o", "OUT/trace.json"),
    "diff": command("diff", "PATH", "PATH"),
}
SHARES: dict[str, Command] = {
    "capture": command("capture", "PATH", "-o", "OUT/x.kvmon"),
    "capture --share": command("capture", "PATH", "--share", "-o", "OUT/x.kvmon"),
    "capture --share --dry-run": command("capture", "PATH", "--share", "--dry-run"),
}
STATUS: dict[str, Command] = {"status": command("status", "PATH")}
#: The verbs that write, into a file (or a folder, Parquet) that is named last.
WRITES: dict[str, Command] = {
    "replay --html": command("replay", "PATH", "--html", "OUT"),
    "fit": command("fit", "PATH", "-o", "OUT"),
    "export parquet": command("export", "PATH", "--to", "parquet", "-o", "OUT"),
    "export perfetto": command("export", "PATH", "--to", "perfetto", "-o", "OUT"),
    "capture --share": command("capture", "PATH", "--share", "-o", "OUT"),
}


class Said(NamedTuple):
    """What a command ended with and said, and the names of what it left."""

    code: int
    out: str
    err: str
    left: list[str]

    @property
    def one_line(self) -> bool:
        """Whether standard error is one line of kvmon's, and no bug."""
        return self.err.startswith("kvmon: ") and self.err.count("\n") == 1 and "internal error" not in self.err

    @property
    def damage(self) -> bool:
        """Whether it has a word about damage."""
        return bool(DAMAGE.search(self.err + self.out))


class _TookTooLong(BaseException):
    """Not an Exception: no verb catches it."""


@contextmanager
def no_hang() -> Iterator[None]:
    """End what takes too long, also where it waits for a file."""

    def end(_signal: int, _frame: FrameType | None) -> None:
        raise _TookTooLong

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(PATIENCE_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def ask(command: Command, path: Path, *more: str) -> Said:
    """Run a command of the source `path`, with an empty folder to write to."""
    out, err = io.StringIO(), io.StringIO()
    with TemporaryDirectory() as folder:
        with no_hang(), redirect_stdout(out), redirect_stderr(err):
            code = run([*command(path, Path(folder)), *more])
        left = sorted(file.name for file in Path(folder).iterdir())
    return Said(code, out.getvalue(), err.getvalue().replace(_COMPILES, ""), left)
