"""CUDA graphs of decode steps: a step in which every sequence has one new token is one launch instead of hundreds.

A graph is captured for a number of sequences when it is first needed, and a step with fewer runs in the next larger
one; the rows that are too many belong to nobody: they write into a unit behind the pool and their logits are dropped.

Invariant: a step through a graph computes what the same step without it computes. Its inputs are copied into tensors
that stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from kvmon.engine.batch import Batch
from kvmon.engine.gpu_attention import KernelAttention, KernelInputs, consecutive
from kvmon.engine.kvstore import KVStore
from kvmon.engine.model import Decoder

__all__ = ["DecodeGraphs"]

_SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)


class DecodeGraphs:
    """Graphs for one model over one store, of at most `sequences` sequences, the longest of `longest` tokens."""

    def __init__(self, model: Decoder, store: KVStore, sequences: int, longest: int) -> None:
        self._model = model
        self._store = store
        self._longest = longest
        self._width = -(-longest // store.unit_tokens)
        self._attention = KernelAttention(store)
        most, device = next((size for size in _SIZES if size >= sequences), _SIZES[-1]), model.device
        self._most = most
        groups = max(group for group, _ in store.place.values()) + 1
        #: tokens, positions, then the slots of each group
        self._rows = torch.zeros((2 + groups, most), dtype=torch.int64, device=device)
        self._tables = torch.zeros((groups, most, self._width), dtype=torch.int32, device=device)
        self._lengths = torch.ones(most, dtype=torch.int32, device=device)
        self._starts = torch.arange(most + 1, dtype=torch.int32, device=device)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def fits(self, batch: Batch) -> bool:
        """Whether the step is one of decodes, and small enough for a graph."""
        return batch.longest_query == 1 and len(batch.lengths) <= self._most

    def logits(self, tokens: npt.NDArray[np.int64], batch: Batch) -> torch.Tensor:
        """The logits of a step that fits: float32 (n, vocabulary), valid until the next step."""
        n = len(tokens)
        size = next(size for size in _SIZES if size >= n)
        self._fill(tokens, batch, size)
        if size not in self._graphs:
            self._graphs[size] = self._capture(size)
        graph, logits = self._graphs[size]
        graph.replay()
        return logits[:n]

    def _fill(self, tokens: npt.NDArray[np.int64], batch: Batch, size: int) -> None:
        n, unit = len(tokens), self._store.unit_tokens
        rows = np.zeros((len(self._rows), size), np.int64)
        rows[:, :n] = (tokens, batch.positions, *batch.slots)
        rows[2:, n:] = [[(unit_behind - 1) * unit] for unit_behind in self._behind]
        self._rows[:, :size].copy_(torch.from_numpy(rows))
        lengths = np.ones(size, np.int32)
        lengths[:n] = batch.lengths
        self._lengths[:size].copy_(torch.from_numpy(lengths))
        for group, table in enumerate(batch.tables):
            here = self._tables[group]
            if self._store.paged:
                here[:n, : table.shape[1]].copy_(torch.from_numpy(table))
            else:
                first = batch.on_device(np.ascontiguousarray(table[:, 0]))
                width = -(-int(batch.lengths.max()) // unit)
                here[:n, :width] = consecutive(first, self._lengths[:n], width, unit)
            here[n:size, 0] = self._behind[group]

    @property
    def _behind(self) -> tuple[int, ...]:
        """The unit of each group that is nobody's."""
        unit = self._store.unit_tokens
        return tuple(pool.shape[2] // unit for pool in ((self._store.data, self._store.window)[: len(self._rows) - 2]))

    def _capture(self, size: int) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        """Capture the step that was filled in; it runs before, so that every kernel is compiled and every library is
        initialised. What it writes, the replay writes again."""
        self._attention.use(
            KernelInputs(
                slots=tuple(row[:size] for row in self._rows[2:]),
                tables=tuple(table[:size] for table in self._tables),
                lengths=self._lengths[:size],
                starts=self._starts[: size + 1],
                longest_query=1,
                longest_context=self._longest,
            )
        )
        new_stream: Callable[[], torch.cuda.Stream] = torch.cuda.Stream
        aside = new_stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):
                self._forward(size)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = self._forward(size)
        return graph, logits

    def _forward(self, size: int) -> torch.Tensor:
        return self._model.logits(self._model(self._rows[0, :size], self._rows[1, :size], self._attention))
