"""Allocation policies without torch: paged with a prefix cache, contiguous first fit.

Invariant: kernels hold the policy, small classes and the scheduler call them; nothing here knows requests beyond a
number.
"""

from __future__ import annotations

from kvmon.allocators.config import AllocatorConfig, ContiguousConfig, PagedConfig, parse_reserve
from kvmon.allocators.contiguous import ContiguousAllocator
from kvmon.allocators.paged import PagedAllocator
from kvmon.allocators.protocol import Allocator
from kvmon.allocators.refusal import Contiguity, FinishReason, Outcome, Reason, Refusal

__all__ = [
    "Allocator",
    "AllocatorConfig",
    "Contiguity",
    "ContiguousAllocator",
    "ContiguousConfig",
    "FinishReason",
    "Outcome",
    "PagedAllocator",
    "PagedConfig",
    "Reason",
    "Refusal",
    "parse_reserve",
]
