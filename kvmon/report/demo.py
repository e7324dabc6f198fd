"""What the demo shows while it runs: two engines under the same traffic side by side, what is wrong with each of them,
and allocations as they fail.

Draws and words only; every number comes from the views and the diagnosis, the facts about the demo from its caller.
What is said at the end is in `demo_closing.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.text import Text

from kvmon.diagnosis import HEALTHY, Holds
from kvmon.report.gauges import ASCII, STYLES, UNICODE, flow
from kvmon.report.terminal import grid, heading
from kvmon.report.view import PoolView, Screen, StreamView
from kvmon.units import format_count, format_ratio

__all__ = ["DemoFacts", "Ticker", "demo_screen", "demo_time", "lost_requests", "progress_line", "shown_streams"]

_TICKER_LINES = 4
Verdicts = Mapping[str, Mapping[str, Holds]]
"""What holds now, by engine and name, most important first."""


@dataclass(frozen=True, slots=True)
class DemoFacts:
    """What the demo is: its scenario (None: the contest of two layouts) and seed, its length in seconds of the engines'
    time, the traffic in words, what stands about each engine in the order of their panels, where the recording and the
    metrics are, and whether the recording is kept."""

    scenario: str | None
    seed: int
    seconds: float
    traffic: str
    about: Mapping[str, str]
    directory: str
    metrics: str | None
    kept: bool = False


def shown_streams(screen: Screen, facts: DemoFacts) -> list[StreamView]:
    """The streams of the demo's engines, in their order."""
    streams = {stream.engine: stream for stream in screen.streams}
    return [streams[name] for name in facts.about if name in streams]


def demo_time(seconds: float, facts: DemoFacts) -> str:
    """`17 of 120 s`, to as many digits as the length needs."""
    digits = 0 if facts.seconds >= 20 else 1 if facts.seconds >= 2 else 3
    return f"{min(seconds, facts.seconds):.{digits}f} of {facts.seconds:.{digits}f} s"


def lost_requests(stream: StreamView) -> int | None:
    """Requests that ended for want of memory, before or after they began; None where that is not known."""
    finished = stream.finished
    return None if finished is None else finished["error"] + finished["refused"]


class Ticker:
    """Refused allocations as they come in, the newest last."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, str]] = {}
        self._lines: list[tuple[str, str]] = []

    def note(self, screen: Screen) -> None:
        """Look for failures that the last screen did not have; of several since then the last one is shown."""
        for stream in screen.streams:
            for pool in stream.pools:
                failure = pool.last_failure
                if failure is None or pool.failures is None:
                    continue
                now = (sum(pool.failures.values()), failure.sentence)
                if self._seen.get(stream.engine) != now:
                    self._seen[stream.engine] = now
                    self._lines = [*self._lines[-20:], (stream.engine, failure.sentence)]

    def lines(self, width: int, most: int) -> list[Text]:
        """The last `most` failures, a line each."""
        drawn = []
        for engine, sentence in self._lines[-most:]:
            line = Text.assemble((f"{engine}: ", "bold"), sentence, no_wrap=True)
            line.truncate(width, overflow="ellipsis")
            drawn.append(line)
        return drawn


def demo_screen(
    screen: Screen,
    verdicts: Verdicts,
    ticker: Ticker,
    facts: DemoFacts,
    seconds: float,
    width: int,
    height: int,
    *,
    ascii_only: bool,
) -> RenderableType:
    """The live screen after `seconds` of the engines' time: both pools beside each other, a verdict each, the last
    failures, the score."""
    glyphs = ASCII if ascii_only else UNICODE
    detail = "same traffic, same memory, two layouts" if facts.scenario is None else facts.traffic
    hint = f"engine time {demo_time(seconds, facts)}   q stops"
    streams = shown_streams(screen, facts)
    judged = [_verdict_line(stream, verdicts, facts, width) for stream in streams]
    below = _TICKER_LINES if height >= 30 else 2
    last = _score(streams)
    if facts.metrics is not None:
        last.append(Text(facts.metrics, "underline"))
    lines = flow(last, width)[:2]
    news = ticker.lines(width, below) or [Text("no allocation has failed yet", STYLES["free"])]
    news += [Text("")] * (below - len(news))
    panels: list[tuple[StreamView, PoolView | None]] = [
        (stream, pool) for stream in streams for pool in (stream.pools[:1] or (None,))
    ]
    return Group(
        heading("demo" if facts.scenario is None else f"demo {facts.scenario}", detail, hint, width),
        grid(panels, width, height - 1 - len(judged) - below - len(lines), glyphs, columns=2),
        *judged,
        *news,
        *lines,
    )


def progress_line(screen: Screen, verdicts: Verdicts, facts: DemoFacts, seconds: float) -> str:
    """One line about both engines, for output that is no terminal."""
    parts = [demo_time(seconds, facts)]
    for stream in shown_streams(screen, facts):
        said = [f"{stream.engine}: {_names(stream, verdicts)}"]
        for pool in stream.pools[:1]:
            said.append(f"free {format_ratio(pool.free / pool.capacity)}")
            if pool.contiguity != "none" and pool.largest_free is not None:
                said.append(f"largest free block {format_ratio(pool.largest_free / pool.capacity)}")
            elif pool.units["cached"]:
                said.append(f"cached {format_ratio(pool.units['cached'] / pool.capacity)}")
        said.append(f"waiting {stream.waiting or 0}")
        said.append(f"failures {_failures(stream)}")
        lost = lost_requests(stream)
        if lost:
            said.append(f"requests lost {format_count(lost)}")
        parts.append(", ".join(said))
    return "  |  ".join(parts)


def _names(stream: StreamView, verdicts: Verdicts) -> str:
    return "+".join(verdicts.get(stream.engine, ())) or HEALTHY


def _failures(stream: StreamView) -> int:
    return sum(sum((pool.failures or {}).values()) for pool in stream.pools)


def _verdict_line(stream: StreamView, verdicts: Verdicts, facts: DemoFacts, width: int) -> Text:
    """The engine, the one word, and the sentence of the first verdict."""
    held = verdicts.get(stream.engine, {})
    style = "bold red" if held else "bold green"
    broad = max(map(len, facts.about))
    line = Text.assemble((f"{stream.engine:<{broad}}  ", "bold"), (_names(stream, verdicts), style), no_wrap=True)
    for holds in list(held.values())[:1]:
        line.append(f": {holds.summary}")
    line.truncate(width, overflow="ellipsis")
    return line


def _score(streams: list[StreamView]) -> list[Text]:
    """Failed allocations and lost requests, an engine each."""
    items = [Text("failed allocations", STYLES["free"])]
    items += [_counted(stream, _failures(stream)) for stream in streams]
    lost = [(stream, lost_requests(stream)) for stream in streams]
    if any(count for _, count in lost):
        items.append(Text("requests lost", STYLES["free"]))
        items += [_counted(stream, count) for stream, count in lost if count is not None]
    return items


def _counted(stream: StreamView, count: int) -> Text:
    return Text.assemble(f"{stream.engine} ", (format_count(count), "bold red" if count else "bold green"))
