"""Placements, and the simulator over a workload of its own, with recording off and on."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from kvmon.adapters.described import engine_config, pool_info
from kvmon.adapters.journal_words import JournalWords
from kvmon.allocators.config import PagedConfig
from kvmon.allocators.run_pool import (
    BEST_FIT,
    BUDDY,
    FIRST_FIT,
    RUNS,
    RunPool,
    find_run,
    first_fit,
    give_block,
    give_run,
    granted_units,
    new_run_pool,
    take_block,
    take_run,
)
from kvmon.jit import kernel
from kvmon.serving.config import SchedulerConfig
from kvmon.serving.workloads import chat_and_agents
from kvmon.simulate import simulate
from tests.benchmarks.table import Row, best_of

Ints = npt.NDArray[np.int64]

OPERATIONS = 2_000_000
BLOCKS = 400


@kernel
def churn(pool: RunPool, sizes: Ints, victims: Ints, held: Ints) -> int:
    """Keep BLOCKS blocks alive: free one, place one, for as long as there are sizes; how many were placed."""
    placed = 0
    for i in range(len(sizes)):
        victim = victims[i]
        if held[victim, 1]:
            give_run(pool, held[victim, 0], held[victim, 1])
            held[victim, 1] = 0
        at = first_fit(pool, sizes[i])
        if at < pool.tally[RUNS]:
            held[victim, 0] = take_run(pool, at, sizes[i])
            held[victim, 1] = sizes[i]
            placed += 1
    return placed


@kernel
def churn_by_policy(pool: RunPool, sizes: Ints, victims: Ints, held: Ints) -> int:
    """The same through the kernels that ask the pool for its placement."""
    placed = 0
    for i in range(len(sizes)):
        victim = victims[i]
        if held[victim, 1]:
            give_block(pool, held[victim, 0], held[victim, 1])
            held[victim, 1] = 0
        at = find_run(pool, sizes[i])
        if at < pool.tally[RUNS]:
            held[victim, 0] = take_block(pool, at, sizes[i])
            held[victim, 1] = granted_units(pool, sizes[i])
            placed += 1
    return placed


def placement_rows() -> list[Row]:
    """Allocations and frees of blocks of 16 to 256 units, 400 alive in a pool of 65,536."""
    random = np.random.default_rng(0)
    sizes = random.integers(16, 257, OPERATIONS // 2)
    victims = random.integers(0, BLOCKS, OPERATIONS // 2)

    def rate(churn: Callable[[RunPool, Ints, Ints, Ints], int], policy: int) -> float:
        def run() -> None:
            churn(new_run_pool(65_536, BLOCKS + 1, policy), sizes, victims, np.zeros((BLOCKS, 2), np.int64))

        run()
        return OPERATIONS / best_of(5, run) / 1e6

    first, best, buddy = rate(churn, FIRST_FIT), rate(churn_by_policy, BEST_FIT), rate(churn_by_policy, BUDDY)
    return [
        Row("contiguous first fit, 400 blocks alive", f"{first:.1f} M operations/s", "10 M/s", first >= 10),
        Row("contiguous best fit, 400 blocks alive", f"{best:.1f} M operations/s"),
        Row("buddies, 400 blocks alive", f"{buddy:.1f} M operations/s"),
    ]


def simulator_rows() -> list[Row]:
    """The post-incident mix through the paged pool, journal off and translated to words."""
    workload = chat_and_agents(1, 4000)
    allocator, scheduler = PagedConfig(4096, 16), SchedulerConfig()

    def record() -> None:
        words = JournalWords(
            lambda piece: None,
            json.dumps(engine_config(allocator, scheduler)),
            pool_info(allocator, 131_072),
            requests=len(workload),
            offsets=workload.hash_offsets,
            hashes=workload.hashes,
            hash_tokens=workload.hash_tokens,
        )
        simulate(workload, allocator, scheduler, journal_sink=words)
        words.close()

    steps = simulate(workload, allocator, scheduler).steps
    record()
    off = best_of(5, lambda: simulate(workload, allocator, scheduler))
    on = best_of(5, record)
    return [
        Row("simulator, 4,000 chats and agents", f"{off * 1e3:.0f} ms, {steps / off / 1e6:.2f} M steps/s"),
        Row("simulator, the same, every event as words", f"{on * 1e3:.0f} ms, {on / off:.2f} x"),
    ]


def rows() -> list[Row]:
    """The rows of this file."""
    return [*placement_rows(), *simulator_rows()]
