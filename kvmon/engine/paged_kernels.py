"""Triton kernels of paged attention: what one program does; `paged_attention` chooses and launches them.

    single_kernel   one split of the context of a sequence with one new token
    merge_kernel    the splits of a sequence, joined
    block_kernel    a block of the new tokens of a sequence with several

Invariants:
- Nothing is read for a token that no query of the program sees, neither its table entry nor its slot. Entries there are
  garbage, and a freed page may be full of NaN, which a weight of zero does not remove.
- The running maximum starts at a finite lowest value, so that a block in which a row sees no token adds nothing to it.
  With -inf that would be exp(-inf - -inf), NaN.

Names in capitals are known while compiling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

__all__ = ["block_kernel", "merge_kernel", "single_kernel"]


def _jitted(*varying: str) -> Callable[[Callable[..., Any]], Any]:
    """`triton.jit` with a type. `varying` arguments differ from step to step: left alone, triton would compile anew
    where one turns 1 or a multiple of 16."""

    def compiled(function: Callable[..., Any]) -> Any:
        return triton.jit(function, do_not_specialize=list(varying))

    return compiled


@_jitted()
def _read(
    keys: tl.tensor,
    values: tl.tensor,
    table: tl.tensor,
    first: tl.tensor,
    end: tl.tensor,
    key_stride: tl.tensor,
    value_stride: tl.tensor,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    UNIT_TOKENS: tl.constexpr,
) -> tl.tensor:
    """Positions of BLOCK tokens from `first` on, with keys and values of those before `end`; zeros for the others.

    Slots are 64 bits wide because elements of a pool are counted past 2^31.
    """
    positions = first + tl.arange(0, BLOCK)
    columns = tl.arange(0, PADDED_DIM)[None, :]
    seen = positions < end
    units = tl.load(table + positions // UNIT_TOKENS, mask=seen, other=1)
    slots = ((units.to(tl.int64) - 1) * UNIT_TOKENS + positions % UNIT_TOKENS)[:, None]
    read = seen[:, None] & (columns < HEAD_DIM)
    k = tl.load(keys + slots * key_stride + columns, mask=read, other=0.0)
    v = tl.load(values + slots * value_stride + columns, mask=read, other=0.0)
    return positions, k, v


@_jitted()
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


@_jitted("table_stride", "window", "split_tokens", "splits")
def single_kernel(
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
        positions, k, v = _read(
            keys, values, table, first, end, key_stride, value_stride, HEAD_DIM, PADDED_DIM, BLOCK, UNIT_TOKENS
        )
        result, total, highest = _fold(q, k, v, (positions < end)[None, :], scale, result, total, highest)

    result = result / total[:, None]
    if SPLIT:
        places = (sequence * tl.num_programs(0) * GROUP + heads) * splits + split
        tl.store(parts + places[:, None] * HEAD_DIM + columns[None, :], result, mask=filled)
        tl.store(sums + places, highest + tl.log2(total), mask=rows < GROUP)
    else:
        places = token * tl.num_programs(0) * GROUP + heads
        tl.store(out + places[:, None] * HEAD_DIM + columns[None, :], result.to(out.dtype.element_ty), mask=filled)


@_jitted("window", "split_tokens", "splits")
def merge_kernel(
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


@_jitted("table_stride", "window", "sequences")
def block_kernel(
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
        positions, k, v = _read(
            keys, values, table, first, end, key_stride, value_stride, HEAD_DIM, PADDED_DIM, BLOCK, UNIT_TOKENS
        )
        visible = (positions[None, :] <= at[:, None]) & (positions[None, :] > (at - window)[:, None])
        result, total, highest = _fold(q, k, v, visible, scale, result, total, highest)

    # A row behind the last token may have seen nothing; it is not stored.
    result = result / tl.where(total == 0.0, 1.0, total)[:, None]
    places = token_rows * tl.num_programs(1) * GROUP + heads
    tl.store(out + places[:, None] * HEAD_DIM + columns[None, :], result.to(out.dtype.element_ty), mask=filled)
