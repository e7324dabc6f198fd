"""What would have avoided a finding, checked: for each verdict a few changes, run until one helps.

A change helps where its run has the verdict no more, loses no more requests than the recording's own replay, and is
done no later. Changes are tried from the one that costs least, until one helps with which nobody is lost; without such
a one it is the one that helps with which fewest are.

Invariant: which changes are tried follows from the verdict and the recorded engine alone; "helps" is a run, never a
guess.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from kvmon.adapters.described import Described
from kvmon.allocators import ContiguousConfig, PagedConfig
from kvmon.diagnosis import HEALTHY
from kvmon.errors import ConfigError
from kvmon.replay.changes import parse_what_if
from kvmon.replay.demand import Demand
from kvmon.replay.outcome import Outcome
from kvmon.replay.whatif import Answer, Comparison, answer
from kvmon.serving.faults import Faults
from kvmon.units import counted, format_duration

__all__ = ["Proposal", "candidates", "propose"]

_LARGER = ("pool=+10%", "pool=+25%", "pool=+50%", "pool=+100%", "pool=+300%")
_PAGE = 16
_WAITING = "on-no-fit=wait,on-growth-failure=preempt"
_LATER = 1.05  # of the time that everything took, which is no worsening
_WORTH_SAYING_S = 0.5  # request-seconds of waiting


@dataclass(frozen=True)
class Proposal:
    """What was tried against one verdict.

    helps       the change that avoids it; None where none of those tried does
    tried       all that were run, in their order
    said        one line for people
    """

    verdict: str
    helps: Answer | None
    tried: tuple[Answer, ...]
    said: str = field(default="")

    def to_json(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        return {
            "verdict": self.verdict,
            "helps": None if self.helps is None else self.helps.to_json(),
            "tried": [one.what_if.text for one in self.tried],
            "said": self.said,
        }


def candidates(verdict: str, engine: Described, demand: Demand) -> tuple[str, ...]:
    """Changes worth trying against a verdict, as texts of what-ifs; none where no memory would help."""
    found = _CANDIDATES.get(verdict)
    return () if found is None else tuple(found(engine, demand))


def propose(verdict: str, demand: Demand, begun: Comparison) -> Proposal | None:
    """Try what may avoid a verdict; None where there is nothing to try. `begun`: the recording's own replay."""
    tried: list[Answer] = []
    best: Answer | None = None
    for text in candidates(verdict, demand.described(), demand):
        try:
            tried.append(answer(demand, begun.clock, parse_what_if(text)))
        except ConfigError:
            continue  # not possible for this engine
        if _helps(verdict, begun.unchanged, tried[-1]):
            if best is None or tried[-1].most.lost < best.most.lost:
                best = tried[-1]
            if best.most.lost == 0:
                break
    if not tried:
        return None
    return Proposal(verdict, best, tuple(tried), _said(verdict, begun.unchanged, best) if best else _in_vain(tried))


def _in_vain(tried: list[Answer]) -> str:
    texts = ", ".join(one.what_if.text for one in tried)
    return f"{texts} does not avoid it" if len(tried) == 1 else f"none of {texts} avoids it"


def _helps(verdict: str, before: Answer, after: Answer) -> bool:
    return all(
        verdict not in then.verdicts
        and then.lost <= now.lost
        and then.finished >= now.finished
        and (then.end_ns - then.begin_ns <= _LATER * (now.end_ns - now.begin_ns) or then.finished > now.finished)
        for now, then in ((before.least, after.least), (before.most, after.most))
    )


def _said(verdict: str, before: Answer, after: Answer) -> str:
    was, now = before.most, after.most
    lost = _range(after, lambda one: one.lost)
    parts = [
        f"{lost} of {counted(now.requests, 'request')} are lost" + (f" instead of {was.lost:,}" if was.lost else "")
    ]
    if was.wait_s >= _WORTH_SAYING_S:
        waited, before_that = format_duration(now.wait_s), format_duration(was.wait_s)
        parts.append(f"waits for memory add up to {waited} instead of {before_that}")
    if was.preemptions:
        parts.append(f"{now.preemptions:,} preemptions instead of {was.preemptions:,}")
    left = "" if now.verdict == HEALTHY else f"; what is left is {now.verdict}"
    return f"with {after.what_if.text} there is no {verdict}: {', '.join(parts)}{left}"


