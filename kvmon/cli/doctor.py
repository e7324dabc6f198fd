"""`kvmon doctor`: why does nothing appear, or less than expected; one line a finding, each with what to do.

Wiring only: adapters say what they would do, the recording says what happened. No engine is imported, nothing is kept.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from pathlib import Path

import click

from kvmon import __version__
from kvmon.errors import ConfigError, NewerFormatError, RecordingError, SystemRefused

__all__ = ["Finding", "command", "directory_findings", "environment_findings"]

OK, NOTE, PROBLEM = "ok", "note", "problem"
_GROUP, _PLUGIN = "vllm.general_plugins", "kvmon"


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
    found = [*environment_findings(os.environ), *directory_findings(directory)]
    if json_:
        click.echo(json.dumps({"version": 1, "findings": [asdict(one) for one in found]}, indent=2))
    else:
        width = max(len(one.about) for one in found)
        for one in found:
            mark = {OK: "ok", NOTE: "--", PROBLEM: "!!"}[one.how]
            click.echo(click.wrap_text(f"{mark} {one.about:<{width}}  {one.words}", 80, "", " " * (width + 5)))
    if any(one.how == PROBLEM for one in found):
        raise click.exceptions.Exit(1)


def environment_findings(environment: Mapping[str, str]) -> Iterator[Finding]:
    """What is installed here, and what the environment says."""
    from kvmon.adapters.registry import adapters
    from kvmon.adapters.settings import Settings

    yield Finding("kvmon", OK, f"{__version__}, Python {platform.python_version()}")
    try:
        settings = Settings.from_environment(environment)
    except ConfigError as error:
        yield Finding("settings", PROBLEM, str(error))
        settings = None
    else:
        if settings is None:
            yield Finding("settings", NOTE, "KVMON_DIR is not set: engines that load the plugin record nothing")
        else:
            name = settings.engine or "each adapter's own"
            yield Finding("settings", OK, f"KVMON_DIR={settings.directory}, engine name: {name}")
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


def directory_findings(directory: Path | None) -> Iterator[Finding]:
    """Whether engines can record there, and what those that did say of themselves."""
    if directory is None:
        yield Finding("directory", NOTE, "none given: name one, or set KVMON_DIR")
        return
    if not directory.exists():
        yield Finding("directory", PROBLEM, f"{directory} does not exist: make it before the engine starts, mode 0700")
        return
    if not directory.is_dir():
        yield Finding("directory", PROBLEM, f"{directory} is no directory: give the one that engines record into")
        return
    yield _writable(directory)
    yield _room(directory)
    try:
        yield from _streams(directory)
    except (RecordingError, NewerFormatError, SystemRefused, OSError) as error:
        yield Finding("recordings", PROBLEM, str(error))


def _writable(directory: Path) -> Finding:
    try:
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        return Finding(
            "directory",
            PROBLEM,
            f"{directory} cannot be written by this user ({error.strerror}): run this as the engine's user, or give it"
            " the directory",
        )
    shared = directory.stat().st_mode & 0o050
    reach = "its group can read it" if shared == 0o050 else "its owner alone can read it"
    return Finding("directory", OK, f"{directory} can be written; {reach}")


def _room(directory: Path) -> Finding:
    from kvmon.recording.writer import DEFAULT_BUDGET
    from kvmon.units import format_bytes

    free = shutil.disk_usage(directory).free
    if free < DEFAULT_BUDGET:
        return Finding(
            "room",
            PROBLEM,
            f"{format_bytes(free)} free, a rank keeps up to {format_bytes(DEFAULT_BUDGET)}: make room, or set a"
            " smaller KVMON_BUDGET",
        )
    return Finding("room", OK, f"{format_bytes(free)} free, a rank keeps up to {format_bytes(DEFAULT_BUDGET)}")


def _streams(directory: Path) -> Iterator[Finding]:
    """What each engine said when it was last heard of."""
    from kvmon.exporter.follow import DirectoryFollower

    follower = DirectoryFollower([directory], fold_dead=True)
    try:
        follower.look()
        for problem in follower.problems.values():
            yield Finding("recordings", PROBLEM, problem)
        follower.catch_up()
        if not follower.streams and not follower.problems:
            yield Finding(
                "recordings", NOTE, "none yet: an engine begins one when it has built its scheduler; see its log"
            )
        for stream in follower.streams:
            name = f"{stream.engine}-{stream.rank}"
            if stream.problem:
                yield Finding(name, PROBLEM, stream.problem)
                continue
            config = stream.state.config
            life = "ended in order" if stream.ended else stream.life.value
            age = stream.heartbeat_age_ns
            heard = "" if age is None or stream.ended else f", last heard of {age / 1e9:,.1f} s ago"
            adapter = f"{config.get('adapter', 'unknown adapter')} {config.get('engine_version', '')}".strip()
            yield Finding(name, OK if life != "stalled" else PROBLEM, f"{life}{heard}; {adapter}, {stream.fidelity}")
            if config.get("reduced"):
                yield Finding(name, PROBLEM, f"records less than it could: {config['reduced']}")
            if stream.lost_events:
                reasons = "; ".join(_why(stream.path)) or "segments were gone before they were read"
                yield Finding(name, PROBLEM, f"{stream.lost_events:,} events are missing: {reasons}")
            turned_away = stream.path / "refused"
            if turned_away.exists():
                yield Finding(
                    name, PROBLEM, "another engine of this name was turned away: set KVMON_ENGINE for one of them"
                )
    finally:
        follower.close()


def _why(path: Path) -> list[str]:
    """The probe's own reasons, as the newest segment's header has them."""
    from kvmon.probe import Loss
    from kvmon.recording.reader import StreamReader

    reader = StreamReader(path)
    try:
        while reader.poll() is not None:
            pass
        live = reader.live()
    finally:
        reader.close()
    words = {
        Loss.DISK: "no room, or the directory went away",
        Loss.THREAD: "the engine wrote from a second thread",
        Loss.FORK: "a forked child was turned away",
        Loss.VALUE: "values that fit no record",
        Loss.HOOK: "a hook failed and was switched off; see the engine's log",
    }
    return [text for reason, text in words.items() if live is not None and reason & live.lost_why]
