"""`kvmon doctor`: why does nothing appear, or less than expected; one line a finding, each with what to do.

Adapters say what they would do, recordings (`doctor_streams`) what happened. No engine is imported and nothing is kept;
the standard library is enough, so that it works in an engine's environment.
"""

from __future__ import annotations

import json
import os
import platform
import stat
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvmon import __version__
from kvmon.cli.doctor_streams import Stream, read_stream
from kvmon.errors import ConfigError, RecordingError, SystemRefused

if TYPE_CHECKING:
    from kvmon.adapters.settings import Settings
    from kvmon.recording import Live

__all__ = ["Finding", "command", "directory_findings", "environment_findings"]

OK, NOTE, PROBLEM = "ok", "note", "problem"
_GROUP, _PLUGIN = "vllm.general_plugins", "kvmon"
_STALL_SECONDS = 10.0  # as the exporter's default, whose module needs numpy


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it is (`ok`, `note`, `problem`), and in words what was found and what to do."""

    about: str
    how: str
    words: str


@click.command("doctor")
@click.argument("directory", required=False, envvar="KVMON_DIR", type=click.Path(path_type=Path, readable=False))
@click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
def command(directory: Path | None, json_: bool) -> None:
    """Say what is installed, what would record at which fidelity, and whether DIRECTORY (default: KVMON_DIR) works.

    Run it where the engine runs: in its environment, as its user. Exit code 0 when nothing is in the way, 1 otherwise.
    """
    found = [*environment_findings(os.environ), *directory_findings(directory, os.environ)]
    if json_:
        click.echo(json.dumps({"version": 1, "findings": [asdict(one) for one in found]}, indent=2))
    else:
        width = min(max(len(one.about) for one in found), 24)
        for one in found:
            mark = {OK: "ok", NOTE: "--", PROBLEM: "!!"}[one.how]
            text, indent = _printable(f"{mark} {one.about:<{width}}  {one.words}"), " " * (width + 5)
            for line in textwrap.wrap(text, 80, subsequent_indent=indent, break_on_hyphens=False):
                click.echo(line)
    if any(one.how == PROBLEM for one in found):
        raise click.exceptions.Exit(1)


def environment_findings(environment: Mapping[str, str]) -> Iterator[Finding]:
    """What is installed here, and what the environment says."""
    from kvmon.adapters.registry import adapters

    yield Finding("kvmon", OK, f"{__version__}, Python {platform.python_version()}")
    settings, problem = _settings(environment)
    if problem:
        yield Finding("settings", PROBLEM, problem)
    elif settings is None:
        yield Finding("settings", NOTE, "KVMON_DIR is not set: engines that load the plugin record nothing")
    else:
        name = settings.engine or "each adapter's own"
        yield Finding("settings", OK, f"KVMON_DIR={settings.directory}, engine name: {name}")
        given = environment["KVMON_DIR"].strip()
        if not os.path.isabs(given):
            yield Finding("settings", NOTE, f"KVMON_DIR={given} is another place in every process: give a whole path")
    for adapter in adapters():
        one = adapter.declaration
        version = one.installed()
        if version is None:
            yield Finding(one.name, NOTE, "not installed here")
            continue
        support = one.support(version, trust_untested=bool(settings and settings.trust_untested))
        if support.grade == "exact":
            yield Finding(one.name, OK, f"{version}: would be recorded exactly")
        else:
            # what records by itself is meant to; anything else may be here as somebody's dependency
            how = PROBLEM if support.grade == "refused" and one.by_itself else NOTE
            yield Finding(one.name, how, f"{version}: {support.grade}. {support.why}")
        if one.name == "vllm":
            yield _plugin(environment)


def _settings(environment: Mapping[str, str]) -> tuple[Settings | None, str]:
    """What the environment says, None without KVMON_DIR; and what is wrong with it, which is looked at in any case."""
    from kvmon.adapters.settings import Settings

    try:
        Settings.from_environment({**environment, "KVMON_DIR": "/"})
        return Settings.from_environment(environment), ""
    except ConfigError as error:
        return None, str(error)
    except OSError as error:  # no current directory
        return None, f"KVMON_DIR={environment.get('KVMON_DIR')} cannot be found ({error.strerror}): give a whole path"


def _plugin(environment: Mapping[str, str]) -> Finding:
    """Whether vLLM would find the entry point, and would be let to."""
    if not any(point.name == _PLUGIN for point in entry_points(group=_GROUP)):
        return Finding(
            "vllm plugin", PROBLEM, "not visible: install kvmon into this environment (pip install --no-deps kvmon)"
        )
    allowed = environment.get("VLLM_PLUGINS")
    if allowed is not None and _PLUGIN not in allowed.split(","):
        return Finding("vllm plugin", PROBLEM, f"VLLM_PLUGINS={allowed} keeps it out: add '{_PLUGIN}' to the list")
    return Finding("vllm plugin", OK, "visible; vLLM loads it in every process")


def directory_findings(directory: Path | None, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Whether engines can record there, and what those that did say of themselves."""
    if directory is None:
        yield Finding("directory", PROBLEM, "none to look at: name one, or set KVMON_DIR")
        return
    try:
        status = os.stat(directory)
    except (FileNotFoundError, NotADirectoryError):
        yield Finding("directory", PROBLEM, f"{directory} does not exist: make it before the engine starts, mode 0700")
        return
    except OSError as error:
        why = error.strerror
        yield Finding("directory", PROBLEM, f"{directory} cannot be looked at ({why}): run this as the engine's user")
        return
    if not stat.S_ISDIR(status.st_mode):
        hint = f"; 'kvmon replay {directory}' reads a capture" if directory.suffix == ".kvmon" else ""
        yield Finding("directory", PROBLEM, f"{directory} is no directory: give the one that engines record into{hint}")
        return
    from kvmon.recording import find_streams

    settings, _ = _settings(environment)
    streams: list[Stream] = []
    said: list[Finding] = []
    try:
        paths = find_streams(directory)
        said += _beside(directory, paths)
        streams = [read_stream(path) for path in paths]
    except (RecordingError, SystemRefused, OSError) as error:
        said.append(Finding("recordings", PROBLEM, str(error)))
    alive = [stream for stream in streams if stream.alive]
    yield _writable(directory, recorded=bool(alive))
    yield _readable(directory, status.st_mode, settings)
    if settings is not None and os.path.realpath(settings.directory) != os.path.realpath(directory):
        yield Finding("directory", NOTE, f"engines that start here record into {settings.directory}, which is another")
    yield from _room(directory, alive, settings)
    yield from said
    for stream in streams:
        yield from _said_by(stream)


