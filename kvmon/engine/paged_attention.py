"""Attention over a paged KV cache on CUDA, by kernels that follow the page tables instead of gathering the cache.

Purpose: `paged_attention` is the attention of a whole step, prefills and decodes together, straight from the pool. A
sequence of one new token reads its context in splits, by programs side by side, and `merge_kernel` joins what they
found (flash-decoding): a decode is as fast as the memory. A sequence of more new tokens is cut into blocks of queries.
Here the programs of a step are chosen and launched; what each of them does is in `paged_kernels`.

Invariant: nothing here waits for the device, and no count that changes from step to step is compiled in.

It imports triton at once, so only the CUDA path of the engine may import it. With TRITON_INTERPRET=1 in the environment
the same kernels run on CPU tensors, which the tests use.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from kvmon.engine.paged_kernels import block_kernel, merge_kernel, single_kernel
from kvmon.errors import InvariantError

__all__ = ["paged_attention"]

_EVERY_TOKEN = 1 << 30  # a window that no context fills
# Elements of keys, and as many of values, in one block of tokens. Float32 is multiplied without tensor cores, out of
# registers, which hold no more.
_TILE = 8192
_FLOAT32_TILE = 2048
_LONG_SPLIT = 2048  # tokens; from here on merging costs nothing, and one long sequence would keep a batch waiting
_LONG_SPLITS = 16  # of them at most in a batch that fills the device without splits: partial results take memory
_MOST_SPLITS = 128
# About twice what an H100 holds at a time, so that the programs that end last leave little of it idle.
_PROGRAMS_PER_PROCESSOR = 8
_INTERPRETED_PROCESSORS = 16


class _Step(NamedTuple):
    """What every kernel needs; the fields are those of `paged_attention`."""

    query: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    tables: torch.Tensor
    lengths: torch.Tensor
    starts: torch.Tensor
    result: torch.Tensor
    scale: float  # of a score in powers of two
    window: int  # never 0

    @property
    def sequences(self) -> int:
        return self.lengths.shape[0]

    @property
    def group(self) -> int:
        """Query heads that share a head of keys and values."""
        return self.query.shape[1] // self.keys.shape[1]

    @property
    def padded_dim(self) -> int:
        """Elements of a head, padded for the tensor cores."""
        return _power_of_two(self.query.shape[2])

    def block_tokens(self, rows: int) -> int:
        """Tokens of the context that a program with this many rows looks at in one turn of its loop."""
        tile = _FLOAT32_TILE if self.query.dtype == torch.float32 else _TILE
        return min(max(tile // self.padded_dim, 16), 128 if rows == 16 else 64)

    def warps(self, rows: int) -> int:
        """Enough that the result of a program, in float32, fits their registers."""
        return 4 if rows * self.padded_dim <= 8192 else 8

    def strides(self) -> tuple[int, ...]:
        """Of a token or slot and of a head, in elements: query, keys, values; then of a row of the tables."""
        inner = (self.query, self.keys, self.values)
        return (*(stride for tensor in inner for stride in tensor.stride()[:2]), self.tables.stride(0))


def paged_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    starts: torch.Tensor,
    *,
    unit_tokens: int,
    scale: float,
    window: int,
    longest_query: int,
    longest_context: int,
) -> torch.Tensor:
    """Causal attention of the new tokens of n sequences over their pages: (tokens, heads, head_dim), as `query`.

    query: the new tokens of all sequences one after the other. keys, values: the pool, (slots, kv_heads, head_dim), of
    query's type; token j of sequence i is in slot (tables[i, j // unit_tokens] - 1) * unit_tokens + j % unit_tokens,
    as units count from 1. tables: int32 (n, width). lengths: int32 (n), tokens of each sequence, its new ones included.
    starts: int32 (n + 1); rows starts[i] .. starts[i + 1] - 1 of query are the last positions of sequence i. window:
    the token at p sees p - window + 1 .. p, with 0 every earlier one. longest_query, longest_context: the most new
    tokens, and the most tokens, of a sequence. Everything is on the current device, which nothing here looks at.
    """
    if any(tensor.stride(2) != 1 for tensor in (query, keys, values)):
        raise InvariantError("the elements of a head must lie side by side: make the last dimension contiguous")
    result = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    powers = scale * math.log2(math.e)
    step = _Step(query, keys, values, tables, lengths, starts, result, powers, window or _EVERY_TOKEN)
    if query.shape[0] == 0:
        return result
    if longest_query > 1:
        _attend_blocks(step, unit_tokens, longest_query)
    # How many of several sequences have one new token, only the device knows.
    if longest_query == 1 or step.sequences > 1 or query.shape[0] == 1:
        _attend_singles(step, unit_tokens, longest_context)
    return result


def _attend_singles(step: _Step, unit_tokens: int, longest_context: int) -> None:
    """Fill the result of each sequence of one new token."""
    _, heads, head_dim = step.query.shape
    context = min(longest_context, step.window)
    rows = max(_power_of_two(step.group), 16)
    block = step.block_tokens(rows)
    split_tokens = _split_tokens(step, context, block)
    splits = -(-context // split_tokens)
    parts, sums = step.result, step.result  # unused where one program sees the whole context
    if splits > 1:
        parts = torch.empty((step.sequences, heads, splits, head_dim), dtype=torch.float32, device=step.query.device)
        sums = torch.empty((step.sequences, heads, splits), dtype=torch.float32, device=step.query.device)
    single_kernel[(step.keys.shape[1], step.sequences, splits)](
        *step[:7],
        parts,
        sums,
        *step.strides(),
        step.scale,
        step.window,
        split_tokens,
        splits,
        GROUP=step.group,
        ROWS=rows,
        HEAD_DIM=head_dim,
        PADDED_DIM=step.padded_dim,
        BLOCK=block,
        UNIT_TOKENS=unit_tokens,
        SPLIT=splits > 1,
        num_warps=step.warps(rows),
        num_stages=3,
    )
    if splits > 1:
        merge_kernel[(heads, step.sequences)](
            parts,
            sums,
            step.lengths,
            step.starts,
            step.result,
            step.window,
            split_tokens,
            splits,
            HEAD_DIM=head_dim,
            PADDED_DIM=step.padded_dim,
            AT_ONCE=16,
            num_warps=2,
        )


def _split_tokens(step: _Step, context: int, block: int) -> int:
    """Tokens of a split: few enough that all programs fill the device, and a whole number of blocks."""
    device = step.query.device
    processors = _INTERPRETED_PROCESSORS
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    unsplit = step.sequences * step.keys.shape[1]
    wanted = -(-processors * _PROGRAMS_PER_PROCESSOR // unsplit)
    tokens = min(-(-context // wanted), max(_LONG_SPLIT, -(-context // _LONG_SPLITS)))
    tokens = max(tokens, 2 * block, -(-context // _MOST_SPLITS))
    return -(-tokens // block) * block


def _attend_blocks(step: _Step, unit_tokens: int, longest_query: int) -> None:
    """Fill the result of each sequence of several new tokens."""
    tokens, _, head_dim = step.query.shape
    rows = _block_rows(step, longest_query)
    block_queries = rows // step.group
    # Each sequence has at most one block that is not full; the programs behind the last block end at once.
    blocks = tokens // block_queries + step.sequences
    block_kernel[(blocks, step.keys.shape[1])](
        *step[:7],
        *step.strides(),
        step.scale,
        step.window,
        step.sequences,
        GROUP=step.group,
        ROWS=rows,
        QUERIES=block_queries,
        HEAD_DIM=head_dim,
        PADDED_DIM=step.padded_dim,
        BLOCK=step.block_tokens(rows),
        UNIT_TOKENS=unit_tokens,
        num_warps=step.warps(rows),
        num_stages=3,
    )


def _block_rows(step: _Step, longest_query: int) -> int:
    """Rows of a block of queries, one for a token and a head: of three sizes, so that few kernels are compiled."""
    largest = 32 if step.query.dtype == torch.float32 else 64 if step.padded_dim > 128 else 128
    needed = longest_query * step.group
    rows = next((size for size in (16, 64) if needed <= size < largest), largest)
    return max(rows, _power_of_two(step.group))


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()
