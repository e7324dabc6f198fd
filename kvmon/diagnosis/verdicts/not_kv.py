"""The engine ran out of memory, and not of KV memory.

Where the device was sampled before the error, it is also said what lacked: at an error that asked for `a` bytes, with
`f` free on the device and `s` reserved by the framework's allocator but unallocated, fragmentation of that allocator
iff a <= f + s and neither f nor its largest free block is enough. Else memory held by others, if it would have been
enough and is a share worth naming; else there is too little left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvmon.diagnosis.finding import Evidence
from kvmon.diagnosis.minute import Minute
from kvmon.diagnosis.thresholds import NAMED_SHARE
from kvmon.diagnosis.verdict import Holds, Verdict
from kvmon.state.watch import W
from kvmon.units import counted, format_bytes

__all__ = ["VERDICT"]


@dataclass(frozen=True)
class _Device:
    """Bytes at an error, from its row of the log; what needs a framework's numbers is None without them, `largest` also
    where nobody looked.
    """

    asked: int
    free: int
    slack: int | None
    largest: int | None
    outside: int | None
    total: int
    age_s: float

    @classmethod
    def of(cls, row: Sequence[int]) -> _Device:
        reserved = row[W.TORCH_RESERVED]
        # the error's own number is of its very moment
        free = row[W.ERROR_FREE] if row[W.ASKED] and row[W.ERROR_FREE] else row[W.DEVICE_FREE]
        return cls(
            asked=row[W.ASKED],
            free=free,
            slack=reserved - row[W.TORCH_ALLOCATED] if reserved else row[W.ERROR_RESERVED] or None,
            largest=row[W.TORCH_LARGEST] if reserved and row[W.TORCH_LARGEST] >= 0 else None,
            outside=row[W.DEVICE_TOTAL] - row[W.DEVICE_FREE] - reserved if reserved else None,
            total=row[W.DEVICE_TOTAL],
            age_s=row[W.SAMPLE_NS] / 1e9,
        )

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        """Every number that is known."""
        numbers = {
            "asked at the error": self.asked or None,
            "free on the device": self.free,
            "reserved by torch but unallocated": self.slack,
            "largest free block of torch": self.largest,
            "held outside of torch": self.outside,
            "memory of the device": self.total,
        }
        known = [Evidence(name, float(value), "bytes") for name, value in numbers.items() if value is not None]
        return (*known, Evidence("age of the sample of the device", round(self.age_s, 3), "s"))

    @property
    def words(self) -> str:
        """The numbers in a sentence."""
        said = [f"{format_bytes(self.asked)} asked"] if self.asked else []
        said.append(f"{format_bytes(self.free)} free on the device")
        if self.slack is not None:
            block = "" if self.largest is None else f" in blocks of {format_bytes(self.largest)} at most"
            said.append(f"{format_bytes(self.slack)} reserved by torch but unallocated{block}")
        return ", ".join(said)


@dataclass(frozen=True)
class _Reason:
    """What lacked, in words; what would have avoided it, and what is safest now. Empty: the numbers do not tell."""

    words: str = ""
    avoided: str = ""
    lever: str = ""


def _reason(device: _Device) -> _Reason:
    """What the numbers say; see the module's docstring."""
    asked, free, slack, outside = device.asked, device.free, device.slack, device.outside
    if not asked or slack is None:
        return _Reason()
    if free >= asked or (device.largest or 0) >= asked:
        return _Reason(
            ": the numbers show room, which went after the sample, or which a limit or a graph's pool kept apart",
            lever="look at the engine's log for a limit of its own, and for what it did right before",
        )
    if asked <= free + slack:
        return _Reason(
            ": fragmentation of torch's own memory",
            "expandable segments (PYTORCH_ALLOC_CONF=expandable_segments:True): the memory was there, in pieces",
            "restart with expandable segments, or lower the engine's share of the device memory",
        )
    if outside is not None and outside >= NAMED_SHARE * device.total and asked <= free + slack + outside:
        return _Reason(
            f": the device is full outside of torch, {format_bytes(outside)} are held by other processes and contexts",
            "the device without the other processes on it, or a smaller share of it for the engine",
            "look for a second process on the GPU; the KV pool is not what is short",
        )
    return _Reason(
        ": too little is left beside the KV pool and the weights",
        "less memory for the KV pool, so that activations and other allocators have room",
    )


def _holds(minute: Minute) -> Holds | None:
    if not minute.of_stream:
        return None
    errors = minute.total(W.ERRORS)
    if not errors or any(refused.lost for refused in minute.refused.values()):
        return None
    used = (minute.now[W.ACTIVE] + minute.now[W.PINNED] + minute.now[W.DEFERRED]) / max(minute.now[W.CAPACITY], 1)
    summary = (
        f"{counted(errors, 'error')} of another allocator in a minute, with {used:.0%} of the KV pool used and nothing "
        "refused"
    )
    evidence = (
        Evidence("errors in the minute", float(errors), "errors"),
        Evidence("used share of the pool", used, "ratio"),
    )
    sure = "likely" if minute.exact else "possible"
    sampled = [row for row in minute.rows if row[W.ERRORS] and row[W.DEVICE_TOTAL]]
    if not sampled:
        return Holds(sure, summary, evidence, weight=float(errors))
    device = _Device.of(max(sampled, key=lambda row: row[W.ASKED]))
    reason = _reason(device)
    return Holds(
        sure,
        f"{summary}; {device.words}{reason.words}",
        (*evidence, *device.evidence),
        weight=float(errors),
        avoided=reason.avoided,
        lever=reason.lever,
    )


VERDICT = Verdict(
    "not_kv",
    14,
    _holds,
    "less memory for the KV pool, so that activations and other allocators have room; expandable segments",
    "lower the engine's share of the device memory and restart; the KV pool is not what is short",
    of_refusals=False,
)
