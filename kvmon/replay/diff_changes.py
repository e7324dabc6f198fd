"""What is different between two pictures: each change with its group, the most important one first.

What users feel stands before what may have caused it: another verdict, requests that were lost or refused memory, how
long they waited; then what was set differently, what was asked for, how the memory was used, and how the engine worked.
Within a group the larger change stands first. Invariants: a change is told only where both sides know the number, it
changed by a tenth at least, by more than is noise for it (`NUMBERS`) and by more than chance alone would; the changes
from B to A are those from A to B with their sides exchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from math import hypot, log2
from typing import Any

from kvmon.diagnosis import VERDICTS, Finding
from kvmon.replay.picture import Picture, PoolPicture
from kvmon.replay.picture_sums import Measured
from kvmon.units import format_duration, format_ratio

__all__ = ["GROUPS", "NUMBERS", "POOL_NUMBERS", "Change", "Number", "changes_between", "numbers_of", "spoken"]

GROUPS = ("verdicts", "lost", "waits", "settings", "traffic", "memory", "work")
"""In the order of their importance."""
_TENTH = 0.1


@dataclass(frozen=True)
class Number:
    """One number of a picture: its group, how it is called, its unit, and below which difference it is noise."""

    group: str
    label: str
    unit: str
    noise: float


NUMBERS = {
    "lost_a_minute": Number("lost", "lost for want of memory, a minute", "count", 0),
    "failed_ratio": Number("lost", "requests that failed", "ratio", 0.005),
    "refused_a_minute": Number("lost", "refused allocations a minute", "count", 0),
    "first_token_s_p95": Number("waits", "time to first token, p95", "s", 0.05),
    "queued_s_p95": Number("waits", "time in the queue, p95", "s", 0.05),
    "memory_wait_s_p95": Number("waits", "waited for KV memory, p95", "s", 0.05),
    "waiting_mean": Number("waits", "requests waiting, mean", "count", 0.5),
    "waiting_peak": Number("waits", "requests waiting, most", "count", 2),
    "waiting_for_memory_mean": Number("waits", "requests waiting for KV, mean", "count", 0.05),
    "arrivals_a_second": Number("traffic", "arrivals a second", "count", 0.02),
    "prompt_tokens_mean": Number("traffic", "prompt tokens, mean", "count", 5),
    "prompt_tokens_p95": Number("traffic", "prompt tokens, p95", "count", 20),
    "output_tokens_mean": Number("traffic", "output tokens, mean", "count", 5),
    "output_tokens_p95": Number("traffic", "output tokens, p95", "count", 20),
    "preemptions_a_minute": Number("memory", "preemptions a minute", "count", 0),
    "recomputed_ratio": Number("memory", "prefill that was computed again", "ratio", 0.01),
    "hit_ratio": Number("memory", "prefix cache hits", "ratio", 0.02),
    "running_mean": Number("work", "requests running, mean", "count", 0.5),
    "step_seconds_mean": Number("work", "step, mean", "s", 0.0005),
    "steps_a_second": Number("work", "steps a second", "count", 0.5),
    "prefill_tokens_a_second": Number("work", "prefill tokens a second", "count", 10),
    "decode_tokens_a_second": Number("work", "decode tokens a second", "count", 10),
}
"""The numbers of a stream that are compared, by the name that they have in a picture."""

POOL_NUMBERS = {
    "use_mean": Number("memory", "in use, mean", "ratio", 0.02),
    "use_peak": Number("memory", "in use, most", "ratio", 0.02),
    "unowned_peak": Number("memory", "without an owner, most", "ratio", 0.005),
    "cached_mean": Number("memory", "cached content, mean", "ratio", 0.02),
    "pinned_mean": Number("memory", "pinned, mean", "ratio", 0.02),
    "deferred_mean": Number("memory", "held for transfers, mean", "ratio", 0.02),
    "largest_free_mean": Number("memory", "largest free block, mean", "ratio", 0.02),
    "largest_free_least": Number("memory", "largest free block, least", "ratio", 0.02),
    "external_fragmentation_mean": Number("memory", "external fragmentation, mean", "ratio", 0.02),
    "lost_at_head_mean": Number("memory", "lost to the head of the queue", "ratio", 0.02),
    "page_utilization_mean": Number("memory", "written of what is held, mean", "ratio", 0.01),
    "tail_mean": Number("memory", "unfilled tails, mean", "ratio", 0.01),
    "reserved_mean": Number("memory", "reserved, mean", "ratio", 0.02),
    "evicted_tokens_a_second": Number("memory", "evicted tokens a second", "count", 10),
}
"""The same of a pool; a ratio is a share of it where the label says nothing else."""

_POOL_SETTINGS = {"tokens": "size in tokens", "page_tokens": "tokens a page", "token_bytes": "bytes a token"}
_FIRST = ("adapter", "engine_version", "allocator", "pool size in tokens", "pool tokens a page", "pool bytes a token")
# What follows from other settings, or changes what is recorded and not what the engine does.
_LAST = ("adapter_version", "class_by", "fidelity", "pool contiguity", "pool layout", "pool net", "python", "reduced")
# Of a simulated run: what its traffic was drawn from, and what it was called.
_NO_SETTING = ("engine", "parameters", "scenario", "seed", "workload")


@dataclass(frozen=True)
class Change:
    """One thing that is different; `size` orders changes of a group, twice as much is 1; `unit` is that of a number."""

    group: str
    name: str
    label: str
    words: str
    before: Any
    after: Any
    size: float = 0.0
    unit: str = ""

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {name: value for name, value in asdict(self).items() if name != "size"}


def changes_between(before: Picture, after: Picture) -> tuple[Change, ...]:
    """What changed, most important first."""
    found = [*_verdicts(before, after), *_settings(before, after)]
    for name, number, one, other in numbers_of(before, after):
        if one is not None and other is not None:
            found += _number(name, number, one, other)
    return tuple(sorted(found, key=lambda change: (GROUPS.index(change.group), -change.size, change.name)))


Beside = tuple[str, Number, Measured | None, Measured | None]


def numbers_of(before: Picture, after: Picture) -> Iterator[Beside]:
    """Every number with its name and both values, None where a side does not know it."""
    yield from _beside(NUMBERS, before.numbers, after.numbers)
    causes = sorted(before.causes.keys() | after.causes.keys())
    if len(causes) > 1:  # else it is what stands there already
        for cause in causes:
            label = f"refused for {cause} a minute"
            one, other = (_refused_for(cause, picture) for picture in (before, after))
            yield label, Number("lost", label, "count", 0), one, other
    for place in sorted(before.pools.keys() & after.pools.keys()):
        mine, yours = before.pools[place], after.pools[place]
        called = _called(place, mine)
        numbers = {name: replace(one, label=f"{called} {one.label}") for name, one in POOL_NUMBERS.items()}
        yield from _beside(numbers, mine.numbers, yours.numbers, f"pool {place} ")


def spoken(value: Any, unit: str = "") -> str:
    """A value for people; a dash for a number that is not known, words for a setting that is not said."""
    if value is None:
        return "-" if unit else "not set"
    if unit == "ratio":
        return format_ratio(value)
    if unit == "s":
        return format_duration(value) if value else "0 s"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int | float):
        return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:,.3g}"
    return str(value)


def _beside(
    numbers: Mapping[str, Number], before: Mapping[str, Measured], after: Mapping[str, Measured], prefix: str = ""
) -> Iterator[Beside]:
    for name, number in numbers.items():
        yield f"{prefix}{name}", number, before.get(name), after.get(name)


def _refused_for(cause: str, picture: Picture) -> Measured | None:
    if "refused_a_minute" not in picture.numbers:
        return None
    return Measured.rate(picture.causes.get(cause, 0), picture.seen_s, 60)


def _called(number: int, pool: PoolPicture) -> str:
    """The first pool is the pool, others go by their names."""
    return "pool" if number == 1 else pool.name


def _verdicts(before: Picture, after: Picture) -> Iterator[Change]:
    """Verdicts that came and that went; the gravest of both are one change."""
    if before.verdict is None or after.verdict is None:
        return
    old, new = ({one.verdict: one for one in reversed(picture.findings)} for picture in (before, after))
    came, went = (_by_rank(one.keys() - other.keys()) for one, other in ((new, old), (old, new)))
    for place, (one, other) in enumerate(zip_longest(went, came)):
        if place and one and other:  # said one by one
            yield _verdict(one, None, new)
            yield _verdict(None, other, new)
        else:
            yield _verdict(one, other, new)


def _by_rank(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: VERDICTS[name].rank)


def _verdict(went: str | None, came: str | None, new: Mapping[str, Finding]) -> Change:
    if came is None:
        words = f"{went} is gone" + ("" if new else ": nothing was found any more")
    else:
        words = f"{came} {'is new' if went is None else f'instead of {went}'}: {new[came].summary}"
    gravest = _by_rank(name for name in (went, came) if name is not None)[0]
    return Change("verdicts", f"verdict {gravest}", "verdict", words, went, came, -VERDICTS[gravest].rank)


def _number(name: str, number: Number, before: Measured, after: Measured) -> Iterator[Change]:
    one, other = before.value, after.value
    by = abs(other - one)
    # that any was lost where none was is never by chance
    chance = 0.0 if name == "lost_a_minute" and not (one and other) else hypot(before.chance, after.chance)
    if by > 0 and by >= max(number.noise, _TENTH * max(abs(one), abs(other)), chance):
        least = number.noise or 1.0
        low, high = sorted((abs(one), abs(other)))
        size = log2((high + least) / (low + least))
        words = f"{number.label}: {spoken(one, number.unit)} -> {spoken(other, number.unit)}"
        yield Change(number.group, name, number.label, words, one, other, size, number.unit)


def _settings(before: Picture, after: Picture) -> Iterator[Change]:
    """What engine and pools say of themselves. A key that one side alone has means something between engines of one
    kind, which leave out what is not set; between others nobody knows."""
    mine, yours = (
        {name: value for name, value in picture.settings.items() if name.partition(" ")[0] not in _NO_SETTING}
        for picture in (before, after)
    )
    alike = all(
        name in mine and mine[name] == yours.get(name)
        for name in ("adapter", "adapter_version")
        if name in mine or name in yours
    )
    yield from _one_by_one("", mine, yours, alike=alike)
    if not before.pools or not after.pools:
        return  # they were not seen
    for number in sorted(before.pools.keys() | after.pools.keys()):
        one, other = before.pools.get(number), after.pools.get(number)
        if one is not None and other is not None:
            yield from _one_by_one(f"{_called(number, one)} ", one.settings, other.settings, alike=alike)
        elif (there := one or other) is not None:
            sizes = ({} if pool is None else {"tokens": pool.settings["tokens"]} for pool in (one, other))
            yield from _one_by_one(f"{_called(number, there)} ", *sizes, alike=True)


def _one_by_one(prefix: str, before: Mapping[str, Any], after: Mapping[str, Any], *, alike: bool) -> Iterator[Change]:
    names = before.keys() | after.keys() if alike else before.keys() & after.keys()
    for name in sorted(names):
        one, other = before.get(name), after.get(name)
        if one == other:
            continue
        label = f"{prefix}{_POOL_SETTINGS.get(name, name) if prefix else name}"
        size = 2.0 if label in _FIRST else 0.0 if label in _LAST else 1.0
        yield Change(
            "settings", f"{prefix}{name}", label, f"{label}: {spoken(one)} -> {spoken(other)}", one, other, size
        )
