"""What the demo says when it is over: the verdict of each engine, what it served and what it cost, what to type next.

Words only; every number comes from the views, the findings and the engines' own count of what they copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap

from kvmon.diagnosis import HEALTHY, Finding
from kvmon.report.demo import DemoFacts, demo_time, lost_requests, shown_streams
from kvmon.report.view import Screen, StreamView
from kvmon.units import counted, format_bytes, format_count, format_duration, format_ratio

__all__ = ["closing"]

_WIDEST = 100
_LABEL = 13
_COPIES = {
    "relocation": "to move blocks that had to grow",
    "compaction": "to slide blocks together",
    "prefix": "to begin requests with what stayed behind",
    "fork": "for samples of one prompt",
    "swap out": "to the host",
    "swap in": "back from the host",
}


def closing(
    screen: Screen,
    findings: Mapping[str, Sequence[Finding]],
    copied: Mapping[str, Mapping[str, int]],
    facts: DemoFacts,
    seconds: float,
    width: int,
    *,
    whole: bool,
) -> Iterator[str]:
    """Lines of at most `width`: the result, then how it came about, engine by engine. `copied`: bytes by why.

    `whole` is false where somebody stopped it after `seconds` of the engines' time.
    """
    width = min(width, _WIDEST)
    streams = [stream for stream in shown_streams(screen, facts) if stream.pools]
    if streams:
        yield from wrap(" ".join(_result(stream, findings) for stream in streams), width)
        yield ""
        yield from wrap(_what_ran(streams, facts, seconds, whole), width)
    for stream in streams:
        yield ""
        yield from wrap(f"{stream.engine}: {facts.about[stream.engine]}", width)
        for label, text in _facts(stream, findings.get(stream.engine, ()), copied.get(stream.engine, {})):
            yield from wrap(text, width, initial_indent=f"  {label:<{_LABEL - 2}}", subsequent_indent=" " * _LABEL)
    yield ""
    yield from _next(facts, findings)


def _result(stream: StreamView, findings: Mapping[str, Sequence[Finding]]) -> str:
    """The verdict and the requests that were lost, in a few words."""
    found = findings.get(stream.engine, ())
    verdict = found[0].verdict if found else HEALTHY
    lost = lost_requests(stream)
    if lost is None:
        return f"{stream.engine}: {verdict}."
    return f"{stream.engine}: {verdict}, {counted(lost, 'request') if lost else 'no request'} lost."


def _what_ran(streams: Sequence[StreamView], facts: DemoFacts, seconds: float, whole: bool) -> str:
    length = f"{facts.seconds:.0f} s" if facts.seconds >= 60 else format_duration(facts.seconds)
    length += " of their time"
    if not whole:
        length = f"{demo_time(seconds, facts)} of their time, then you stopped them"
    sizes = {format_bytes(sum(pool.capacity * pool.unit_bytes for pool in stream.pools)): stream for stream in streams}
    pool = streams[0].pools[0]
    token = format_bytes(pool.unit_bytes / pool.unit_tokens)
    memory = f"each engine had {next(iter(sizes))} for them"
    if len(sizes) > 1:
        memory = " and ".join(f"{stream.engine} had {size}" for size, stream in sizes.items()) + " for them"
    return (
        f"Two engines served the same traffic (seed {facts.seed}) for {length}: {facts.traffic}. The model is real, "
        f"tiny and has random weights; its keys and values take {token} a token, and {memory}. How long a step takes "
        "comes from a formula, so that the same seed gives the same failures on every machine."
    )


def _facts(stream: StreamView, found: Sequence[Finding], copied: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """What is known of one engine, a label and a sentence each."""
    failures: dict[str, int] = {}
    for pool in stream.pools:
        for reason, count in (pool.failures or {}).items():
            failures[reason] = failures.get(reason, 0) + count
    total = sum(failures.values())
    if found:
        yield "verdict", f"{found[0].verdict} ({found[0].confidence}): {found[0].summary}"
        yield "avoided by", found[0].avoided
        if len(found) > 1:
            yield "found too", ", ".join(dict.fromkeys(finding.verdict for finding in found[1:]))
    else:
        rest = f"{counted(total, 'refused allocation')} cost too little to matter" if total else "nothing was found"
        yield "verdict", f"{HEALTHY}: {rest}"
    if stream.counters is not None and stream.finished is not None:
        yield "requests", _requests(stream.counters["arrived"], stream.finished)
        yield "tokens", f"{format_count(stream.counters['output_tokens'])} generated for those that ended"
    if total:
        by_reason = ", ".join(f"{reason} {format_count(count)}" for reason, count in failures.items())
        yield "refused", f"{counted(total, 'allocation')}: {by_reason}"
    yield from _costs(stream, copied)


def _requests(arrived: int, finished: Mapping[str, int]) -> str:
    served, lost = finished["stop"] + finished["length"], finished["error"] + finished["refused"]
    said = [f"{format_count(served)} of {format_count(arrived)} served"]
    if lost:
        said.append(f"{format_count(lost)} lost for want of memory")
    if finished["abort"]:
        said.append(f"{format_count(finished['abort'])} hung up")
    rest = arrived - sum(finished.values())
    if rest:
        said.append(f"{format_count(rest)} not finished at the end")
    return ", ".join(said)


def _costs(stream: StreamView, copied: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    counters = stream.counters
    if counters is not None and counters["preempted"]:
        lost = format_count(counters["lost_tokens"])
        yield "preempted", f"{counted(counters['preempted'], 'time')}; {lost} computed tokens were lost by it"
    if stream.prefix_hit_ratio is not None:
        yield "cache", f"{format_ratio(stream.prefix_hit_ratio)} of the prompt tokens were found in it"
    if copied:
        by_why = ", ".join(f"{format_bytes(size)} {_COPIES[why]}" for why, size in copied.items())
        yield "copied", f"keys and values: {by_why}"


def _next(facts: DemoFacts, findings: Mapping[str, Sequence[Finding]]) -> Iterator[str]:
    where = facts.directory if facts.kept else "DIR"
    demo = "kvmon demo" if facts.scenario is None else f"kvmon demo {facts.scenario}"
    commands = {} if facts.kept else {f"{demo} --keep": "the same again, and keep it"}
    commands |= {
        f"kvmon replay {where}": "every finding with its evidence",
        f"kvmon why {where}": "the last refused allocation",
        f"kvmon top {where} --once": "the memory at the end",
        f"kvmon capture {where} -o demo.kvmon": "all of it in one file",
    }
    first = next((found[0].verdict for found in findings.values() if found), None)
    if first is not None:
        commands[f"kvmon explain {first}"] = "what the verdict means"
    commands["kvmon demo --list"] = "more to see"
    yield "The recording is kept. Look closer:" if facts.kept else "The recording is deleted. To look closer:"
    broad = max(map(len, commands))
    yield from (f"    {command:<{broad}}  {what}" for command, what in commands.items())
