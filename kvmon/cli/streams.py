"""Streams of a recording or capture, for the verbs that diagnose; what could not be read is said on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from kvmon.cli.capture import progress_of_words
from kvmon.cli.patience import patience
from kvmon.errors import ConfigError, InputError

if TYPE_CHECKING:
    from kvmon.replay import StreamDiagnosis
    from kvmon.replay.recordings import Recording
    from kvmon.state import StreamState

__all__ = [
    "damage_told",
    "files_of",
    "missing",
    "read_recordings",
    "read_streams",
    "reading",
    "say_damage",
    "sees_the_cache_alone",
]

T = TypeVar("T")


def read_streams(path: Path | None) -> list[StreamDiagnosis]:
    """Diagnose `path` with a bar where it takes a while. Raises ConfigError without a
    path, InputError where it is neither file nor directory."""
    if path is None:
        raise ConfigError("nothing to look at: give a recording directory or a capture, or set KVMON_DIR")
    from kvmon.replay import diagnose_path

    return _read(path, diagnose_path, lambda streams: streams)


def read_recordings(path: Path, *, most_steps: int | None = None) -> list[Recording]:
    """The same, with the demand of each stream of at most so many steps, for what-ifs."""
    from kvmon.replay import recordings

    read = partial(recordings.read_recordings, most_steps=most_steps)
    return _read(path, read, lambda found: [recording.stream for recording in found])


def _read(path: Path, read: Callable[..., list[T]], streams_of: Callable[[list[T]], list[StreamDiagnosis]]) -> list[T]:
    with reading([path]) as advance:
        found = read(path, advance)
    say_damage(path, [damage for stream in streams_of(found) for damage in stream.damage[:1]])
    return found


def files_of(path: Path) -> list[Path]:
    """What is read of a source: a capture, or the streams of a recording directory."""
    return [entry for entry in path.iterdir() if entry.is_dir()] if path.is_dir() else [path]


@contextmanager
def reading(paths: Sequence[Path], label: str = "reading") -> Iterator[Callable[[int], None]]:
    """A bar for the words that are read of these sources; what they are told by. Until the first ones it may be the
    kernels that are compiled, and is said to be."""
    files = [file for path in paths for file in files_of(path)]
    with progress_of_words(files, label) as tell, ExitStack() as until_the_first:
        until_the_first.enter_context(patience())

        def advance(words: int) -> None:
            until_the_first.close()
            tell(words)

        yield advance


def say_damage(path: Path, damage: Iterable[str]) -> None:
    """Say on standard error what could not be read, each thing once."""
    for text in dict.fromkeys(damage):
        click.echo(f"kvmon: {path}: {text}; what is said is about the part that can be read", err=True)


def missing(stream: StreamDiagnosis) -> str | None:
    """What of a stream was not seen, in words; None where it is whole."""
    if stream.damage:
        return "part of it cannot be read"
    if stream.state.gaps or stream.state.lost_records:
        return "events are missing"
    if sees_the_cache_alone(stream.state):
        return "its adapter sees the prefix cache alone"
    return None if stream.state.converged else "its past is not known"


@contextmanager
def damage_told(path: Path, found: Callable[[], Sequence[str]]) -> Iterator[None]:
    """Say what of `path` was found to be damaged meanwhile: on standard error, or in the error that ends it, which may
    be because of that."""
    try:
        yield
    except (ConfigError, InputError) as error:
        if damage := found():
            raise type(error)(f"{error}; part of it cannot be read: {damage[0]}") from None
        raise
    say_damage(path, found()[:1])


def sees_the_cache_alone(state: StreamState) -> bool:
    """Whether requests and free memory are unknown, because the adapter sees what enters and leaves the prefix cache
    and nothing else."""
    return state.config.get("fidelity") == "cache_only"
