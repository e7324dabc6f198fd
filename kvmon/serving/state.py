"""The scheduler's state: arrays that the kernels of a step share, and the names of their columns.

    facts    int64 (requests + 1, 15)   what a request brought, never changed after its arrival; behind that what is
                                        rarely touched: its first token, its block in the host tier
    live     int32 (requests + 1, 8)    where it stands; one cache line holds two requests
    seats    a request that holds memory sits on one of `max_sequences` seats: `held` (its pages or its block) and, when
             paged, a row of `table`; seats that nobody sits on are stacked in `spare`
    table    a row a seat, and behind them, with a window group, a second row a seat for its pages
    running  requests in order of admission; waiting  ring of request ids, front first
    plan     int32 (max_sequences, 3)   the step in hand: request, tokens, 1 when it decodes
    nobody   uint8 (0)                  the stop flags of a step in which lengths alone decide
    names    uint64 (row)               names of a request's pages while they are looked up or registered
    some     int32 (row)                a list of pages on its way into the journal
    apart    int64 (n, 5)               paged: transfers under way (first page, the others follow in NEXT; pages; end;
                                        request); contiguous: prefixes that stayed behind (identity, first unit, units,
                                        tokens, last use)
    window   int32 (pages)              free pages of the window group's own pool, a stack

Invariant: index 0 of a per-request array is unused; a request is in `running` exactly when it has a seat. Kernels
index by the column names below; Python builds and grows the arrays, and replaces a field of `Serving` when it does.
Arrays of options that are off have one row.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvmon.allocators.config import PLACEMENTS, RESERVATIONS, AllocatorConfig, PagedConfig
from kvmon.allocators.journal import Journal
from kvmon.allocators.page_pool import PagePool, new_page_pool, page_pool_of
from kvmon.allocators.run_pool import RunPool, new_run_pool
from kvmon.serving.config import SchedulerConfig
from kvmon.serving.faults import Faults

__all__ = ["Serving", "config_words", "new_serving", "ring_size"]

# facts
ARRIVAL = 0
CLASS = 1
PROMPT = 2
LIMIT = 3
INTENDED = 4  # output tokens, 0 = not known
HASH_FIRST = 5  # index of the first prefix identity
COVERED = 6  # tokens that identities cover
PRIORITY = 7  # level, lower is more urgent
FIRST_TOKEN_NS = 8  # 0 = not yet
HOST_START = 9
HOST_COUNT = 10  # units in the host tier
HOST_TOKENS = 11  # kept there, 0 = none
ENDED_BEFORE = 12  # the request that ended before this one, since somebody looked
FORK_OF = 13  # the request whose prompt it has, too, 0 = none
DRAWN_AS = 14  # the number by which chances are drawn for it: its own, or the one that it had in a recording
FACTS = 15

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
ASKED = 4  # tokens of the block that the reservation policy asked for; the rest is the allocator's rounding
WINDOW_FIRST = 5  # first page (from 0) that the window group still holds
WINDOW_PAGES = 6  # one past its last page
HELD = 7

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
ADMIT_BY = 6
REFUSE = 7
GROWTH = 8
PREFIX = 9
HASH_TOKENS = 10
CHUNK_TOKENS = 11  # of reservations in chunks
MAX_LEN = 12  # 0: prompt + limit
CAPACITY_UNITS = 13
RESERVATION = 14  # index into RESERVATIONS
PLACEMENT = 15  # index into PLACEMENTS
COMPACTION = 16
RETAINED = 17  # prefixes that may stay behind, 0 = none
RECLAIM_IDLE = 18  # 1: content is evicted only while nobody holds memory
PINS = 19
QUOTAS = 20
WINDOW = 21  # tokens, 0 = no window group
WINDOW_OWN = 22  # pages of its own pool, 0 = it draws from the pool
LEVELS = 23  # 1: classes have priorities
HOST_UNITS = 24
LOOKAHEAD = 25
ACCEPTANCE = 26  # of 2**32
TRANSFERS = 27  # of 2**32
TRANSFER_NS = 28
LEAKS = 29  # of 2**32
DOUBLE_FREES = 30  # of 2**32
STRANDS = 31  # of 2**32
STRAND_NS = 32  # 0 = for ever
WRONG_GAUGE = 33
CLAIMS_NS = 34  # 0 = no claims
FAULTS_FROM = 35
FAULT_SEED = 36
SPECIAL = 37  # 1: releases may leak, free twice or be held by a transfer
NEVER_WAITS = 38  # 1: a request that never fits waits all the same
CONFIGS = 39

# config[ADMIT_BY]
BY_CHUNK = 0
BY_PROMPT = 1
BY_FULL = 2

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
COPIED_TOKENS = 25  # on the device: moved blocks, prefixes that stayed behind, last pages of forks
PEAK_ACTIVE = 26
OUTPUT_TOKENS = 27
COMPUTED_TOKENS = 28  # prefill and decode tokens over all steps
SWAPPED_OUT_TOKENS = 29
SWAPPED_IN_TOKENS = 30
SWAPS_REFUSED = 31  # preemptions that found no room in the host tier
COMPACTIONS = 32
COMPACTED_TOKENS = 33
DRAFT_TOKENS = 34
ACCEPTED_TOKENS = 35
TRANSFERS_BEGUN = 36
STRANDED = 37  # transfers that a fault keeps from ending
LEAKED_UNITS = 38
TWICE_FREED = 39  # units that the engine counts as available once too often
FRAGMENTED_FAILURES = 40  # failures for want of a contiguous run
FREE_AT_FAILURE = 41  # units, summed over them
LARGEST_AT_FAILURE = 42  # units, summed over them
# tally: the state between two steps
COMMITTED_UNITS = 43  # what running requests may become; counted only where that decides
WINDOW_HELD = 44  # references that the window group's tables hold
PARKED = 45  # transfers in `parked`
REGIONS = 46  # prefixes in `regions`
REGION_UNITS = 47
USES = 48  # of regions so far, for the least recent
NOW = 49  # ns, the latest time that anybody said
NEXT_CLAIMS = 50
ENDED = 51  # the request that ended last since somebody looked, 0 = none
COMPACTED_NOW = 52  # 1: this schedule slid its blocks once, and does not again
TAKEN_BACK = 53  # 1: this schedule preempted somebody it had planned
WINDOW_SPARE = 54  # free pages of the window group's own pool
REASONS = 64  # failures by reason: 16 at start, 16 in mid-stream
QUOTA_MOST = 96  # units by class, -1 = no quota
QUOTA_HELD = 160  # units by class
TALLIES = 224

# averages: integrals over time in ns
ACTIVE_NS = 0
TAIL = 1
UTILIZATION = 2
RESERVED = 3
FRAGMENTED_NS = 4
FRAGMENTATION = 5
# averages: the same while somebody waits, in ns times tokens (BATCH: requests)
FULL_NS = 6
FULL_WRITTEN = 7
FULL_USED_LATER = 8  # set aside, and used before the request ends
FULL_NEVER_USED = 9
FULL_FREE = 10  # neither asked for by a request nor anybody's
FULL_BATCH = 11
AVERAGES = 12

NEVER = 2**31 - 1  # of NEXT_FULL: no page is ever registered


class Serving(NamedTuple):
    """Everything a step touches; see the module for shapes."""

    pages: PagePool
    runs: RunPool
    host: RunPool
    journal: Journal
    config: npt.NDArray[np.int64]
    tally: npt.NDArray[np.int64]
    averages: npt.NDArray[np.float64]
    facts: npt.NDArray[np.int64]
    live: npt.NDArray[np.int32]
    hashes: npt.NDArray[np.uint64]
    running: npt.NDArray[np.int32]
    spare: npt.NDArray[np.int32]
    held: npt.NDArray[np.int64]
    table: npt.NDArray[np.int32]
    waiting: npt.NDArray[np.int32]
    plan: npt.NDArray[np.int32]
    nobody: npt.NDArray[np.uint8]
    names: npt.NDArray[np.uint64]
    some: npt.NDArray[np.int32]
    apart: npt.NDArray[np.int64]
    window: npt.NDArray[np.int32]


def config_words(
    allocator: AllocatorConfig, scheduler: SchedulerConfig, faults: Faults, hash_tokens: int
) -> npt.NDArray[np.int64]:
    """All configurations as the array that kernels read."""
    words = np.zeros(CONFIGS, np.int64)
    words[PAGED] = isinstance(allocator, PagedConfig)
    words[UNIT_TOKENS] = allocator.unit_tokens
    words[CAPACITY_UNITS] = allocator.capacity_units
    words[QUOTAS] = bool(allocator.quotas)
    words[BUDGET] = scheduler.token_budget
    words[SEATS] = scheduler.max_sequences
    words[CHUNKED] = scheduler.chunked_prefill
    words[WATERMARK_UNITS] = -int(-scheduler.watermark * allocator.capacity_units // 1)
    words[ADMIT_BY] = ("chunk", "prompt", "full").index(scheduler.admit_by)
    words[REFUSE] = scheduler.on_no_fit == "refuse"
    words[GROWTH] = ("preempt", "wait", "abort").index(scheduler.on_growth_failure)
    words[NEVER_WAITS] = scheduler.on_never_fits == "wait"
    words[HASH_TOKENS] = hash_tokens
    words[MAX_LEN] = scheduler.max_model_len or 0
    words[LEVELS] = bool(scheduler.priorities)
    words[HOST_UNITS] = scheduler.host_tokens // allocator.unit_tokens
    words[LOOKAHEAD] = scheduler.lookahead_tokens
    words[ACCEPTANCE] = _odds(scheduler.acceptance)
    words[TRANSFERS] = _odds(scheduler.transfer_share)
    words[TRANSFER_NS] = scheduler.transfer_ns
    words[LEAKS] = _odds(faults.leak_share)
    words[DOUBLE_FREES] = _odds(faults.double_free_share)
    words[STRANDS] = _odds(faults.strand_share)
    words[STRAND_NS] = faults.strand_ns
    words[WRONG_GAUGE] = faults.wrong_gauge
    words[CLAIMS_NS] = faults.claims_every_ns
    words[FAULTS_FROM] = faults.from_ns
    words[FAULT_SEED] = faults.seed
    words[SPECIAL] = faults.any_in_pool or scheduler.transfer_share > 0
    if isinstance(allocator, PagedConfig):
        words[PREFIX] = allocator.prefix_cache
        words[RECLAIM_IDLE] = allocator.reclaim == "idle"
        words[PINS] = allocator.pin_after_hits > 0
        words[WINDOW] = allocator.window_tokens
        words[WINDOW_OWN] = allocator.window_pool_units
    else:
        words[CHUNK_TOKENS] = allocator.chunk_tokens or 0
        words[RESERVATION] = RESERVATIONS.index(allocator.reserve)
        words[PLACEMENT] = PLACEMENTS.index(allocator.placement)
        words[COMPACTION] = allocator.compaction
        words[RETAINED] = allocator.retained_prefixes
    return words


def _odds(share: float) -> int:
    return round(share * 2**32)


def new_serving(
    allocator: AllocatorConfig,
    scheduler: SchedulerConfig,
    journal: Journal,
    *,
    faults: Faults | None = None,
    requests: int,
    identities: int,
    hash_tokens: int,
    row_units: int,
) -> Serving:
    """State with nothing arrived, room for `requests` requests, `identities` prefix identities and `row_units` pages a
    request (paged)."""
    paged = isinstance(allocator, PagedConfig)
    # Every request with memory holds a unit that it shares with nobody, so more seats than units are never taken; one
    # more is there for the request that finds no unit left.
    seats = min(scheduler.max_sequences, allocator.capacity_units + 1)
    tally = np.zeros(TALLIES, np.int64)
    tally[SPARE] = seats
    config = config_words(allocator, scheduler, faults or Faults(), hash_tokens)
    config[SEATS] = seats
    special = bool(config[SPECIAL])
    if isinstance(allocator, PagedConfig):
        pages, retained, placement = page_pool_of(allocator, holds=special), 0, 0
    else:
        pages, retained, placement = new_page_pool(1), allocator.retained_prefixes, int(config[PLACEMENT])
    host = int(config[HOST_UNITS])
    tally[QUOTA_MOST : QUOTA_MOST + 64] = -1
    for class_id, units in allocator.quota_units.items():
        tally[QUOTA_MOST + class_id] = units
    tally[WINDOW_SPARE] = config[WINDOW_OWN]
    apart = allocator.capacity_units + 1 if special else max(retained, 1)
    tables = (2 if config[WINDOW] else 1) * seats if paged else 1
    return Serving(
        pages=pages,
        runs=new_run_pool(1 if paged else allocator.capacity_units, 1 if paged else seats + retained + 1, placement),
        host=new_run_pool(max(host, 1), max(host, 1)),
        journal=journal,
        config=config,
        tally=tally,
        averages=np.zeros(AVERAGES, np.float64),
        facts=np.zeros((requests + 1, FACTS), np.int64),
        live=np.zeros((requests + 1, 8), np.int32),
        hashes=np.zeros(max(identities, 1), np.uint64),
        running=np.zeros(seats + 1, np.int32),
        spare=np.arange(seats - 1, -1, -1, dtype=np.int32),
        held=np.zeros((seats, HELD), np.int64),
        table=np.zeros((tables, max(row_units, 1)), np.int32),
        waiting=np.zeros(ring_size(requests + seats), np.int32),
        plan=np.zeros((seats, 3), np.int32),
        nobody=np.zeros(0, np.uint8),
        names=np.zeros(max(row_units, 1), np.uint64),
        some=np.zeros(max(row_units, 1), np.int32),
        apart=np.zeros((apart, 5), np.int64),
        window=np.arange(max(int(config[WINDOW_OWN]), 1), 0, -1, dtype=np.int32),
    )


def ring_size(entries: int) -> int:
    """A power of two above `entries`, so that a full ring is not taken for an empty one."""
    return 1 << max(4, int(entries + 1).bit_length())
