"""Attention over a paged KV cache on CUDA: Triton kernels that follow the page tables instead of gathering the cache.

Purpose: `paged_attention` is the attention of a whole step, prefills and decodes together, straight from the pool. A
sequence of one new token reads its context in splits, by programs side by side, and `_merge` joins what they found
(flash-decoding): a decode is as fast as the memory. A sequence of more new tokens is cut into blocks of queries.

Invariants:
- Nothing is read for a token that no query of the program sees, neither its table entry nor its slot. Entries there are
  garbage, and a freed page may be full of NaN, which a weight of zero does not remove.
- The running maximum starts at a finite lowest value, so that a block in which a row sees no token adds nothing to it.
  With -inf that would be exp(-inf - -inf), NaN.
- Nothing here waits for the device, and no count that changes from step to step is compiled in.

It imports triton at once, so only the CUDA path of the engine may import it. Names in capitals are known while
compiling. With TRITON_INTERPRET=1 in the environment the same kernels run on CPU tensors, which the tests use.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

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
    _single_kernel[(step.keys.shape[1], step.sequences, splits)](
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
        _merge_kernel[(heads, step.sequences)](
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
    _block_kernel[(blocks, step.keys.shape[1])](
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


@triton.jit  # type: ignore[untyped-decorator]
def _slots(table: tl.tensor, positions: tl.tensor, seen: tl.tensor, UNIT_TOKENS: tl.constexpr) -> tl.tensor:
    """Slots of tokens, 64 bits wide because elements of a pool are counted past 2^31; any number for an unseen one."""
    units = tl.load(table + positions // UNIT_TOKENS, mask=seen, other=1)
    return (units.to(tl.int64) - 1) * UNIT_TOKENS + positions % UNIT_TOKENS


@triton.jit  # type: ignore[untyped-decorator]
def _fold(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    visible: tl.tensor,
    scale: tl.tensor,
    result: tl.tensor,
    total: tl.tensor,
    highest: tl.tensor,
) -> tl.tensor:
    """Take a block of tokens into the running softmax of the rows of q: weighted values, sum of weights, maximum."""
    scores = tl.where(visible, tl.dot(q, tl.trans(k), input_precision="ieee") * scale, float("-inf"))
    higher = tl.maximum(highest, tl.max(scores, 1))
    shrink = tl.exp2(highest - higher)
    weights = tl.exp2(scores - higher[:, None])
    result = tl.dot(weights.to(v.dtype), v, result * shrink[:, None], input_precision="ieee")
    return result, total * shrink + tl.sum(weights, 1), higher


# These differ from step to step: left alone, triton would compile anew where one turns 1 or a multiple of 16.
@triton.jit(do_not_specialize=["table_stride", "window", "split_tokens", "splits"])  # type: ignore[untyped-decorator]
def _single_kernel(
    query: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    tables: tl.tensor,
    lengths: tl.tensor,
    starts: tl.tensor,
    out: tl.tensor,
    parts: tl.tensor,
    sums: tl.tensor,
    query_stride: tl.tensor,
    query_head_stride: tl.tensor,
    key_stride: tl.tensor,
    key_head_stride: tl.tensor,
    value_stride: tl.tensor,
    value_head_stride: tl.tensor,
    table_stride: tl.tensor,
    scale: tl.tensor,
    window: tl.tensor,
    split_tokens: tl.tensor,
    splits: tl.tensor,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT_TOKENS: tl.constexpr,
    SPLIT: tl.constexpr,
) -> None:
    """One split of the context of one sequence, for the query heads of one head of keys and values."""
    kv_head = tl.program_id(0)  # the fastest, because the heads of a slot are neighbours in memory
    sequence = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    token = tl.load(starts + sequence).to(tl.int64)
    if tl.load(starts + sequence + 1) - token != 1:
        return
    length = tl.load(lengths + sequence)
    begin = tl.maximum(length - window, 0) + split * split_tokens
    end = tl.minimum(begin + split_tokens, length)
    if begin >= end:
        return

    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, PADDED_DIM)
    heads = kv_head * GROUP + rows
    filled = (rows < GROUP)[:, None] & (columns < HEAD_DIM)[None, :]
    elements = heads[:, None] * query_head_stride + columns[None, :]
    q = tl.load(query + token * query_stride + elements, mask=filled, other=0.0)
    keys += kv_head * key_head_stride
    values += kv_head * value_head_stride
    table = tables + sequence * table_stride

    result = tl.zeros([ROWS, PADDED_DIM], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    highest = tl.full([ROWS], -1.0e30, tl.float32)
    for first in range(begin, end, BLOCK):
        positions = first + tl.arange(0, BLOCK)
        seen = positions < end
        slots = _slots(table, positions, seen, UNIT_TOKENS)[:, None]
        read = seen[:, None] & (columns < HEAD_DIM)[None, :]
        k = tl.load(keys + slots * key_stride + columns[None, :], mask=read, other=0.0)
        v = tl.load(values + slots * value_stride + columns[None, :], mask=read, other=0.0)
        result, total, highest = _fold(q, k, v, seen[None, :], scale, result, total, highest)

    result = result / total[:, None]
    if SPLIT:
        places = (sequence * tl.num_programs(0) * GROUP + heads) * splits + split
        tl.store(parts + places[:, None] * HEAD_DIM + columns[None, :], result, mask=filled)
        tl.store(sums + places, highest + tl.log2(total), mask=rows < GROUP)
    else:
        places = token * tl.num_programs(0) * GROUP + heads
        tl.store(out + places[:, None] * HEAD_DIM + columns[None, :], result.to(out.dtype.element_ty), mask=filled)


@triton.jit(do_not_specialize=["window", "split_tokens", "splits"])  # type: ignore[untyped-decorator]
def _merge_kernel(
    parts: tl.tensor,
    sums: tl.tensor,
    lengths: tl.tensor,
    starts: tl.tensor,
    out: tl.tensor,
    window: tl.tensor,
    split_tokens: tl.tensor,
    splits: tl.tensor,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    AT_ONCE: tl.constexpr,
) -> None:
    """Join the splits of one sequence and query head, each weighted with its share of the sum of all weights."""
    head = tl.program_id(0)
    sequence = tl.program_id(1).to(tl.int64)
    token = tl.load(starts + sequence).to(tl.int64)
    if tl.load(starts + sequence + 1) - token != 1:
        return
    used = tl.cdiv(tl.minimum(tl.load(lengths + sequence), window), split_tokens)
    columns = tl.arange(0, PADDED_DIM)
    place = (sequence * tl.num_programs(0) + head) * splits

    result = tl.zeros([PADDED_DIM], tl.float32)
    total = 0.0
    highest = -1.0e30
    for first in range(0, used, AT_ONCE):
        taken = first + tl.arange(0, AT_ONCE)
        logs = tl.load(sums + place + taken, mask=taken < used, other=float("-inf"))
        read = (taken < used)[:, None] & (columns < HEAD_DIM)[None, :]
        part = tl.load(parts + (place + taken)[:, None] * HEAD_DIM + columns[None, :], mask=read, other=0.0)
        higher = tl.maximum(highest, tl.max(logs, 0))
        shrink = tl.exp2(highest - higher)
        weights = tl.exp2(logs - higher)
        result = result * shrink + tl.sum(part * weights[:, None], 0)
        total = total * shrink + tl.sum(weights, 0)
        highest = higher
    elements = (token * tl.num_programs(0) + head) * HEAD_DIM + columns
    tl.store(out + elements, (result / total).to(out.dtype.element_ty), mask=columns < HEAD_DIM)


@triton.jit(do_not_specialize=["table_stride", "window", "sequences"])  # type: ignore[untyped-decorator]
def _block_kernel(
    query: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    tables: tl.tensor,
    lengths: tl.tensor,
    starts: tl.tensor,
    out: tl.tensor,
    query_stride: tl.tensor,
    query_head_stride: tl.tensor,
    key_stride: tl.tensor,
    key_head_stride: tl.tensor,
    value_stride: tl.tensor,
    value_head_stride: tl.tensor,
    table_stride: tl.tensor,
    scale: tl.tensor,
    window: tl.tensor,
    sequences: tl.tensor,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    QUERIES: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT_TOKENS: tl.constexpr,
) -> None:
    """One block of QUERIES new tokens of one sequence, for the query heads of one head of keys and values."""
    # The last blocks of a long prompt see the most tokens: they begin first.
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.program_id(1)
    # Blocks of sequence i are numbered from starts[i] // QUERIES + i, which leaves each room for one that is not full.
    low = 0
    high = sequences
    while low < high:
        middle = (low + high) // 2
        if tl.load(starts + middle) // QUERIES + middle <= block:
            low = middle + 1
        else:
            high = middle
    sequence = tl.cast(low - 1, tl.int64)
    start = tl.load(starts + sequence)
    new_tokens = tl.load(starts + sequence + 1) - start
    first_token = (block - (start // QUERIES + low - 1)) * QUERIES
    if (new_tokens == 1) | (first_token >= new_tokens):
        return

    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, PADDED_DIM)
    tokens = first_token + rows // GROUP
    heads = kv_head * GROUP + rows % GROUP
    filled = ((rows < QUERIES * GROUP) & (tokens < new_tokens))[:, None] & (columns < HEAD_DIM)[None, :]
    token_rows = (start + tokens).to(tl.int64)
    elements = (token_rows * query_stride + heads * query_head_stride)[:, None] + columns[None, :]
    q = tl.load(query + elements, mask=filled, other=0.0)
    keys += kv_head * key_head_stride
    values += kv_head * value_head_stride
    table = tables + sequence * table_stride

    before = tl.load(lengths + sequence) - new_tokens
    at = before + tokens
    begin = tl.maximum(before + first_token - window + 1, 0)
    end = before + tl.minimum(first_token + QUERIES, new_tokens)
    result = tl.zeros([ROWS, PADDED_DIM], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    highest = tl.full([ROWS], -1.0e30, tl.float32)
    for first in range(begin, end, BLOCK):
        positions = first + tl.arange(0, BLOCK)
        seen = positions < end
        slots = _slots(table, positions, seen, UNIT_TOKENS)[:, None]
        read = seen[:, None] & (columns < HEAD_DIM)[None, :]
        k = tl.load(keys + slots * key_stride + columns[None, :], mask=read, other=0.0)
        v = tl.load(values + slots * value_stride + columns[None, :], mask=read, other=0.0)
        visible = (positions[None, :] <= at[:, None]) & (positions[None, :] > (at - window)[:, None])
        result, total, highest = _fold(q, k, v, visible, scale, result, total, highest)

    # A row behind the last token may have seen nothing; it is not stored.
    result = result / tl.where(total == 0.0, 1.0, total)[:, None]
    places = token_rows * tl.num_programs(1) * GROUP + heads
    tl.store(out + places[:, None] * HEAD_DIM + columns[None, :], result.to(out.dtype.element_ty), mask=filled)
