"""The `kvmon` command: finds a verb, runs it, and maps every outcome to an exit code, once.

Verbs are named in one table and imported when they are used, so that `kvmon --help` costs click and nothing else. A
verb's module exports a click command called `command`; its help line stands in the table alone. Nothing here knows what
a verb does.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import click

from kvmon import __version__
from kvmon.errors import KvmonError

__all__ = ["EXIT_CODES", "VERBS", "Verb", "VerbGroup", "cli", "entry_point", "run"]


@dataclass(frozen=True, slots=True)
class Verb:
    """Where a verb lives (`module:attribute`) and the line that `kvmon --help` shows for it."""

    target: str
    help: str

    @property
    def module(self) -> str:
        """Dotted name of the module that holds the command."""
        return self.target.partition(":")[0]

    def load(self) -> click.Command:
        """Import the verb and give it its help line."""
        command = getattr(import_module(self.module), self.target.partition(":")[2])
        if not isinstance(command, click.Command):
            raise TypeError(f"{self.target} is no click command")
        command.short_help = self.help
        return command


VERBS = {
    "demo": Verb("kvmon.cli.demo:command", "Serve the same traffic through two allocators, side by side."),
    "exporter": Verb("kvmon.cli.exporter:command", "Follow recordings and serve their metrics to Prometheus."),
    "top": Verb("kvmon.cli.top:command", "Watch the KV memory of running engines in the terminal."),
    "status": Verb("kvmon.cli.status:command", "One line a pool: what is wrong now, with an exit code."),
    "why": Verb("kvmon.cli.why:command", "Why the last request waited or failed, in words with numbers."),
    "holders": Verb("kvmon.cli.holders:command", "Who holds the memory, by class, state and age."),
    "doctor": Verb("kvmon.cli.doctor:command", "Why nothing is recorded, or less than expected, and what to do."),
    "capture": Verb("kvmon.cli.capture:command", "Keep a recording as one compressed file, also of a dead engine."),
    "replay": Verb("kvmon.cli.replay:command", "What went wrong in a recording or capture, the answer first."),
    "explain": Verb("kvmon.cli.explain:command", "What a verdict means, how to confirm it, and what to do."),
    "verify": Verb("kvmon.cli.verify:command", "Check that a recording or capture is whole and consistent."),
    "diff": Verb("kvmon.cli.diff:command", "What changed between two captures, or two windows of one."),
    "export": Verb("kvmon.cli.export:command", "Write captures as Parquet for DuckDB, or as a trace for Perfetto."),
    "workload": Verb("kvmon.cli.workload:command", "Make request traffic and write it as a trace."),
    "simulate": Verb("kvmon.cli.simulate:command", "Run a request trace through an allocator."),
    "capacity": Verb("kvmon.cli.capacity:command", "How many tokens and requests a model and a pool can hold."),
    "fit": Verb("kvmon.cli.fit:command", "Fit the clock of the simulator to the steps of a recording."),
    "engine": Verb(
        "kvmon.cli.engine:command", "Serve a model, or answer a file of requests, with the reference engine."
    ),
    "alerts": Verb("kvmon.cli.alerts:command", "List the alerts, read their runbooks, write the rules for Prometheus."),
    "dashboards": Verb("kvmon.cli.dashboards:command", "Write the Grafana dashboards, to import or provision them."),
    "metrics": Verb("kvmon.cli.metrics:command", "List every metric with its meaning, unit and labels."),
}

EXIT_CODES = {
    0: "done",
    1: "a check ran and found something",
    2: "an option or argument cannot work",
    3: "an input cannot be used",
    4: "the machine refused: permission, port, disk",
    70: "a bug in kvmon",
    130: "interrupted",
    141: "the reader of the output went away",
}
_LONGEST = 700  # characters of a message
_IMPOSSIBLE = (errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR)


class VerbGroup(click.Group):
    """A group whose commands come from a table of verbs and are imported only when one is named.

    A verb whose module is not installed is not listed.
    """

    def __init__(self, verbs: dict[str, Verb], help: str, epilog: str) -> None:
        """`verbs` maps the name that is typed to where the command lives, in the order of the help page."""
        super().__init__(
            name="kvmon", help=help, epilog=epilog, invoke_without_command=True, callback=_help_unless_verb
        )
        self._verbs = verbs

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the verbs that are there, in the table's order, without importing one."""
        return [name for name, verb in self._verbs.items() if find_spec(verb.module) is not None]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a verb, imported now; None for a name that is no verb."""
        return self._verbs[cmd_name].load() if cmd_name in self.list_commands(ctx) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs from the table; click's own version would import all of them."""
        rows = [(name, self._verbs[name].help) for name in self.list_commands(ctx)]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


