"""`kvmon demo`: two engines under the same traffic, recorded by the real probe, watched and judged live, with an
exporter beside them.

Wiring only: `demo_plan.py` says what runs, `demo_processes.py` leads the engines, `watch.py` follows what they record,
`kvmon.report.demo` draws. Invariant: however it ends, no process stays, and no directory that was not asked for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvmon.errors import ConfigError, SystemRefused

if TYPE_CHECKING:
    from rich.console import Console

    from kvmon.cli.demo_pace import Pace
    from kvmon.cli.demo_processes import EngineProcesses
    from kvmon.cli.watch import Watch
    from kvmon.report.demo import DemoFacts

__all__ = ["command"]

_FRAME_SECONDS = 0.2
_LINE_SECONDS = 2.0
_STOP_SECONDS = 10.0
_COMPILES_AFTER = 10.0  # seconds; engines that need not compile are there before
_STARTING = "kvmon: starting the engines; the first run on a machine compiles for about a minute ..."


@click.command("demo")
@click.argument("scenario", required=False)
@click.option("--list", "listing", is_flag=True, help="List the scenarios that it can show, and how long each takes.")
@click.option(
    "--seed", default=0, show_default=True, help="Another seed is other traffic; the same one the same numbers."
)
@click.option(
    "--seconds",
    type=float,
    help="How long, in the engines' time.  [default: 120; of a scenario, until its traffic ends]",
)
@click.option(
    "--speed", type=float, help="How much faster than the engines' time.  [default: 3; of a scenario, by its length]"
)
@click.option("--dir", "directory", type=click.Path(path_type=Path, readable=False), help="Record here, and keep it.")
@click.option("--keep", is_flag=True, help="Keep the recording; without --dir in a new temporary directory.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port of the metrics.  [default: 10490, or any free one]")
@click.option("--no-exporter", is_flag=True, help="Serve no metrics.")
@click.option("--plain", is_flag=True, help="Print a line now and then; so it is where the output is no terminal.")
@click.pass_context
def command(
    context: click.Context,
    /,
    scenario: str | None,
    listing: bool,
    seed: int,
    seconds: float | None,
    speed: float | None,
    directory: Path | None,
    keep: bool,
    port: int | None,
    no_exporter: bool,
    plain: bool,
) -> None:
    """Watch KV memory fail, and not fail: the same traffic through two engines, side by side.

    Without a SCENARIO a contiguous and a paged pool of the same size; with one (--list) the scenario and its healthy
    twin. Needs no GPU and ends by itself. The model is real and tiny; how long its steps take comes from a formula, so
    that the same seed gives the same failures on every machine.
    """
    if seconds is not None and not 0.5 <= seconds <= 3600:
        raise ConfigError(f"{seconds:g} s is no length for a demo: give 0.5 to 3600")
    if speed is not None and not 0.1 <= speed <= 100:
        raise ConfigError(f"{speed:g} times real speed is not possible: give 0.1 to 100")
    if seed < 0:
        raise ConfigError(f"{seed} is no seed: give 0 or more")
    if no_exporter and port is not None:
        raise ConfigError("--no-exporter and --port exclude each other: give one of them")
    if find_spec("torch") is None:
        raise ConfigError("the demo needs torch: pip install 'kvmon[engine]'")
    if listing:
        _only_seed(context)
        from kvmon.cli.demo_list import print_demos

        print_demos(seed)
        return

    from kvmon.cli.console import QuietPipe
    from kvmon.cli.demo_pace import pace_of
    from kvmon.cli.demo_plan import CONTEST_SECONDS, make_plan
    from kvmon.cli.demo_processes import EngineProcesses
    from kvmon.cli.live import signals_interrupt
    from kvmon.cli.patience import patience
    from kvmon.cli.watch import Watch
    from kvmon.exporter.warmup import warm_up
    from kvmon.report.demo import DemoFacts

    console = QuietPipe(highlight=False)
    with signals_interrupt(), ExitStack() as stack:
        traffic_seconds = seconds or CONTEST_SECONDS
        plan = make_plan(scenario, seed, traffic_seconds)
        where = stack.enter_context(_recording_directory(directory, keep))
        metrics = None if no_exporter else stack.enter_context(_exporter(where, port))
        engines = stack.enter_context(EngineProcesses(where, scenario, seed, traffic_seconds, list(plan.setups)))
        with patience(_STARTING, _COMPILES_AFTER):
            warm_up()
            engines.wait_until_ready()
            pace = pace_of(plan, scenario, seconds, speed)
        watch = Watch(where)
        stack.callback(watch.close)
        kept = keep or directory is not None
        facts = DemoFacts(scenario, seed, pace.seconds, plan.traffic, plan.about, str(where), metrics, kept)
        whole = _show(watch, engines, pace, facts, console, plain or not console.is_terminal)
        _say_goodbye(watch, engines, facts, console, whole=whole)


def _only_seed(context: click.Context) -> None:
    """Raise ConfigError when something was given that a list does not heed."""
    for name in context.params:
        given = context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if given and name not in ("listing", "seed"):
            flag = {"directory": "--dir", "scenario": "SCENARIO"}.get(name, f"--{name.replace('_', '-')}")
            raise ConfigError(f"{flag} does not go with --list: a list runs nothing")


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
    from kvmon.exporter.server import HttpServer, ServerConfig
    from kvmon.exporter.sidecar import Sidecar
    from kvmon.exporter.web.address import DEFAULT_PORT, Address

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


def _show(watch: Watch, engines: EngineProcesses, pace: Pace, facts: DemoFacts, console: Console, plain: bool) -> bool:
    """Let the engines run and show them; False when somebody stopped them."""
    if plain:
        click.echo(f"recording to {facts.directory}")
        if facts.metrics is not None:
            click.echo(f"metrics at {facts.metrics}")
        engines.go(pace)
        return _print_lines(watch, engines, facts)
    return _draw(watch, engines, pace, facts, console)


def _print_lines(watch: Watch, engines: EngineProcesses, facts: DemoFacts) -> bool:
    from kvmon.report.demo import progress_line

    printed = time.monotonic()
    while engines.running:
        watch.poll(_FRAME_SECONDS)
        time.sleep(_FRAME_SECONDS / 2)
        if time.monotonic() - printed >= _LINE_SECONDS:
            printed = time.monotonic()
            click.echo(progress_line(watch.screen(holders=0), watch.verdicts(), facts, engines.now_ns / 1e9))
    return True


def _draw(watch: Watch, engines: EngineProcesses, pace: Pace, facts: DemoFacts, console: Console) -> bool:
    from kvmon.cli.live import LiveScreen, ascii_only
    from kvmon.report.demo import Ticker, demo_screen

    plain, ticker = ascii_only(console), Ticker()
    with LiveScreen(console) as live:
        engines.go(pace)
        while engines.running:
            watch.poll(_FRAME_SECONDS)
            screen = watch.screen(holders=3)
            ticker.note(screen)
            width, height = live.size
            seconds = engines.now_ns / 1e9
            live.draw(demo_screen(screen, watch.verdicts(), ticker, facts, seconds, width, height, ascii_only=plain))
            if not live.wait(_FRAME_SECONDS):
                engines.stop()
                return False
    return True


def _say_goodbye(watch: Watch, engines: EngineProcesses, facts: DemoFacts, console: Console, *, whole: bool) -> None:
    from rich.text import Text

    from kvmon.report.demo_closing import closing

    watch.catch_up()
    seconds = engines.now_ns / 1e9
    for line in closing(watch.screen(), watch.findings(), engines.copied, facts, seconds, console.width, whole=whole):
        console.print(Text(line))
