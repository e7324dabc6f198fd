"""What the demo shows: two engines under the same traffic side by side, failures as they happen, and what happened in
plain words.

Draws and words only; every number comes from the views, the facts about the demo from its caller.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.text import Text

from kvmon.report.gauges import ASCII, STYLES, UNICODE, flow
from kvmon.report.terminal import grid, heading
from kvmon.report.view import PoolView, Screen, StreamView
from kvmon.units import format_bytes, format_count, format_ratio

__all__ = ["DemoFacts", "Ticker", "closing", "demo_screen", "progress_line"]

_TICKER_LINES = 4


@dataclass(frozen=True, slots=True)
class DemoFacts:
    """What the demo is: seed, length in seconds, how much faster than real it runs, where its recording and its
    metrics are."""

    seed: int
    seconds: float
    speed: float
    prefix_tokens: int
    chunk_tokens: int
    directory: str
    metrics: str | None


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
    screen: Screen, ticker: Ticker, facts: DemoFacts, elapsed: float, width: int, height: int, *, ascii_only: bool
) -> RenderableType:
    """The live screen: both pools beside each other, the last failures, the score."""
    glyphs = ASCII if ascii_only else UNICODE
    detail = "same traffic, same memory, two allocators"
    hint = f"{min(elapsed, facts.seconds):.0f} of {facts.seconds:.0f} s at {facts.speed:g}x   q stops"
    below = _TICKER_LINES if height >= 30 else 2
    last = _score(screen)
    if facts.metrics is not None:
        last.append(Text(facts.metrics, "underline"))
    lines = flow(last, width)[:2]
    news = ticker.lines(width, below) or [Text("no allocation has failed yet", STYLES["free"])]
    news += [Text("")] * (below - len(news))
    panels = [(stream, pool) for stream in screen.streams for pool in (stream.pools or (None,))]
    return Group(
        heading("demo", detail, hint, width),
        grid(panels, width, height - 1 - below - len(lines), glyphs, columns=2),
        *news,
        *lines,
    )


def progress_line(screen: Screen, elapsed: float) -> str:
    """One line about both pools, for output that is no terminal."""
    parts = [f"{elapsed:5.1f} s"]
    for stream in screen.streams:
        for pool in stream.pools:
            free = f"free {format_ratio(pool.free / pool.capacity)}"
            if pool.contiguity != "none" and pool.largest_free is not None:
                free += f", largest free block {format_ratio(pool.largest_free / pool.capacity)}"
            elif pool.units["cached"]:
                free += f", cached {format_ratio(pool.units['cached'] / pool.capacity)}"
            failures = sum((pool.failures or {}).values())
            parts.append(f"{stream.engine}: {free}, waiting {stream.waiting or 0}, failures {failures}")
    return "  |  ".join(parts)


def _score(screen: Screen) -> list[Text]:
    items = [Text("failed allocations", STYLES["free"])]
    for stream in screen.streams:
        for pool in stream.pools:
            total = sum((pool.failures or {}).values())
            items.append(
                Text.assemble(f"{stream.engine} ", (format_count(total), "bold red" if total else "bold green"))
            )
    return items


def closing(screen: Screen, facts: DemoFacts, *, kept: bool, whole: bool) -> Iterator[str]:
    """What happened, with the numbers of the run, and what to type next; a paragraph or command each."""
    streams = {stream.engine: stream for stream in screen.streams}
    sound = [name for name in ("contiguous", "paged") if name in streams and streams[name].pools]
    if len(sound) == 2:
        yield _traffic(streams["contiguous"].pools[0], facts, whole)
        yield _contiguous(streams["contiguous"], facts)
        yield _paged(streams["paged"])
    yield from _next(facts, kept)


def _traffic(pool: PoolView, facts: DemoFacts, whole: bool) -> str:
    memory = format_bytes(pool.capacity * pool.unit_bytes)
    length = f"{facts.seconds * facts.speed:.0f} s" if whole else "as much as you watched"
    return (
        f"Two engines served the same traffic (seed {facts.seed}, {length}, a clock in place of a model): chats and "
        f"agents behind a shared prompt of {format_count(facts.prefix_tokens)} tokens. Each had {memory} of KV memory."
    )


def _contiguous(stream: StreamView, facts: DemoFacts) -> str:
    pool = stream.pools[0]
    failures = pool.failures or {}
    total, pieces = sum(failures.values()), failures.get("no_contiguous_run", 0)
    text = [f"contiguous: every sequence is one block that grows by {facts.chunk_tokens} tokens."]
    if not total:
        text.append("No allocation failed this time; more --seconds or another --seed will show it fail.")
    else:
        text.append(
            f"{_allocations(total)} failed; {format_count(pieces)} of them had enough memory free, but in pieces:"
        )
        text.append("that is fragmentation.")
    if pool.last_failure is not None and pool.last_failure.reason == "no_contiguous_run":
        text.append(f"The last one: {pool.last_failure.sentence}.")
    return " ".join([*text, _served(stream)])


def _paged(stream: StreamView) -> str:
    pool = stream.pools[0]
    failures = pool.failures or {}
    text = [f"paged: pages of {pool.unit_tokens} tokens anywhere, shared prefixes stored once."]
    if not failures:
        text.append("No allocation failed.")
    for reason, count in failures.items():
        text.append(f"{_allocations(count)} failed: {reason}.")
    if stream.prefix_hit_ratio is not None:
        text.append(f"{format_ratio(stream.prefix_hit_ratio)} of the prompt tokens were found in its cache.")
    return " ".join([*text, _served(stream)])


def _served(stream: StreamView) -> str:
    counters = stream.counters
    if counters is None:
        return ""
    text = f"It generated {format_count(counters['decode_tokens'])} tokens"
    if counters["preempted"]:
        text += (
            f", preempted requests {format_count(counters['preempted'])} times and lost "
            f"{format_count(counters['lost_tokens'])} computed tokens by it"
        )
    return f"{text}; {format_count(stream.waiting or 0)} requests wait at the end."


def _allocations(count: int) -> str:
    return "1 allocation" if count == 1 else f"{format_count(count)} allocations"


def _next(facts: DemoFacts, kept: bool) -> Sequence[str]:
    where = facts.directory if kept else "DIR"
    commands = [
        f"kvmon top {where} --once",
        f"kvmon verify {where}",
        f"kvmon capture {where} -o demo.kvmon",
    ]
    if not kept:
        commands = ["kvmon demo --keep", *commands]
    intro = "The recording is kept. Look closer:" if kept else "The recording is deleted. Keep one and look closer:"
    return [intro, *(f"    {command}" for command in commands)]
