"""`kvmon top`: watch the KV memory of the engines that record into a directory, running or dead, in the terminal.

Wiring only: `watch.py` follows, `kvmon.report` draws. Reads recordings and writes to the terminal, nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvmon.errors import ConfigError, RecordingError

if TYPE_CHECKING:
    from rich.console import Console

    from kvmon.cli.watch import Watch

__all__ = ["command"]

_ONE_LOOK = 0.3


@click.command("top")
@click.argument("directory", required=False, envvar="KVMON_DIR", type=click.Path(path_type=Path, readable=False))
@click.option("--engine", "engines", multiple=True, metavar="NAME", help="Show this engine only; may be repeated.")
@click.option("--once", is_flag=True, help="Print one frame and exit; so it is where the output is no terminal.")
@click.option("--json", "json_", is_flag=True, help="Print one frame as a JSON object and exit.")
@click.option("--interval", default=1.0, show_default=True, metavar="SECONDS", help="Time between two frames.")
@click.option(
    "--stall-seconds",
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Call an engine with pending work stalled after this much silence.",
)
def command(
    directory: Path | None,
    engines: tuple[str, ...],
    once: bool,
    json_: bool,
    interval: float,
    stall_seconds: float,
) -> None:
    """Watch the KV memory of the engines that record into DIRECTORY (default: KVMON_DIR).

    One panel a pool: its memory in order of address, what is free and the largest free block against what is needed,
    failures with their reason, who holds the most. A dead engine shows its last state and since when. Leave with q or
    Ctrl-C.
    """
    if directory is None:
        raise ConfigError("no directory to watch: give the one the engine records into, or set KVMON_DIR")
    if once and json_:
        raise ConfigError("--once and --json exclude each other: --json prints one frame as it is")
    if not 0.05 <= interval <= 3600:
        raise ConfigError(f"an interval of {interval:g} s is not possible: give 0.05 to 3600")
    if not stall_seconds > 0:
        raise ConfigError(f"stalled after {stall_seconds:g} s is always: give more than 0")

    from kvmon.cli.console import QuietPipe
    from kvmon.cli.patience import patience
    from kvmon.cli.watch import Watch
    from kvmon.exporter.warmup import warm_up

    console = QuietPipe(soft_wrap=False)
    watch = Watch(directory, engines=engines, stall_seconds=stall_seconds)
    try:
        with patience():
            warm_up()
            watch.catch_up()
        _check_engines(watch, engines)
        if once or json_ or not console.is_terminal:
            _print_frame(watch, console, json_)
        else:
            _live(watch, console, interval)
    finally:
        watch.close()


def _check_engines(watch: Watch, engines: tuple[str, ...]) -> None:
    unknown = [name for name in engines if name not in watch.engines]
    if unknown and watch.engines:
        there = ", ".join(sorted(watch.engines))
        raise RecordingError(f"no engine '{unknown[0]}' has recorded in {watch.directory}: there is {there}")


def _print_frame(watch: Watch, console: Console, json_: bool) -> None:
    import json
    import time

    from kvmon.cli.live import ascii_only
    from kvmon.report.terminal import render

    if any(stream.life.value == "alive" for stream in watch.streams()):
        time.sleep(_ONE_LOOK)  # an engine that runs is shown as it is now, not as it was before the past was read
        watch.catch_up()
    screen = watch.screen()
    if screen.problems and not screen.streams:
        raise RecordingError(screen.problems[0])
    if not screen.streams:
        raise RecordingError(f"no engine has recorded in {watch.directory}: start one with KVMON_DIR={watch.directory}")
    if json_:
        click.echo(json.dumps(screen.as_json(), sort_keys=True))
    else:
        console.print(render(screen, console.width, ascii_only=ascii_only(console)))


def _live(watch: Watch, console: Console, interval: float) -> None:
    from kvmon.cli.live import LiveScreen, ascii_only, signals_interrupt
    from kvmon.report.terminal import render

    plain = ascii_only(console)
    try:
        with signals_interrupt(), LiveScreen(console) as live:
            while True:
                watch.poll(interval / 2)
                width, height = live.size
                live.draw(render(watch.screen(), width, height, ascii_only=plain, hint="q quits"))
                if not live.wait(interval):
                    return
    except KeyboardInterrupt:
        return
