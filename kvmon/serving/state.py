"""The scheduler's state: arrays that the kernels of a step share, and the names of their columns.

    facts    int64 (requests + 1, 7)    what a request brought; never changes after its arrival
    live     int32 (requests + 1, 8)    where it stands; one cache line holds two requests
    seats    a request that holds memory sits on one of `max_sequences` seats: `held` (its pages or its block) and, when
             paged, a row of `table`; seats that nobody sits on are stacked in `spare`
    running  requests in order of admission; waiting  ring of request ids, front first
    plan     int32 (max_sequences, 3)   the step in hand: request, tokens, 1 when it decodes
    nobody   uint8 (0)                  the stop flags of a step in which lengths alone decide
    names    uint64 (row)               names of a request's pages while they are looked up or registered

Invariant: index 0 of a per-request array is unused; a request is in `running` exactly when it has a seat. Kernels
index by the column names below; Python builds and grows the arrays, and replaces a field of `Serving` when it does.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvmon.allocators.config import AllocatorConfig, PagedConfig
from kvmon.allocators.journal import Journal
from kvmon.allocators.page_pool import PagePool, new_page_pool
from kvmon.allocators.run_pool import RunPool, new_run_pool
from kvmon.serving.config import SchedulerConfig

__all__ = ["Serving", "config_words", "new_serving", "ring_size"]

# facts
ARRIVAL = 0
CLASS = 1
PROMPT = 2
LIMIT = 3
INTENDED = 4  # output tokens, 0 = not known
HASH_FIRST = 5  # index of the first prefix identity
COVERED = 6  # tokens that identities cover

# live
COMPUTED = 0
TOTAL = 1  # prompt and sampled tokens
ROOM = 2  # tokens that the units held can hold
STOP = 3  # total at which the request ends
SEAT = 4
PHASE = 5
NOTED = 6  # 1: the failure of the present wait is in the journal
NEXT_FULL = 7  # computed tokens at which the next page is full and can be registered

# PHASE
NEW = 0
WAITING = 1
WAITING_AGAIN = 5  # after a preemption
PREFILL = 2
DECODE = 3
DONE = 4

# held (int64, a row a seat)
PAGES = 0  # pages in the table row
REGISTERED = 1  # leading pages whose content is in the cache (or was when they filled)
START = 2  # first unit of the contiguous block
UNITS = 3  # its units

# plan
WHO = 0
TOKENS = 1
DECODES = 2

# config
PAGED = 0  # 1: paged, 0: contiguous
UNIT_TOKENS = 1
BUDGET = 2
SEATS = 3
CHUNKED = 4
WATERMARK_UNITS = 5
WHOLE_PROMPT = 6
REFUSE = 7
GROWTH = 8
PREFIX = 9
HASH_TOKENS = 10
CHUNK_TOKENS = 11  # 0: reserve for the longest
MAX_LEN = 12  # 0: prompt + limit
CAPACITY_UNITS = 13

# config[GROWTH]
GROWTH_PREEMPT = 0
GROWTH_WAIT = 1
GROWTH_ABORT = 2

# tally: the step in hand
RUNNING = 0
QUEUE_HEAD = 1
QUEUED = 2
SPARE = 3
PLANNED = 4
PREFILL_TOKENS = 5
DECODE_TOKENS = 6
CONTEXT_TOKENS = 7
NEED_AT_HEAD = 8
CHANGED = 9  # 1: this schedule moved something besides the plan
HELD_PAGES = 10  # references that running requests hold
WRITTEN_TOKENS = 11  # computed tokens of running requests
# tally: totals
STEPS = 12
ARRIVED = 13
COMPLETED = 14
REFUSED = 15
ABORTED = 16
ERRORS = 17
PREEMPTIONS = 18
LOST_TOKENS = 19
LOOKUP_TOKENS = 20  # of first admissions
HIT_TOKENS = 21
AGAIN_LOOKUP_TOKENS = 22  # of admissions after a preemption
AGAIN_HIT_TOKENS = 23
RELOCATIONS = 24
COPIED_TOKENS = 25
PEAK_ACTIVE = 26
OUTPUT_TOKENS = 27
COMPUTED_TOKENS = 28  # prefill and decode tokens over all steps
TALLIES = 29

# averages: integrals over time in ns
ACTIVE_NS = 0
TAIL = 1
UTILIZATION = 2
RESERVED = 3
FRAGMENTED_NS = 4
FRAGMENTATION = 5
AVERAGES = 6

NEVER = 2**31 - 1  # of NEXT_FULL: no page is ever registered


class Serving(NamedTuple):
    """Everything a step touches; see the module for shapes."""

    pages: PagePool
    runs: RunPool
    journal: Journal
    config: npt.NDArray[np.int64]
    tally: npt.NDArray[np.int64]
    reasons: npt.NDArray[np.int64]
    averages: npt.NDArray[np.float64]
    facts: npt.NDArray[np.int64]
    live: npt.NDArray[np.int32]
    first_token: npt.NDArray[np.int64]
    hashes: npt.NDArray[np.uint64]
    running: npt.NDArray[np.int32]
    spare: npt.NDArray[np.int32]
    held: npt.NDArray[np.int64]
    table: npt.NDArray[np.int32]
    waiting: npt.NDArray[np.int32]
    plan: npt.NDArray[np.int32]
    nobody: npt.NDArray[np.uint8]
    names: npt.NDArray[np.uint64]


def config_words(allocator: AllocatorConfig, scheduler: SchedulerConfig, hash_tokens: int) -> npt.NDArray[np.int64]:
    """Both configurations as the array that kernels read."""
    words = np.zeros(14, np.int64)
    words[PAGED] = isinstance(allocator, PagedConfig)
    words[UNIT_TOKENS] = allocator.unit_tokens
    words[CAPACITY_UNITS] = allocator.capacity_units
    words[BUDGET] = scheduler.token_budget
    words[SEATS] = scheduler.max_sequences
    words[CHUNKED] = scheduler.chunked_prefill
    words[WATERMARK_UNITS] = -int(-scheduler.watermark * allocator.capacity_units // 1)
    words[WHOLE_PROMPT] = scheduler.admit_by == "prompt"
    words[REFUSE] = scheduler.on_no_fit == "refuse"
    words[GROWTH] = ("preempt", "wait", "abort").index(scheduler.on_growth_failure)
    words[HASH_TOKENS] = hash_tokens
    words[MAX_LEN] = scheduler.max_model_len or 0
    if isinstance(allocator, PagedConfig):
        words[PREFIX] = allocator.prefix_cache
    else:
        words[CHUNK_TOKENS] = allocator.chunk_tokens or 0
    return words


def new_serving(
    allocator: AllocatorConfig,
    scheduler: SchedulerConfig,
    journal: Journal,
    *,
    requests: int,
    identities: int,
    hash_tokens: int,
    row_units: int,
) -> Serving:
    """State with nothing arrived, room for `requests` requests, `identities` prefix identities and `row_units` pages a
    request (paged)."""
    paged = isinstance(allocator, PagedConfig)
    # Every request with memory holds a unit that it shares with nobody, so more seats than units are never taken.
    seats = min(scheduler.max_sequences, allocator.capacity_units)
    tally = np.zeros(TALLIES, np.int64)
    tally[SPARE] = seats
    config = config_words(allocator, scheduler, hash_tokens)
    config[SEATS] = seats
    return Serving(
        pages=new_page_pool(allocator.capacity_units if paged else 1),
        runs=new_run_pool(1 if paged else allocator.capacity_units, 1 if paged else seats + 1),
        journal=journal,
        config=config,
        tally=tally,
        reasons=np.zeros((2, 16), np.int64),
        averages=np.zeros(AVERAGES, np.float64),
        facts=np.zeros((requests + 1, 7), np.int64),
        live=np.zeros((requests + 1, 8), np.int32),
        first_token=np.zeros(requests + 1, np.int64),
        hashes=np.zeros(max(identities, 1), np.uint64),
        running=np.zeros(seats + 1, np.int32),
        spare=np.arange(seats - 1, -1, -1, dtype=np.int32),
        held=np.zeros((seats, 4), np.int64),
        table=np.zeros((seats if paged else 1, max(row_units, 1)), np.int32),
        waiting=np.zeros(ring_size(requests + seats), np.int32),
        plan=np.zeros((seats, 3), np.int32),
        nobody=np.zeros(0, np.uint8),
        names=np.zeros(max(row_units, 1), np.uint64),
    )


def ring_size(entries: int) -> int:
    """A power of two above `entries`, so that a full ring is not taken for an empty one."""
    return 1 << max(4, int(entries + 1).bit_length())