def _writable(directory: Path, *, recorded: bool) -> Finding:
    """Whether this user could record: make a file, give it room, lock it. A sidecar needs none of this."""
    import fcntl

    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            os.posix_fallocate(file.fileno(), 0, 4096)
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        why = f"{directory} cannot be written by this user ({error.strerror})"
        if recorded:
            return Finding("directory", NOTE, f"{why}: enough for a sidecar; an engine records there")
        return Finding("directory", PROBLEM, f"{why}: run this as the engine's user, or give it the directory")
    return Finding("directory", OK, f"{directory} can be written")


def _readable(directory: Path, mode: int, settings: Settings | None) -> Finding:
    shown, open_to_group = f"mode {stat.S_IMODE(mode):04o}", mode & 0o050 == 0o050
    if settings is not None and settings.group_readable and not open_to_group:
        words = f"KVMON_GROUP is set, but its group may not enter ({shown}): chmod g+rx {directory}"
        return Finding("readers", PROBLEM, words)
    if settings is not None and settings.group_readable:
        return Finding("readers", OK, f"{shown} and KVMON_GROUP: the owner and its group")
    return Finding("readers", OK, f"{shown}: its owner alone reads recordings; KVMON_GROUP=1 lets its group do so too")


def _room(directory: Path, alive: list[Stream], settings: Settings | None) -> Iterator[Finding]:
    """What is free against what ranks will still take: one that is to come, or those that record now."""
    from kvmon.recording.writer import DEFAULT_BUDGET
    from kvmon.units import format_bytes

    try:
        system = os.statvfs(directory)
    except OSError as error:
        yield Finding("room", PROBLEM, f"how much is free cannot be seen ({error.strerror}): run as the engine's user")
        return
    free, budget = system.f_bavail * system.f_frsize, settings.budget if settings else DEFAULT_BUDGET
    wanted = sum(max(0, budget - stream.bytes) for stream in alive) if alive else budget
    words = f"{format_bytes(free)} free, a rank keeps up to {format_bytes(budget)}"
    if free < wanted:
        words += f", {format_bytes(wanted)} are still to come: make room, or set a smaller KVMON_BUDGET"
    short = NOTE if alive else PROBLEM  # an engine that records already may have a budget of its own
    yield Finding("room", short if free < wanted else OK, words)


