"""The kernels of paged attention against attention written out in float64, sequence by sequence.

They run on a GPU, and without one in Triton's interpreter on the CPU, in any environment that has torch and triton:

    TRITON_INTERPRET=1 python -m pytest tests/gpu/test_paged_kernels.py

Without either they skip. Triton 3.6's interpreter wants numpy below 2.4, and bfloat16 is left to the GPU because the
interpreter multiplies its bits. Every pool is poisoned: slots that no new token sees hold NaN, and entries of a table
that lead to no token in sight point far outside the pool.
"""

from __future__ import annotations

import math
import os
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU, or TRITON_INTERPRET=1 before triton is imported", allow_module_level=True)

from kvmon.engine.paged_attention import paged_attention  # noqa: E402 - it imports triton at once

pytestmark = [
    pytest.mark.gpu,
    # the interpreter turns arrays of one element into numbers
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning"),
]

DEVICE = "cpu" if INTERPRETED else "cuda"
GARBAGE = 2**31 - 1
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Weights and results are rounded to the type of the values: 24, 11 and 8 bits.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


class Shape(NamedTuple):
    """What a kernel is compiled for."""

    dtype: str
    heads: int
    kv_heads: int
    head_dim: int
    unit_tokens: int


SHAPES = [
    Shape("float32", 4, 4, 16, 1),
    Shape("float32", 6, 2, 64, 24),
    Shape("float32", 7, 1, 256, 16),
    Shape("float32", 33, 1, 96, 7),
    Shape("float16", 8, 2, 128, 16),
    Shape("float16", 6, 1, 80, 13),
    Shape("float16", 4, 4, 256, 512),
    Shape("float16", 71, 1, 64, 32),
    Shape("bfloat16", 32, 8, 128, 16),
    Shape("bfloat16", 14, 2, 96, 3),
    Shape("bfloat16", 8, 8, 64, 256),
    Shape("bfloat16", 40, 1, 192, 64),
]
SHAPES = [shape for shape in SHAPES if not (INTERPRETED and shape.dtype == "bfloat16")]


