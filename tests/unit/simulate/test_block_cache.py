"""Plain caches of blocks, against a model of a few lines and against libCacheSim."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmon.allocators import PagedConfig
from kvmon.errors import ConfigError
from kvmon.serving import Workload
from kvmon.simulate import simulate
from kvmon.simulate.block_cache import BlockCache, fifo_hits, lfu_hits, lru_hits

POLICIES = {"LRU": lru_hits, "FIFO": fifo_hits, "LFU": lfu_hits}
RATIOS = {5_859: 0.1355, 19_531: 0.2852, 97_656: 0.3635}


def asking(requests: list[list[int]]) -> Workload:
    """Requests of one step each identity."""
    n = len(requests)
    lengths = [max(len(ids), 1) for ids in requests]
    return Workload(
        arrival_ns=np.arange(n, dtype=np.int64),
        prompt_tokens=np.array(lengths, np.int32),
        output_tokens=np.ones(n, np.int32),
        token_limit=np.ones(n, np.int32),
        class_id=np.zeros(n, np.int32),
        hash_offsets=np.concatenate([[0], np.cumsum([len(ids) for ids in requests])]).astype(np.int64),
        hashes=np.array([identity for ids in requests for identity in ids], np.uint64),
        hash_tokens=1,
    )


def modelled(ids: list[int], blocks: int, policy: str) -> int:
    """Hits of an ordered dictionary, oldest first, that maps identities to their uses."""
    held: OrderedDict[int, int] = OrderedDict()
    hits = 0
    for identity in ids:
        if identity in held:
            hits += 1
            held[identity] += 1
            if policy != "FIFO":
                held.move_to_end(identity)
            continue
        if len(held) == blocks:
            # min takes the first of equals: the one that has had as many uses longest
            del held[min(held, key=lambda block: held[block]) if policy == "LFU" else next(iter(held))]
        held[identity] = 1
    return hits


def libcachesim_hits(workload: Workload, blocks: int, policy: str) -> int:
    """The same by libCacheSim (C), every block of size 1."""
    library = pytest.importorskip("libcachesim", reason="has no wheel for this platform")
    cache, request = getattr(library, policy)(cache_size=blocks), library.Request()
    request.obj_size = 1
    hits = 0
    for identity in workload.hashes.tolist():
        request.obj_id = identity
        hits += cache.get(request)
    return hits


@given(
    requests=st.lists(st.lists(st.integers(1, 30), max_size=8), min_size=1, max_size=60),
    blocks=st.integers(1, 40),
    policy=st.sampled_from(sorted(POLICIES)),
)
def test_a_cache_is_its_model(requests: list[list[int]], blocks: int, policy: str) -> None:
    """Every lookup of every request counts, in order; hits are those of the dictionary."""
    workload = asking(requests)
    cache = POLICIES[policy](workload, blocks)
    assert cache == BlockCache(len(workload.hashes), modelled(workload.hashes.tolist(), blocks, policy))


def test_the_policies_forget_different_blocks() -> None:
    """With room for 2, what comes back after 3: to LRU 1 is fresh, to FIFO it is old, to LFU it is worth three uses."""
    policies = (lru_hits, fifo_hits, lfu_hits)
    assert [policy(asking([[1, 2], [1], [3], [1]]), 2).hits for policy in policies] == [2, 1, 2]
    assert [policy(asking([[1, 1], [1], [2], [3], [1]]), 2).hits for policy in policies] == [2, 2, 3]


def test_a_cache_without_room_or_lookups() -> None:
    """Less than one block is refused; without an identity there is no ratio; more blocks than identities forget
    nothing.
    """
    with pytest.raises(ConfigError, match="holds nothing"):
        lru_hits(asking([[1]]), 0)
    assert lru_hits(asking([[], []]), 4) == BlockCache(0, 0)
    assert lru_hits(asking([[]]), 4).ratio is None
    assert lfu_hits(asking([[1, 2, 3], [1, 2, 3]]), 10**12).ratio == 0.5


@pytest.mark.parametrize("blocks", RATIOS)
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_mooncake_hits_as_in_libcachesim(mooncake: Workload, policy: str, blocks: int) -> None:
    """On the Mooncake conversation trace the hits are libCacheSim's to the last one; for LRU they are the known ones.

    Beside it, as a second number, the cache that an engine has. It is another one: it looks up full pages, computes
    the last page of a prompt again and gives pages to what is generated, but evicts nothing that a running request
    holds, and a prefix from its end.
    """
    count: Callable[[Workload, int], BlockCache] = POLICIES[policy]
    cache = count(mooncake, blocks)
    assert cache.hits == libcachesim_hits(mooncake, blocks, policy)
    if policy == "LRU":
        assert cache.ratio == pytest.approx(RATIOS[blocks], abs=0.00005)
        engine = simulate(mooncake, PagedConfig(blocks, 512))
        found = engine.prefix_hit_tokens / engine.prefix_lookup_tokens
        print(f"{blocks} blocks: plain LRU {cache.ratio:.4f} of blocks, an engine's prefix cache {found:.4f} of tokens")
        assert 0.95 < found / (cache.ratio or 1) < 1.06