@click.pass_context
def _help_unless_verb(context: click.Context) -> None:
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def _epilog() -> str:
    codes = "\n".join(f"  {code:<5}{meaning}" for code, meaning in EXIT_CODES.items())
    return f"\b\nExit codes:\n{codes}\n\n\b\nKVMON_DEBUG=1 adds the traceback to an error."


cli = VerbGroup(
    VERBS,
    help="Watch the KV-cache allocator of an LLM inference engine, live or after a crash.",
    epilog=_epilog(),
)
click.version_option(__version__, "--version", "-V", prog_name="kvmon", message="%(prog)s %(version)s")(cli)


def run(arguments: Sequence[str], *, debug: bool = False) -> int:
    """Run one command line and return its exit code (see EXIT_CODES); every error becomes one line on stderr.

    `debug` prints the traceback above that line.
    """
    try:
        with cli.make_context("kvmon", list(arguments)) as context:
            cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as done:
        return done.exit_code
    except (KeyboardInterrupt, click.Abort):
        return 130
    except BrokenPipeError:
        _give_up_output()
        return 141
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else "kvmon"
        return _fail(f"{error.format_message()} See '{path} --help'.", 2, debug)
    except click.ClickException as error:
        return _fail(error.format_message(), 2, debug)
    except KvmonError as error:
        return _fail(str(error), error.exit_code, debug)
    except OSError as error:
        _give_up_output()
        where = f" ({error.filename})" if error.filename else ""
        if error.errno in _IMPOSSIBLE:
            return _fail(f"there can be no such path{where}: {error.strerror}: give another one", 3, debug)
        return _fail(f"the machine refused{where}: {error.strerror or error}: check permissions and disk", 4, debug)
    except MemoryError as error:
        what = f"{error}" or "no memory left"
        return _fail(f"the machine refused: {what[0].lower()}{what[1:]}: take a smaller pool or input", 4, debug)
    except Exception as error:
        hint = "" if debug else "; set KVMON_DEBUG=1 for the traceback"
        return _fail(f"internal error: {type(error).__name__}: {error}{hint}", 70, debug)
    return 0


def _give_up_output() -> None:
    """Let go of what standard output would not take.

    The interpreter flushes it once more as it ends, would complain, and change the exit code.
    """
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    line = " ".join(message.split())
    if len(line) > _LONGEST:  # what somebody gave is quoted, whatever its length
        line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
    click.echo(f"kvmon: {line}", err=True)
    return code


class _Closed(io.TextIOBase):
    """Standard output that the caller closed: an answer that is written there is lost, and that is an error."""

    def write(self, text: str, /) -> int:
        raise OSError(errno.EBADF, "standard output is closed")


def entry_point() -> None:
    """The console script: shell completion, then `run` with the process's arguments and environment."""
    if sys.stderr is None:  # the caller closed it: what would be written there is not wanted
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
    if sys.stdout is None:
        sys.stdout = _Closed()
    elif isinstance(getattr(sys.stdout, "buffer", None), io.RawIOBase):
        # PYTHONUNBUFFERED: a raw stream drops what its reader or a full disk did not take, and says nothing.
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(sys.stdout.buffer), sys.stdout.encoding, sys.stdout.errors, line_buffering=True
        )
    instruction = os.environ.get("_KVMON_COMPLETE")
    if instruction:
        from click.shell_completion import shell_complete

        sys.exit(shell_complete(cli, {}, "kvmon", "_KVMON_COMPLETE", instruction))
    sys.exit(run(sys.argv[1:], debug=os.environ.get("KVMON_DEBUG", "") not in ("", "0")))
