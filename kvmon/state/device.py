"""What is known of a device's memory: a sample out of an engine's process, and the one division of what is used on it.

    kv_pool      of what the engines' frameworks allocated: their KV pools
    weights      their weights
    torch_other  the rest of it: activations, workspaces, what nobody named
    torch_slack  reserved by the frameworks and given to nobody
    rest         everything else: other processes, CUDA contexts, the driver

Invariant: the parts sum to what is used, to the byte. A part is negative where engines say more than there is (a sample
that is older than the driver's number); that is counted by `overclaimed` and clipped nowhere. A part that somebody did
not tell is absent and within the next coarser one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["PARTS", "STALE_NS", "DeviceSample", "overclaimed", "parts_of"]

PARTS = ("kv_pool", "weights", "torch_other", "torch_slack", "rest")

STALE_NS = 60_000_000_000
"""A sample that is older than this, while the engine goes on, is of a sampler that stopped: it says nothing of now."""


@dataclass(frozen=True, slots=True)
class DeviceSample:
    """Memory of one device in bytes as the process of an engine saw it; None is what it did not know.

    used, free, total   of the device, all processes together, by its driver (cudaMemGetInfo: `used` has the driver's
                        own part in it)
    reserved, allocated, inactive, largest_free     of the framework's allocator in this process: held of the device,
                        given out, free in pieces between what is given out, the largest free block
    kv_pool, weights    parts of `allocated`
    retries, ooms       times since the process began that the allocator emptied its cache to try again, and gave up
    """

    time_ns: int
    device: int
    uuid: str
    used: int | None
    free: int | None
    total: int | None
    reserved: int | None
    allocated: int | None
    inactive: int | None
    largest_free: int | None
    kv_pool: int | None
    weights: int | None
    retries: int | None
    ooms: int | None

    @classmethod
    def of(cls, fields: Mapping[str, Any], time_ns: int) -> DeviceSample:
        """From the fields of a DEVICE_SAMPLE of any version."""
        of_device, of_framework = bool(fields["total"]), bool(fields["reserved"])
        return cls(
            time_ns=time_ns,
            device=fields["device"],
            uuid=fields.get("uuid", ""),
            **{name: fields[name] if of_device else None for name in ("used", "free", "total")},
            **{name: fields[name] if of_framework else None for name in ("reserved", "allocated", "inactive")},
            **{name: fields.get(name) for name in ("largest_free", "kv_pool", "weights", "retries", "ooms")},
        )

    @property
    def name(self) -> str:
        """How the device is called: by its UUID, else by the number that it has in the engine's process."""
        return self.uuid or f"cuda:{self.device}"

    @property
    def slack(self) -> int | None:
        """Reserved and given to nobody."""
        return None if self.reserved is None or self.allocated is None else self.reserved - self.allocated

    def stale(self, now_ns: int) -> bool:
        """Whether it is too old to speak of `now_ns`, on the engine's clock."""
        return now_ns - self.time_ns > STALE_NS


def parts_of(used: int | None, samples: Sequence[DeviceSample]) -> dict[str, int]:
    """What `used` bytes of one device are for, by the names of PARTS; `samples` are those of all engines on it.

    Nothing without a framework's numbers; no `rest` where it is not known what is used.
    """
    told = [sample for sample in samples if sample.reserved is not None and sample.allocated is not None]
    if not told:
        return {}
    reserved = sum(sample.reserved or 0 for sample in told)
    allocated = sum(sample.allocated or 0 for sample in told)
    parts: dict[str, int] = {}
    for name in ("kv_pool", "weights"):
        known = [value for sample in told if (value := getattr(sample, name)) is not None]
        if len(known) == len(told):
            parts[name] = sum(known)
    parts["torch_other"] = allocated - sum(parts.values())
    parts["torch_slack"] = reserved - allocated
    if used is not None:
        parts["rest"] = used - reserved
    return parts


def overclaimed(parts: Mapping[str, int]) -> int:
    """Bytes that engines say they have beyond what there is: what the negative parts lack; 0 where the books add up."""
    return -sum(min(value, 0) for value in parts.values())
