"""Options of `kvmon replay` for what-ifs, and what they mean together.

Wiring only: `kvmon.replay` replays and compares, `kvmon.cli.whatif_output` says it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvmon.errors import ConfigError

if TYPE_CHECKING:
    from kvmon.replay.asked import Answered
    from kvmon.replay.changes import WhatIf
    from kvmon.replay.recordings import Recording

    Read = tuple[Recording, str]

__all__ = ["Asked", "answers", "asked_of", "parsed", "read_asked", "what_if_options"]

_OPTIONS = (
    click.option(
        "--what-if",
        "what_if",
        metavar="CHANGE",
        multiple=True,
        help="Replay the requests with a change, such as allocator=paged,block=16,pool=+20%; may be repeated.",
    ),
    click.option("--no-what-if", is_flag=True, help="Do not replay what would have avoided the findings."),
    click.option("--sweep", metavar="RANGES", help='Every combination, such as "block=16,32,64 pool=80%..120%:10%".'),
    click.option("--executor", help="Who works on a sweep: processes, ray or none.  [default: processes]"),
    click.option("--workers", type=int, help="How many of them.  [default: one a core]"),
    click.option(
        "--also",
        multiple=True,
        metavar="PATH",
        type=click.Path(path_type=Path, readable=False),
        help="With --sweep: one more recording or capture; may be repeated.",
    ),
)


@dataclass(frozen=True)
class Asked:
    """What was asked for; `of_itself` when it was nothing in particular."""

    what_ifs: tuple[str, ...] = ()
    sweep: str | None = None
    executor: str = "processes"
    workers: int | None = None
    also: tuple[Path, ...] = ()
    nothing: bool = False

    @property
    def of_itself(self) -> bool:
        """Whether only what would have avoided the findings is replayed."""
        return not self.nothing and not self.what_ifs and self.sweep is None


def what_if_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def asked_of(options: dict[str, Any]) -> Asked:
    """The options as one. Raises ConfigError where they contradict each other."""
    asked = Asked(
        options["what_if"],
        options["sweep"],
        options["executor"] or "processes",
        options["workers"],
        options["also"],
        options["no_what_if"],
    )
    if asked.nothing and (asked.what_ifs or asked.sweep is not None):
        raise ConfigError("--no-what-if asks for none: leave it out, or --what-if and --sweep")
    if asked.sweep is None:
        for name in ("executor", "workers", "also"):
            if options[name]:
                raise ConfigError(f"--{name} is about a sweep: give --sweep too")
    return asked


def parsed(asked: Asked) -> list[WhatIf]:
    """The changes that were asked for. Raises ConfigError for one that is none."""
    from kvmon.replay.changes import parse_what_if
    from kvmon.replay.sweep import parse_sweep

    return [
        *(parse_what_if(text) for text in asked.what_ifs),
        *(parse_sweep(asked.sweep) if asked.sweep is not None else ()),
    ]


def read_asked(path: Path, asked: Asked) -> list[Read]:
    """Every stream of `path` and of what else a sweep is over, with the name of the file where there are several. What
    is too long to be replayed unasked is not kept."""
    from kvmon.cli.streams import read_recordings
    from kvmon.replay.asked import MOST_STEPS

    return [
        (recording, source.name if asked.also else "")
        for source in (path, *asked.also)
        for recording in read_recordings(source, most_steps=MOST_STEPS if asked.of_itself else None)
    ]


def answers(read: Sequence[Read], asked: Asked) -> list[Answered]:
    """What was asked, replayed. Raises ConfigError for an impossible change, InputError where nothing is to replay."""
    from kvmon.cli.patience import patience
    from kvmon.replay.asked import avoided, compared, swept

    what_ifs = parsed(asked)
    recordings = [recording for recording, _ in read]
    with patience():
        if asked.of_itself:
            return avoided(recordings)
        if asked.sweep is None:
            return compared(recordings, what_ifs)
    with _progress() as progress:
        found = swept(
            recordings,
            what_ifs,
            executor=asked.executor,
            workers=asked.workers,
            ray_address=os.environ.get("RAY_ADDRESS"),
            progress=progress,
        )
    return [replace(one, source=source) for one, (_, source) in zip(found, read, strict=True)]


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error while what-ifs are answered; nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda done, of: None
        return
    with click.progressbar(length=1, label="replaying", file=sys.stderr) as bar:

        def show(done: int, of: int) -> None:
            bar.length = of
            bar.update(done - bar.pos)

        yield show
