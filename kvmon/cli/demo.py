"""`kvmon demo`: two engines under the same traffic, recorded by the real probe, watched live, with an exporter beside
them.

Wiring only: `demo_engine.py` is the engines' process, `watch.py` follows what they record, `kvmon.report.demo` draws.
Invariant: however it ends, no process stays, and no directory that was not asked for.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvmon.cli.demo_plan import CHUNK_TOKENS, PREFIX_TOKENS
from kvmon.errors import ConfigError, SystemRefused

if TYPE_CHECKING:
    from rich.console import Console

    from kvmon.cli.watch import Watch
    from kvmon.report.demo import DemoFacts

__all__ = ["EngineProcess", "command"]

_FRAME_SECONDS = 0.2
_LINE_SECONDS = 2.0
_STOP_SECONDS = 10.0


@click.command("demo")
@click.option(
    "--seed", default=0, show_default=True, help="Another seed is other traffic; the same one the same numbers."
)
@click.option("--seconds", default=30.0, show_default=True, help="How long it runs.")
@click.option("--speed", default=5.0, show_default=True, help="How much faster than real the engines serve.")
@click.option("--dir", "directory", type=click.Path(path_type=Path, readable=False), help="Record here, and keep it.")
@click.option("--keep", is_flag=True, help="Keep the recording; without --dir in a new temporary directory.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port of the metrics.  [default: 10490, or any free one]")
@click.option("--no-exporter", is_flag=True, help="Serve no metrics.")
@click.option("--plain", is_flag=True, help="Print a line now and then; so it is where the output is no terminal.")
def command(
    seed: int,
    seconds: float,
    speed: float,
    directory: Path | None,
    keep: bool,
    port: int | None,
    no_exporter: bool,
    plain: bool,
) -> None:
    """Watch fragmentation happen: the same traffic through a contiguous and a paged KV pool, side by side.

    Needs no GPU and ends by itself. Everything is real but the model: scheduler, allocators, probe, recording, fold and
    exporter; the time of a step comes from a formula.
    """
    if not 0.5 <= seconds <= 3600:
        raise ConfigError(f"{seconds:g} s is no length for a demo: give 0.5 to 3600")
    if not 0.1 <= speed <= 100:
        raise ConfigError(f"{speed:g} times real speed is not possible: give 0.1 to 100")
    if seed < 0:
        raise ConfigError(f"{seed} is no seed: give 0 or more")
    if no_exporter and port is not None:
        raise ConfigError("--no-exporter and --port exclude each other: give one of them")

    from kvmon.cli.console import QuietPipe
    from kvmon.cli.live import signals_interrupt
    from kvmon.cli.patience import patience
    from kvmon.cli.watch import Watch
    from kvmon.exporter.warmup import warm_up
    from kvmon.report.demo import DemoFacts

    console = QuietPipe()
    kept = keep or directory is not None
    with signals_interrupt(), ExitStack() as stack:
        where = stack.enter_context(_recording_directory(directory, keep))
        metrics = None if no_exporter else stack.enter_context(_exporter(where, port))
        facts = DemoFacts(seed, seconds, speed, PREFIX_TOKENS, CHUNK_TOKENS, str(where), metrics)
        engines = stack.enter_context(EngineProcess(where, seed, seconds, speed))
        with patience():
            warm_up()
            engines.wait_until_ready()
        watch = Watch(where)
        stack.callback(watch.close)
        whole = _show(watch, engines, facts, console, plain or not console.is_terminal)
        _say_goodbye(watch, facts, console, kept=kept, whole=whole)


class EngineProcess:
    """The process of the two engines; ends with its `with` block at the latest.

    Raises SystemRefused where the process cannot run.
    """

    def __init__(self, directory: Path, seed: int, seconds: float, speed: float) -> None:
        arguments = [str(directory), str(seed), repr(seconds), repr(speed)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kvmon.cli.demo_engine", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, *reason: object) -> None:
        self.stop()

    def wait_until_ready(self) -> None:
        """Wait until the engines could begin."""
        stdout = self._process.stdout
        if stdout is None or stdout.readline() != "ready\n":
            raise SystemRefused(self._last_words())

    def go(self) -> None:
        """Let them begin."""
        if self._process.stdin is not None:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()

    @property
    def running(self) -> bool:
        """Whether they are still at it.

        Raises SystemRefused when they failed.
        """
        code = self._process.poll()
        if code not in (None, 0):
            raise SystemRefused(self._last_words())
        return code is None

    def stop(self) -> None:
        """End the process: by the end of its input, and by force if that is not enough."""
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def _last_words(self) -> str:
        words = "" if self._process.stderr is None else self._process.stderr.read().strip()
        return f"the demo's engines ended: {words.splitlines()[-1] if words else 'no reason was given'}"


@contextmanager
def _recording_directory(directory: Path | None, keep: bool) -> Iterator[Path]:
    from tempfile import TemporaryDirectory, mkdtemp

    if directory is not None:
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise SystemRefused(f"cannot make {directory}: {error.strerror}; give another --dir") from None
        yield directory
    elif keep:
        yield Path(mkdtemp(prefix="kvmon-demo-"))
    else:
        with TemporaryDirectory(prefix="kvmon-demo-") as made:
            yield Path(made)


@contextmanager
def _exporter(directory: Path, port: int | None) -> Iterator[str]:
    """Serve the metrics of `directory` in a thread; the address of the page."""
    from tempfile import TemporaryDirectory
    from threading import Thread

    from kvmon import __version__
    from kvmon.exporter.app import create_app
    from kvmon.exporter.server import DEFAULT_PORT, Address, HttpServer, ServerConfig
    from kvmon.exporter.sidecar import Sidecar

    with TemporaryDirectory(prefix="kvmon-demo-") as state_dir:
        sidecar = Sidecar([directory], state_dir=Path(state_dir))
        app = create_app(sidecar.render, sidecar.health, sidecar.ready, __version__)
        host = "127.0.0.1"
        try:
            server = HttpServer(app, ServerConfig(listen=(Address(host, DEFAULT_PORT if port is None else port),)))
        except SystemRefused:
            if port is not None:
                raise
            server = HttpServer(app, ServerConfig(listen=(Address(host, 0),)))
        thread = Thread(target=server.run, name="kvmon-demo-exporter", daemon=True)
        sidecar.start()
        thread.start()
        try:
            yield f"http://{server.addresses[0]}/metrics"
        finally:
            server.stop()
            thread.join(_STOP_SECONDS)
            sidecar.stop()


def _show(watch: Watch, engines: EngineProcess, facts: DemoFacts, console: Console, plain: bool) -> bool:
    """Let the engines run and show them; False when somebody stopped them."""
    if plain:
        _announce(facts)
        engines.go()
        return _print_lines(watch, engines)
    return _draw(watch, engines, facts, console)


def _announce(facts: DemoFacts) -> None:
    click.echo(f"recording to {facts.directory}")
    if facts.metrics is not None:
        click.echo(f"metrics at {facts.metrics}")


def _print_lines(watch: Watch, engines: EngineProcess) -> bool:
    from kvmon.report.demo import progress_line

    began = printed = time.monotonic()
    while engines.running:
        watch.poll(_FRAME_SECONDS)
        time.sleep(_FRAME_SECONDS / 2)
        if time.monotonic() - printed >= _LINE_SECONDS:
            printed = time.monotonic()
            click.echo(progress_line(watch.screen(holders=0), printed - began))
    return True


def _draw(watch: Watch, engines: EngineProcess, facts: DemoFacts, console: Console) -> bool:
    from kvmon.cli.live import LiveScreen, ascii_only
    from kvmon.report.demo import Ticker, demo_screen

    plain, ticker = ascii_only(console), Ticker()
    with LiveScreen(console) as live:
        engines.go()
        began = time.monotonic()
        while engines.running:
            watch.poll(_FRAME_SECONDS)
            screen = watch.screen(holders=3)
            ticker.note(screen)
            width, height = live.size
            elapsed = time.monotonic() - began
            live.draw(demo_screen(screen, ticker, facts, elapsed, width, height, ascii_only=plain))
            if not live.wait(_FRAME_SECONDS):
                engines.stop()
                return False
    return True


def _say_goodbye(watch: Watch, facts: DemoFacts, console: Console, *, kept: bool, whole: bool) -> None:
    from rich.text import Text

    from kvmon.report.demo import closing

    watch.catch_up()
    for paragraph in closing(watch.screen(), facts, kept=kept, whole=whole):
        console.print(Text(paragraph))
        if not paragraph.startswith("    ") and not paragraph.endswith(":"):
            console.print()