def _beside(directory: Path, streams: list[Path]) -> Iterator[Finding]:
    """What else is in a directory that could be a recording, and whether there is none at all."""
    folders = [entry for entry in sorted(directory.iterdir()) if entry.is_dir() and not entry.is_symlink()]
    others = [entry for entry in folders if entry not in streams]
    closed = [entry for entry in others if not os.access(entry, os.R_OK | os.X_OK, effective_ids=True)]
    for entry in closed:
        words = "may not be entered by this user: run as the engine's user or set KVMON_GROUP"
        yield Finding(entry.name, PROBLEM, words)
    if not streams and not closed:
        foreign = f" ({others[0].name} and what else is there is no recording)" if others else ""
        words = f"none yet{foreign}: an engine begins one when it has built its scheduler; see its log"
        yield Finding("recordings", NOTE, words)


def _said_by(stream: Stream) -> Iterator[Finding]:
    """What a stream says: how its engine is, then everything that makes it less than it could be."""
    name, live = stream.name, stream.live
    if stream.problem:
        yield Finding(name, PROBLEM, stream.problem)
        return
    if live is not None:
        yield _life(stream, live)
    config = stream.config or {}
    if config.get("reduced"):
        yield Finding(name, PROBLEM, f"records less than it could: {config['reduced']}")
    elif (declared := _declared(config)) and declared != config.get("fidelity"):
        words = (
            f"records less than it could, '{config.get('fidelity')}' and not '{declared}': the engine's log says why"
        )
        yield Finding(name, PROBLEM, words)
    if live is not None and live.lost:
        reasons = "; ".join(_reasons(live.lost_why)) or "the reason is not known"
        yield Finding(name, PROBLEM, f"{live.lost:,} events could not be written: {reasons}")
    if stream.refused:
        words = "another engine of this name was turned away: set KVMON_ENGINE for one of them"
        yield Finding(name, PROBLEM, f"{words} (it tried {stream.refused:,} times)" if stream.refused > 1 else words)


def _life(stream: Stream, live: Live) -> Finding:
    from kvmon.recording.layout import SEALED_CLOSED
    from kvmon.units import format_duration

    age = stream.age_seconds
    heard = "" if age is None else f", last heard of {format_duration(age)} ago"
    config = stream.config or {}
    adapter = f"{config.get('adapter', 'unknown adapter')} {config.get('engine_version', '')}".strip()
    who = f"{adapter}, {config.get('fidelity', 'exact')}" if config else "it has not said yet what it is"
    fields = stream.last_step.fields if stream.last_step is not None else {}
    works = bool(fields.get("running") or fields.get("waiting"))
    if live.state == SEALED_CLOSED and not stream.alive:
        return Finding(stream.name, OK, f"ended in order; {who}")
    if stream.alive is None:
        words = f"may be alive or not: no permission for its lock{heard}; {who}: run as the engine's user"
        return Finding(stream.name, PROBLEM, words)
    if not stream.alive:
        words = f"dead, killed or crashed{heard}; {who}: 'kvmon replay' reads what it left"
        return Finding(stream.name, PROBLEM, words)
    if works and age is not None and age > _STALL_SECONDS:
        words = f"stalled, has work but records nothing{heard}; {who}: it hangs, or kvmon was taken off; see its log"
        return Finding(stream.name, PROBLEM, words)
    return Finding(stream.name, OK, f"alive{heard}; {who}")


def _declared(config: Mapping[str, Any]) -> str:
    """The fidelity that the adapter of a recording has at its best; empty for one that is not in the registry."""
    from kvmon.adapters.registry import ADAPTERS, adapter

    name = config.get("adapter")
    return adapter(name).declaration.fidelity if isinstance(name, str) and name in ADAPTERS else ""


def _reasons(lost_why: int) -> list[str]:
    """The probe's own reasons for a loss, as a segment's header has them."""
    from kvmon.probe import Loss

    words = {
        Loss.DISK: "no room, or the directory went away",
        Loss.SECOND_WRITER: "another engine took its name",
        Loss.THREAD: "the engine wrote from a second thread",
        Loss.FORK: "a forked child was turned away",
        Loss.VALUE: "values that fit no record",
        Loss.HOOK: "a hook failed and was switched off; see the engine's log",
    }
    return [text for reason, text in words.items() if reason & lost_why]


def _printable(text: str) -> str:
    """Names are what somebody chose: nothing of them may move the cursor, or be more than the terminal can show."""
    shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return shown.encode(encoding, "backslashreplace").decode(encoding)
