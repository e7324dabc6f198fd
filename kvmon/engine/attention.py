"""Attention of one step over a contiguous or a paged store; chosen by layout and device, called the same way.

    attention = attention_over(store)
    attention.begin(batch)
    model(tokens, batch.positions, attention)          attention(layer, q, k, v) in each layer

Contiguous: the keys and values of a sequence are one slice, read in place. Paged on a CPU: the pages of the batch are
gathered once a layer, and no others. On a GPU see `gpu_attention`.

Invariant: the result does not depend on the layout, beyond the order of additions; only tokens that the scheduler
counts as computed, and those of this step up to the own one, are ever read (`read_tokens` counts them).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch.nn import functional as F

from kvmon.engine.batch import Batch
from kvmon.engine.kvstore import KVStore

__all__ = ["Attention", "ContiguousAttention", "GatheredAttention", "attention_over"]


class Attention(Protocol):
    """Writes the step's keys and values and attends over everything that is there."""

    read_tokens: int
    """Tokens whose keys and values were fetched from the store so far, layers counted apart."""

    def begin(self, batch: Batch) -> None:
        """A step begins; `batch` is its tokens."""

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """(t, heads, head_dim), (t, kv_heads, head_dim) twice -> (t, heads, head_dim)."""


def attention_over(store: KVStore) -> Attention:
    """The attention for this store's layout and device."""
    if store.data.is_cuda:
        from kvmon.engine.gpu_attention import BlockAttention, KernelAttention

        return KernelAttention(store) if store.paged else BlockAttention(store)
    return GatheredAttention(store) if store.paged else ContiguousAttention(store)


class _OverSequences:
    """What contiguous and gathered attention share: one scaled-dot-product attention for each sequence."""

    def __init__(self, store: KVStore) -> None:
        self._store = store
        self._group = store.model.heads // store.model.kv_heads
        self._windows = store.model.windows
        self.read_tokens = 0
        self._batch: Batch

    def begin(self, batch: Batch) -> None:
        """A step begins."""
        self._batch = batch
        self._slots = [batch.on_device(slots) for slots in batch.slots]
        self._spans = list(zip(batch.starts.tolist(), batch.starts[1:].tolist(), batch.lengths.tolist(), strict=False))

    def _attend(self, out: torch.Tensor, q: torch.Tensor, sequence: int, pool: torch.Tensor, window: int) -> None:
        """Attention of one sequence: `pool` (2, n, kv_heads, head_dim) holds its last n tokens."""
        start, end, length = self._spans[sequence]
        new, group = end - start, self._group
        first = length - pool.shape[1]
        # Query heads that share keys and values stand below each other, as more queries of one head.
        kv_heads, width = pool.shape[2], pool.shape[3]
        queries = q[start:end].view(new, kv_heads, group, width).permute(1, 2, 0, 3).reshape(1, kv_heads, -1, width)
        mask = self._batch.mask(sequence, first, group, window) if new > 1 else None
        keys, values = pool[0].transpose(0, 1)[None], pool[1].transpose(0, 1)[None]
        found = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        out[start:end] = found.view(kv_heads, group, new, width).permute(2, 0, 1, 3).reshape(new, -1, width)


class ContiguousAttention(_OverSequences):
    """Every sequence's keys and values are a slice of the store, read as a view."""

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """See the protocol."""
        out = torch.empty_like(q)
        self._store.write(layer, self._slots[0], k, v)
        self._attend_blocks(layer, q, out, 1)
        return out

    def _attend_blocks(self, layer: int, q: torch.Tensor, out: torch.Tensor, least: int) -> None:
        """Fill the rows of every sequence with `least` new tokens or more."""
        batch, store, window = self._batch, self._store, self._windows[layer]
        for sequence, (unit, (start, end, length)) in enumerate(
            zip(batch.tables[0][:, 0].tolist(), self._spans, strict=True)
        ):
            if end - start < least:
                continue
            block = store.block(layer, unit, length)
            if window:
                block = block[:, max(length - (end - start) - window + 1, 0) :]
            self.read_tokens += block.shape[1]
            self._attend(out, q, sequence, block, window)


class GatheredAttention(_OverSequences):
    """The pages of the batch are copied together once a layer, in the order of the sequences."""

    def begin(self, batch: Batch) -> None:
        """A step begins: which pages each sequence reads, in each group and for each width of a window."""
        super().begin(batch)
        self._pages: dict[tuple[int, int], tuple[torch.Tensor, list[int]]] = {}

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """See the protocol."""
        store, window = self._store, self._windows[layer]
        group = store.place[layer][0]
        store.write(layer, self._slots[group], k, v)
        pages, firsts = self._pages_of(group, window)
        gathered = store.gather(layer, pages)
        self.read_tokens += gathered.shape[1]
        out = torch.empty_like(q)
        place = 0
        unit = store.unit_tokens
        for sequence, ((start, end, length), first) in enumerate(zip(self._spans, firsts, strict=True)):
            # The first page may begin before the window.
            before = max(length - (end - start) - window + 1 - first * unit, 0) if window else 0
            last = place + length - first * unit
            self._attend(out, q, sequence, gathered[:, place + before : last], window)
            place += -(-(length - first * unit) // unit) * unit
        return out

    def _pages_of(self, group: int, window: int) -> tuple[torch.Tensor, list[int]]:
        """Pages (from 0) that the step reads, sequence by sequence, and the first page of each sequence."""
        key = (group, window)
        if key not in self._pages:
            batch, unit = self._batch, self._store.unit_tokens
            firsts = np.zeros(len(batch.lengths), np.int64)
            if window:
                firsts = np.maximum(batch.computed - window + 1, 0) // unit
            ends = -(-batch.lengths // unit)
            rows = [batch.tables[group][i, firsts[i] : ends[i]] for i in range(len(firsts))]
            pages = batch.on_device(np.concatenate(rows).astype(np.int64) - 1)
            self._pages[key] = pages, firsts.tolist()
        return self._pages[key]
