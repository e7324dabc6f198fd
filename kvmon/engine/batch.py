"""The tokens of one step, as the model and the attention need them: built from the scheduler's plan, once a step.

Sequence i has rows `starts[i]` to `starts[i + 1] - 1` of everything that has one row a token; they are its last tokens,
at positions `computed[i]` on, and it has `lengths[i]` tokens with them.

Invariant: what is built depends on the plan, the block tables and the tokens alone; it is the same for every layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from kvmon.allocators import PagedConfig
from kvmon.serving import Plan, Scheduler
from kvmon.serving import state as at

__all__ = ["Batch", "build_batch"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """One step; see the module.

    positions   int64 (t)
    slots       int64 (t): where each token's keys and values go, an array a group (one, or two with a window group)
    tables      int32 (n, width): units of each sequence in the order of its tokens, an array a group; of a contiguous
                pool the first column alone, the first unit of the block
    """

    starts: Ints
    computed: Ints
    lengths: Ints
    positions: Ints
    slots: tuple[Ints, ...]
    tables: tuple[npt.NDArray[np.int32], ...]
    unit_tokens: int
    device: str
    masks: dict[tuple[int, int, int], torch.Tensor] = field(default_factory=dict)

    @property
    def longest_query(self) -> int:
        """Most new tokens of a sequence."""
        return int(np.diff(self.starts).max())

    def on_device(self, array: npt.NDArray[np.int64] | npt.NDArray[np.int32]) -> torch.Tensor:
        """An array where the model is."""
        return torch.from_numpy(array).to(self.device)

    def mask(self, sequence: int, first: int, group: int, window: int) -> torch.Tensor:
        """Which of a sequence's tokens from `first` on each of its new ones sees, True for yes:
        (group * new, length - first), the new tokens of each query head one after the other."""
        key = (sequence, first, window)
        if key not in self.masks:
            position = torch.arange(int(self.computed[sequence]), int(self.lengths[sequence]), device=self.device)
            other = torch.arange(first, int(self.lengths[sequence]), device=self.device)
            seen = other[None, :] <= position[:, None]
            if window:
                seen &= other[None, :] > position[:, None] - window
            self.masks[key] = seen.repeat(group, 1)
        return self.masks[key]


def build_batch(scheduler: Scheduler, plan: Plan, device: str) -> Batch:
    """The batch of a plan that was just made; the scheduler must not change before it is used up."""
    allocator = scheduler.allocator
    unit = allocator.unit_tokens
    tokens = plan.tokens.astype(np.int64)
    computed = plan.computed.astype(np.int64)
    starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(tokens)))
    of = np.repeat(np.arange(len(tokens)), tokens)
    positions = np.arange(starts[-1]) - starts[of] + computed[of]
    if isinstance(allocator, PagedConfig):
        width = int(-(-(computed + tokens).max() // unit))
        tables = [np.ascontiguousarray(plan.tables[plan.seats, :width])]
        if allocator.window_tokens:
            seats = int(scheduler.state.config[at.SEATS])
            tables.append(np.ascontiguousarray(plan.tables[seats + plan.seats, :width]))
        slots = [(table[of, positions // unit].astype(np.int64) - 1) * unit + positions % unit for table in tables]
    else:
        first = plan.blocks[plan.seats, 0]
        tables = [first.astype(np.int32)[:, np.newaxis]]
        slots = [(first[of] - 1) * unit + positions]
    return Batch(
        starts=starts,
        computed=computed,
        lengths=computed + tokens,
        positions=positions,
        slots=tuple(slots),
        tables=tuple(tables),
        unit_tokens=unit,
        device=device,
    )
