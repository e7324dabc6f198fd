"""The cache without a size: what prefix reuse a workload holds at most, counted from its identities alone.

Invariant: no scheduler, no memory, no time; request after request in order of arrival, everything seen is kept. Blocks
are the identities themselves (the last one of a prompt may name less than a full step), so the block ratio is
Mooncake's (FAST'25); tokens count the last, partial block with what it holds, full pages alone beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvmon.serving.workload import Workload

__all__ = ["InfiniteCache", "infinite_cache"]


@dataclass(frozen=True)
class InfiniteCache:
    """Blocks and tokens looked up and found; `full_hit_tokens` counts full steps only, against the same lookups."""

    lookup_blocks: int
    hit_blocks: int
    lookup_tokens: int
    hit_tokens: int
    full_hit_tokens: int

    @property
    def block_ratio(self) -> float | None:
        """Blocks found / blocks looked up."""
        return self.hit_blocks / self.lookup_blocks if self.lookup_blocks else None

    @property
    def token_ratio(self) -> float | None:
        """Tokens found / tokens looked up."""
        return self.hit_tokens / self.lookup_tokens if self.lookup_tokens else None

    @property
    def full_token_ratio(self) -> float | None:
        """Tokens of full steps found / tokens looked up."""
        return self.full_hit_tokens / self.lookup_tokens if self.lookup_tokens else None


def infinite_cache(workload: Workload) -> InfiniteCache:
    """Count hits of every request's prompt in a cache that forgets nothing."""
    seen: set[int] = set()
    step = workload.hash_tokens
    hashes = workload.hashes.tolist()
    offsets = workload.hash_offsets.tolist()
    lookup_blocks = hit_blocks = lookup_tokens = hit_tokens = full_hit_tokens = 0
    for index, prompt in enumerate(workload.prompt_tokens.tolist()):
        ids = hashes[offsets[index] : offsets[index + 1]]
        if step:
            ids = ids[: -(-prompt // step)]
        found = 0
        while found < len(ids) and ids[found] in seen:
            found += 1
        lookup_blocks += len(ids)
        hit_blocks += found
        lookup_tokens += prompt
        hit_tokens += min(found * step, prompt)
        full_hit_tokens += min(found, prompt // step if step else 0) * step
        seen.update(ids)
    return InfiniteCache(lookup_blocks, hit_blocks, lookup_tokens, hit_tokens, full_hit_tokens)
