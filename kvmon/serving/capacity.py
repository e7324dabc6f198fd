"""How much a pool of KV memory can hold, before anybody has run anything: pages, tokens, requests, by page size.

Formulas only. A sequence of n tokens takes ceil(n / B) pages of the layers that keep every token, and of layers with a
window of W tokens those pages that W tokens can touch: min(ceil(n / B), ceil(W / B) + 1). A decode adds a slot a token
and a page exactly every B tokens, so the unfilled rest of the last page, summed over a decode, follows from the lengths
alone; a shared prefix of P tokens can be found for floor(P / B) * B of them.

Invariant: nothing is guessed. What a shape cannot know (pages of a pool that two groups of layers share) is None.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from kvmon.errors import ConfigError
from kvmon.serving.model_shape import ModelShape

__all__ = ["MOST_TOKENS", "Lengths", "Plan", "plan", "tail_ratio"]

Ints = npt.NDArray[np.int64]

MOST_TOKENS = 1 << 30
"""A sequence that is longer than any: what fits of it, fits without a bound."""
_P95 = 95


@dataclass(frozen=True)
class Lengths:
    """Prompt and output of requests in tokens, int64 (n) each, at least one."""

    prompt: Ints
    output: Ints

    @property
    def total(self) -> Ints:
        """Tokens of each request when it ends."""
        total: Ints = self.prompt + self.output
        return total

    @property
    def mean(self) -> int:
        """Mean total, rounded up."""
        return ceil(float(self.total.mean()))

    @property
    def p95(self) -> int:
        """95th percentile of the totals, rounded up."""
        return ceil(float(np.percentile(self.total, _P95)))


@dataclass(frozen=True)
class Plan:
    """What a pool of `capacity_bytes` holds in pages of `page_tokens`. All of one GPU (one tensor-parallel shard)."""

    shape: ModelShape
    capacity_bytes: int
    page_tokens: int

    @property
    def page_bytes(self) -> int:
        """Of a page of the layers that keep every token; 0 where there are none."""
        return self.page_tokens * self.shape.bytes_per_token

    @property
    def window_page_bytes(self) -> int:
        """Of a page of the layers with a window; 0 where there are none."""
        return self.page_tokens * self.shape.window_bytes_per_token

    @property
    def pages(self) -> int | None:
        """None where both kinds of layers share the pool: then it depends on the lengths."""
        return None if self.shape.window_layers else self.capacity_bytes // self.page_bytes

    @property
    def tokens(self) -> int | None:
        """Those of all pages; None as with `pages`."""
        return None if self.pages is None else self.pages * self.page_tokens

    @property
    def longest(self) -> int | None:
        """Tokens of the longest sequence that can ever fit, alone; None = any length fits."""
        if int(self.sequence_bytes(np.array([MOST_TOKENS], np.int64))[0]) <= self.capacity_bytes:
            return None
        low, high = 0, MOST_TOKENS // self.page_tokens  # whole pages that fit, and that do not
        while high - low > 1:
            middle = (low + high) // 2
            fits = self.sequence_bytes(np.array([middle * self.page_tokens], np.int64))[0] <= self.capacity_bytes
            low, high = (middle, high) if fits else (low, middle)
        return low * self.page_tokens

    def sequence_bytes(self, tokens: Ints) -> Ints:
        """Bytes of the pages of sequences of so many tokens."""
        pages = -(-tokens // self.page_tokens)
        window = np.minimum(pages, -(-self.shape.window_tokens // self.page_tokens) + 1)
        taken: Ints = pages * self.page_bytes + window * self.window_page_bytes
        return taken

    def requests_of(self, tokens: int) -> int:
        """Requests of so many tokens that fit at once; they share nothing."""
        if tokens < 1:
            raise ConfigError(f"a request of {tokens} tokens is none: give at least 1")
        if tokens > MOST_TOKENS:
            raise ConfigError(f"a request of {tokens:,} tokens is none: give at most {MOST_TOKENS:,}")
        return self.capacity_bytes // int(self.sequence_bytes(np.array([tokens], np.int64))[0])

    def requests_of_mix(self, lengths: Lengths) -> float:
        """Requests of these lengths that fit at once, each with all of its tokens: capacity / mean bytes."""
        return self.capacity_bytes / float(self.sequence_bytes(lengths.total).mean())

    def never_fit(self, lengths: Lengths) -> int:
        """Requests that are longer than the pool."""
        return int((self.sequence_bytes(lengths.total) > self.capacity_bytes).sum())

    def prefix_hit(self, prefix_tokens: int) -> int:
        """Tokens of a shared prefix that can be found: those of whole pages."""
        return prefix_tokens // self.page_tokens * self.page_tokens

    def as_json(self) -> dict[str, Any]:
        """The numbers that need no lengths."""
        return {
            "page_tokens": self.page_tokens,
            "page_bytes": self.page_bytes or None,
            "window_page_bytes": self.window_page_bytes or None,
            "pages": self.pages,
            "tokens": self.tokens,
            "longest_request_tokens": self.longest,
        }


def plan(shape: ModelShape, capacity_bytes: int, page_tokens: int, *, shards: int = 1) -> Plan:
    """The plan of one GPU of `shards`; `capacity_bytes` is the pool of each of them.

    Raises ConfigError for a page that is none, and for a pool that does not hold one page of each kind.
    """
    if not 1 <= page_tokens <= MOST_TOKENS:
        raise ConfigError(f"a page of {page_tokens} tokens is none: give 1 to {MOST_TOKENS:,}")
    made = Plan(shape.on_one_of(shards), capacity_bytes, page_tokens)
    least = made.page_bytes + made.window_page_bytes
    if capacity_bytes < least:
        raise ConfigError(
            f"a pool of {capacity_bytes:,} bytes holds no page of {page_tokens} tokens, which takes {least:,}: "
            "give a larger pool, or smaller pages"
        )
    return made


def tail_ratio(lengths: Lengths, page_tokens: int) -> float:
    """Unfilled slots of the last pages over all slots, in a decode from prompt to prompt + output of each request;
    every token takes the same time."""
    first, last = lengths.prompt, lengths.total
    unfilled = (_unfilled(last, page_tokens) - _unfilled(first, page_tokens)).sum(dtype=np.float64)
    written = (last * (last + 1) - first * (first + 1)).sum(dtype=np.float64) / 2
    return float(unfilled / (unfilled + written)) if written else 0.0


def _unfilled(tokens: Ints, page_tokens: int) -> Ints:
    """Sum over k = 1 .. tokens of the unfilled slots of the last page of k tokens."""
    full, rest = np.divmod(tokens, page_tokens)
    sums: Ints = full * (page_tokens * (page_tokens - 1) // 2) + rest * page_tokens - rest * (rest + 1) // 2
    return sums
