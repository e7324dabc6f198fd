"""Attention on a GPU: a kernel reads keys and values where they are, over either layout.

Pages: one kernel for the whole step, prompts and decodes. Blocks: sequences with one new token go through the same
kernel, whose table is then the consecutive units of each block; a prompt is a scaled-dot-product attention over the
view of its block. Without that, contiguous decodes would pay one launch for each sequence and layer.

Invariant: nothing is gathered, and nothing here waits for the GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from kvmon.engine.attention import ContiguousAttention
from kvmon.engine.batch import Batch
from kvmon.engine.kvstore import KVStore
from kvmon.engine.paged_attention import paged_attention

__all__ = ["BlockAttention", "KernelAttention", "KernelInputs", "consecutive"]


@dataclass(frozen=True)
class KernelInputs:
    """What the kernel reads of a step, on the GPU; see `paged_attention` for shapes. `slots` and `tables` by group."""

    slots: tuple[torch.Tensor, ...]
    tables: tuple[torch.Tensor, ...]
    lengths: torch.Tensor
    starts: torch.Tensor
    longest_query: int
    longest_context: int


def consecutive(first: torch.Tensor, lengths: torch.Tensor, width: int, unit_tokens: int) -> torch.Tensor:
    """Tables of blocks: units `first`, `first + 1`, ... as far as each sequence goes, int32 (n, width)."""
    steps = torch.arange(width, dtype=torch.int32, device=first.device)
    last = (lengths - 1) // unit_tokens
    return first[:, None] + torch.minimum(steps[None, :], last[:, None].to(torch.int32))


class KernelAttention:
    """Pages, all in one kernel; `use` takes inputs that stay where they are, as a CUDA graph needs it."""

    def __init__(self, store: KVStore) -> None:
        self._store = store
        self._scale = store.model.head_dim**-0.5
        self.read_tokens = 0
        self._inputs: KernelInputs

    def begin(self, batch: Batch) -> None:
        """A step begins: its tables and lengths go to the GPU."""
        self.use(
            KernelInputs(
                slots=tuple(batch.on_device(slots) for slots in batch.slots),
                tables=tuple(batch.on_device(table) for table in batch.tables),
                lengths=batch.on_device(batch.lengths.astype(np.int32)),
                starts=batch.on_device(batch.starts.astype(np.int32)),
                longest_query=batch.longest_query,
                longest_context=int(batch.lengths.max()),
            )
        )

    def use(self, inputs: KernelInputs) -> None:
        """Attend over these inputs from now on."""
        self._inputs = inputs

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """See `Attention`."""
        store, inputs = self._store, self._inputs
        group = store.place[layer][0]
        store.write(layer, inputs.slots[group], k, v)
        keys, values = store.pool(layer)
        return paged_attention(
            q,
            keys,
            values,
            inputs.tables[group],
            inputs.lengths,
            inputs.starts,
            unit_tokens=store.unit_tokens,
            scale=self._scale,
            window=store.model.windows[layer],
            longest_query=inputs.longest_query,
            longest_context=inputs.longest_context,
        )


class BlockAttention(ContiguousAttention):
    """Blocks: decodes through the kernel, prompts over views."""

    def begin(self, batch: Batch) -> None:
        """A step begins."""
        super().begin(batch)
        self._kernel = KernelAttention(self._store)
        lengths = batch.on_device(batch.lengths.astype(np.int32))
        first = batch.on_device(np.ascontiguousarray(batch.tables[0][:, 0]))
        width = -(-int(batch.lengths.max()) // batch.unit_tokens)
        self._kernel.use(
            KernelInputs(
                slots=tuple(self._slots),
                tables=(consecutive(first, lengths, width, batch.unit_tokens),),
                lengths=lengths,
                starts=batch.on_device(batch.starts.astype(np.int32)),
                longest_query=1,  # the kernel leaves the rows of prompts alone
                longest_context=int(batch.lengths.max()),
            )
        )
        self._prompts = batch.longest_query > 1

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """See `Attention`."""
        out = self._kernel(layer, q, k, v)
        if self._prompts:
            self._attend_blocks(layer, q, out, 2)
        return out
