"""PagedAttention's figure 2 (SOSP'23): where the KV memory goes under four policies at saturation.

OPT-13B on an A100-40G: about 15,700 slots, sequences of at most 2,048, ShareGPT lengths, first come, first served, more
requests than fit. The three reservations of Orca use buddy blocks, as in the paper; first fit would be stronger than
its baseline. The figure's `internal` is reserved and never used, its `external` what nobody asked for (`FullPool`).

Invariant: the same requests for each policy.
"""

from __future__ import annotations

from kvmon.allocators.config import AllocatorConfig, ContiguousConfig, PagedConfig
from kvmon.serving.config import SchedulerConfig
from kvmon.serving.model_shape import parse_model_shape
from kvmon.serving.scenarios.scenario import Draw, Scenario, Setup
from kvmon.serving.workloads import AtOnce, Traffic, generate

__all__ = ["FIGURE2", "PAPER", "POLICIES"]

SLOTS = 15_700
_LONGEST = 2048

#: Published: token states, reserved, internal and external fragmentation in per cent of the KV memory, mean batch.
PAPER = {
    "max": (20.4, 13.3, 57.3, 8.9, 7.00),
    "pow2": (26.8, 17.9, 13.6, 41.6, 9.81),
    "oracle": (38.2, 25.2, 0.0, 36.6, 13.62),
    "paged": (96.3, None, None, None, None),
}
POLICIES: dict[str, AllocatorConfig] = {
    "max": ContiguousConfig(SLOTS, placement="buddy", reserve="max"),
    "pow2": ContiguousConfig(SLOTS, placement="buddy", reserve="pow2"),
    "oracle": ContiguousConfig(SLOTS, placement="buddy", reserve="oracle"),
    "paged": PagedConfig(SLOTS // 16, 16, prefix_cache=False),
}


def _setup(draw: Draw, policy: str) -> Setup:
    work = generate(Traffic(1500, seed=draw.traffic_seed, lengths="sharegpt", arrivals=AtOnce()))
    scheduler = SchedulerConfig(max_model_len=_LONGEST)
    return Setup(work, POLICIES[policy], scheduler, token_bytes=parse_model_shape("opt-13b"))


FIGURE2 = Scenario(
    "paged-vs-standard",
    "reservation",
    "ShareGPT lengths at saturation through three reservations in buddy blocks, and through pages",
    "a fifth to two fifths of the memory hold tokens with reservations, nearly all of it with pages",
    "pages",
    lambda draw, cured: _setup(draw, "paged" if cured else "max"),
    ("capacity", "preemption_storm"),
    compare=lambda draw: {policy: _setup(draw, policy) for policy in POLICIES},
)