def _range(one: Answer, of: Callable[[Outcome], int]) -> str:
    low, high = sorted((of(one.least), of(one.most)))
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _capacity(engine: Described, demand: Demand) -> Iterable[str]:
    return _LARGER


def _fragmentation(engine: Described, demand: Demand) -> Iterable[str]:
    return ("compaction=on", "allocator=paged", f"allocator=paged,{_WAITING}", f"allocator=paged,pool=+25%,{_WAITING}")


def _reservation(engine: Described, demand: Demand) -> Iterable[str]:
    return (
        "reserve=chunk:64",
        "allocator=paged",
        f"allocator=paged,{_WAITING}",
        f"allocator=paged,pool=+25%,{_WAITING}",
    )


def _tail_waste(engine: Described, demand: Demand) -> Iterable[str]:
    unit = engine.allocator.unit_tokens
    while unit > _PAGE:
        unit = max(unit // 4, _PAGE)
        yield f"block={unit}"
    yield "block=16,pool=+25%"


def _pinned(engine: Described, demand: Demand) -> Iterable[str]:
    if isinstance(engine.allocator, ContiguousConfig):
        return ("retain=0", "allocator=paged")
    return ("pin-share=5%", "pin-after=0", *_LARGER[1:])


def _never_fits(engine: Described, demand: Demand) -> Iterable[str]:
    longest = demand.prompt + demand.limit.clip(min=0)
    if engine.scheduler.on_never_fits == "wait":
        yield "on-never-fits=refuse"
    unit = engine.allocator.unit_tokens
    yield f"pool={-(-int(demand.prompt.max() + 1) // unit) * unit}"
    yield f"pool={-(-int(longest.max() + 1) // unit) * unit}"


def _pool_starved(engine: Described, demand: Demand) -> Iterable[str]:
    pool = engine.allocator
    if isinstance(pool, PagedConfig) and pool.window_pool_units:
        for factor in (2, 4, 8, 16, 32):
            yield f"window-pool-tokens={factor * pool.window_pool_units * pool.unit_tokens}"


def _partition(engine: Described, demand: Demand) -> Iterable[str]:
    return ("quota=off", "quota=off,pool=+25%")


def _reclaim(engine: Described, demand: Demand) -> Iterable[str]:
    return ("reclaim=on-demand", "prefix-cache=off")


def _faulty(engine: Described, demand: Demand) -> Iterable[str]:
    """An engine that is broken is cured by no memory; only one whose faults are known can be run without them."""
    return ("faults=off",) if engine.faults != Faults(claims_every_ns=engine.faults.claims_every_ns) else ()


def _thrash(engine: Described, demand: Demand) -> Iterable[str]:
    return ("pin-after=2,pin-share=20%", "pool=+50%", "pool=+100%", "pool=+300%")


def _storm(engine: Described, demand: Demand) -> Iterable[str]:
    return ("admission=prompt", "admission=full-need", *_LARGER[1:])


def _head_of_line(engine: Described, demand: Demand) -> Iterable[str]:
    return ("pool=+25%", "pool=+100%")


def _deadlock(engine: Described, demand: Demand) -> Iterable[str]:
    return ("on-growth-failure=preempt", "admission=full-need", *_never_fits(engine, demand), *_LARGER)


_CANDIDATES: dict[str, Callable[[Described, Demand], Iterable[str]]] = {
    "capacity": _capacity,
    "fragmentation": _fragmentation,
    "reservation": _reservation,
    "tail_waste": _tail_waste,
    "pinned": _pinned,
    "never_fits": _never_fits,
    "pool_starved": _pool_starved,
    "partition": _partition,
    "reclaim_failed": _reclaim,
    "leak": _faulty,
    "double_free": _faulty,
    "stranded": _faulty,
    "not_kv": _faulty,
    "cache_thrash": _thrash,
    "preemption_storm": _storm,
    "head_of_line": _head_of_line,
    "deadlock": _deadlock,
}