class Step(NamedTuple):
    """One call of the kernels: sequences as (new tokens, all tokens), and their tensors."""

    sequences: list[tuple[int, int]]
    unit_tokens: int
    window: int
    query: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    tables: torch.Tensor

    @property
    def scale(self) -> float:
        return 1 / math.sqrt(self.query.shape[2])

    def attention(self, slack: int = 0) -> torch.Tensor:
        """What the kernels say, told of sequences that are `slack` tokens longer than the longest."""
        starts = [0]
        for new, _ in self.sequences:
            starts.append(starts[-1] + new)
        return paged_attention(
            self.query,
            self.keys,
            self.values,
            self.tables,
            torch.tensor([length for _, length in self.sequences], dtype=torch.int32, device=DEVICE),
            torch.tensor(starts, dtype=torch.int32, device=DEVICE),
            unit_tokens=self.unit_tokens,
            scale=self.scale,
            window=self.window,
            longest_query=max(new for new, _ in self.sequences) + slack,
            longest_context=max(length for _, length in self.sequences) + slack,
        )

    def reference(self) -> torch.Tensor:
        """Attention by its definition, in float64."""
        group = self.query.shape[1] // self.keys.shape[1]
        rows, results = 0, []
        for table, (new, length) in zip(self.tables.cpu().long(), self.sequences, strict=True):
            first = first_seen(new, length, self.window)
            positions = torch.arange(first, length)
            slots = (table[positions // self.unit_tokens] - 1) * self.unit_tokens + positions % self.unit_tokens
            slots = slots.to(DEVICE)
            k = self.keys[slots].double().repeat_interleave(group, 1)
            v = self.values[slots].double().repeat_interleave(group, 1)
            scores = torch.einsum("qhd,khd->hqk", self.query[rows : rows + new].double(), k) * self.scale
            behind = torch.arange(length - new, length)[:, None] - positions[None, :]
            hidden = (behind < 0) | (behind >= (self.window or length))
            weights = scores.masked_fill(hidden.to(DEVICE), -math.inf).softmax(-1)
            results.append(torch.einsum("hqk,khd->qhd", weights, v))
            rows += new
        return torch.cat(results)

    def check(self) -> None:
        """The kernels agree with the definition, to the rounding of the type."""
        tolerance = TOLERANCE[self.query.dtype]
        result = self.attention()
        assert result.dtype == self.query.dtype and result.shape == self.query.shape
        torch.testing.assert_close(result.double(), self.reference(), atol=tolerance, rtol=tolerance)


def first_seen(new: int, length: int, window: int) -> int:
    """The earliest position that a new token of a sequence sees."""
    return max(length - new - window + 1, 0) if window else 0


def make(shape: Shape, sequences: list[tuple[int, int]], window: int = 0, seed: int = 0) -> Step:
    """A step over pages in random order, with NaN and garbage wherever nothing has to be read."""
    chance = torch.Generator().manual_seed(seed)
    unit = shape.unit_tokens
    pages = [-(-length // unit) for _, length in sequences]
    capacity = sum(pages) + 3
    order = (torch.randperm(capacity, generator=chance) + 1).tolist()
    tables = torch.full((len(sequences), max(pages) + 2), GARBAGE, dtype=torch.int32)
    seen = torch.zeros(capacity * unit, dtype=torch.bool)
    for row, (new, length) in enumerate(sequences):
        for page in range(first_seen(new, length, window) // unit, pages[row]):
            tables[row, page] = order.pop()
        positions = torch.arange(first_seen(new, length, window), length)
        seen[(tables[row].long()[positions // unit] - 1) * unit + positions % unit] = True

    def pool() -> torch.Tensor:
        slots = torch.randn((capacity * unit, shape.kv_heads, shape.head_dim), generator=chance)
        slots[~seen] = math.nan
        return slots.to(DEVICE, DTYPES[shape.dtype])

    query = torch.randn((sum(new for new, _ in sequences), shape.heads, shape.head_dim), generator=chance)
    query = (2 * query).to(DEVICE, DTYPES[shape.dtype])
    return Step(sequences, unit, window, query, pool(), pool(), tables.to(DEVICE))


def name(shape: Shape) -> str:
    """A shape as the name of a test."""
    return "-".join(map(str, shape))


@pytest.mark.parametrize("window", [0, 50])
@pytest.mark.parametrize("shape", SHAPES, ids=name)
def test_decodes_agree_with_the_definition(shape: Shape, window: int) -> None:
    """One new token for each sequence: contexts of one token, of some splits, and with the last split nearly empty."""
    make(shape, [(1, 1), (1, 513), (1, 129), (1, 700), (1, 64)], window).check()


@pytest.mark.parametrize("window", [0, 50])
@pytest.mark.parametrize("shape", SHAPES, ids=name)
def test_mixed_steps_agree_with_the_definition(shape: Shape, window: int) -> None:
    """First parts and later parts of prompts beside decodes, with sequences that have nothing to do this time."""
    sequences = [(1, 300), (37, 37), (0, 5), (1, 1), (2, 90), (70, 215), (1, 33), (0, 0)]
    make(shape, [(new, length) for new, length in sequences if length], window).check()


@pytest.mark.parametrize("shape", SHAPES[:6], ids=name)
def test_a_single_prompt_agrees_with_the_definition(shape: Shape) -> None:
    """A whole prompt alone, and with a window that is shorter than a block of queries."""
    make(shape, [(150, 150)]).check()
    make(shape, [(150, 150)], window=3).check()


@pytest.mark.parametrize("new", [1, 9])
def test_a_window_of_one_token_gives_the_value_of_the_token(new: int) -> None:
    """Who sees only itself gets its own value."""
    step = make(Shape("float32", 2, 1, 16, 4), [(new, 40), (new, new)], window=1)
    torch.testing.assert_close(step.attention().double(), step.reference(), atol=1e-6, rtol=1e-6)


def test_a_sequence_gets_the_same_beside_others() -> None:
    """What the neighbours are changes no more than the order in which splits are added."""
    shape = SHAPES[1]
    together = make(shape, [(1, 500), (20, 60), (1, 40)])
    result = together.attention()
    for row, (sequence, first, last) in enumerate([((1, 500), 0, 1), ((20, 60), 1, 21), ((1, 40), 21, 22)]):
        alone = together._replace(
            sequences=[sequence], query=together.query[first:last], tables=together.tables[row : row + 1]
        )
        torch.testing.assert_close(alone.attention(), result[first:last], atol=1e-5, rtol=1e-5)


def test_heads_may_be_cut_out_of_larger_tensors() -> None:
    """Queries out of a joint projection and the layers of a joint pool are taken as they lie."""
    step = make(SHAPES[1], [(1, 200), (30, 90)])
    projection = torch.cat([step.query, torch.full_like(step.query, math.nan)], 1)
    pools = torch.stack([step.keys, step.values], 1)
    heads = step.query.shape[1]
    cut = step._replace(query=projection[:, :heads], keys=pools[:, 0], values=pools[:, 1])
    torch.testing.assert_close(cut.attention(), step.attention(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("sequences", [[(1, 90)], [(1, 300), (1, 1)], [(20, 33)]])
def test_the_longest_may_be_shorter_than_announced(sequences: list[tuple[int, int]]) -> None:
    """Upper bounds of new tokens and contexts do, whichever kernels that makes of them."""
    step = make(SHAPES[1], sequences)
    torch.testing.assert_close(step.attention(slack=300), step.attention(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(step.attention(slack=300).double(), step.reference(), atol=1e-5, rtol=1e-5)


def test_no_new_token_gives_an_empty_result() -> None:
    """A step without a token is no error."""
    step = make(SHAPES[0], [(0, 10)])
    assert step.attention().shape == step.query.shape


def test_elements_of_a_head_that_are_apart_are_refused() -> None:
    """A pool whose last dimension is not contiguous would be read wrongly, so it is not read."""
    from kvmon.errors import InvariantError

    step = make(SHAPES[0], [(1, 10)])
    with pytest.raises(InvariantError, match="contiguous"):
        step._replace(keys=step.keys.transpose(0, 2).contiguous().transpose(0, 2)).attention()


@pytest.mark.skipif(INTERPRETED, reason="the pool takes more than 4 GB")
def test_slots_far_behind_are_found() -> None:
    """Elements of a pool are counted past 2^31: the last pages of a pool that large are read right."""
    shape = Shape("float16", 8, 8, 128, 16)
    step = make(shape, [(1, 90), (40, 70)])
    small = step.keys.shape[0]
    slots = 2**31 // (shape.kv_heads * shape.head_dim) + small
    slots -= slots % shape.unit_tokens
    pool = torch.full((slots, shape.kv_heads, shape.head_dim), math.nan, dtype=torch.float16, device=DEVICE)
    pool[-small:] = step.keys
    moved = torch.where(step.tables == GARBAGE, GARBAGE, step.tables + (slots - small) // shape.unit_tokens)
    step._replace(keys=pool, values=pool, tables=moved.int()).check()


@given(
    shape=st.sampled_from(SHAPES),
    sequences=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 300)), min_size=1, max_size=5),
    single=st.booleans(),
    window=st.one_of(st.just(0), st.integers(1, 120)),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=40, deadline=None)
def test_any_step_agrees_with_the_definition(
    shape: Shape, sequences: list[tuple[int, int]], single: bool, window: int, seed: int
) -> None:
    """Any mix of new tokens and contexts, any window, pages anywhere."""
    news = [(1 if single else new, before) for new, before in sequences]
    drawn = [(new, max(before + new, 1)) for new, before in news]
    if not sum(new for new, _ in drawn):
        drawn.append((1, 1))
    make(shape, drawn, window, seed).check()
