"""The engine ran out of memory, and not of KV memory."""

from __future__ import annotations

from kvmon.diagnosis.finding import Evidence
from kvmon.diagnosis.minute import Minute
from kvmon.diagnosis.verdict import Holds, Verdict
from kvmon.state.watch import W
from kvmon.units import counted

__all__ = ["VERDICT"]


def _holds(minute: Minute) -> Holds | None:
    if not minute.of_stream:
        return None
    errors = minute.total(W.ERRORS)
    if not errors or any(refused.lost for refused in minute.refused.values()):
        return None
    used = (minute.now[W.ACTIVE] + minute.now[W.PINNED] + minute.now[W.DEFERRED]) / max(minute.now[W.CAPACITY], 1)
    return Holds(
        "likely" if minute.exact else "possible",
        f"{counted(errors, 'error')} of another allocator in a minute, with {used:.0%} of the KV pool used and nothing "
        "refused",
        (Evidence("errors in the minute", float(errors), "errors"), Evidence("used share of the pool", used, "ratio")),
        weight=float(errors),
    )


VERDICT = Verdict(
    "not_kv",
    14,
    _holds,
    "less memory for the KV pool, so that activations and other allocators have room; expandable segments",
    "lower the engine's share of the device memory and restart; the KV pool is not what is short",
    of_refusals=False,
)
