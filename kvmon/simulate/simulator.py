"""Run a workload through scheduler and allocator to the end, under a step-time model.

Purpose: the same kernels as `serving.Scheduler`, in one compiled loop. Invariant: the result depends on the workload
and the configurations alone, never on the journal, the machine or the time of day (`wall_seconds` excepted). It writes
no file: whoever wants events passes a `journal_sink`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvmon.allocators import page_pool, run_pool
from kvmon.allocators.config import AllocatorConfig, PagedConfig
from kvmon.allocators.journal import USED, Journal, new_journal
from kvmon.allocators.refusal import Reason
from kvmon.errors import ConfigError
from kvmon.serving import state as at
from kvmon.serving.commit import room_for_step
from kvmon.serving.config import SchedulerConfig
from kvmon.serving.faults import Faults
from kvmon.serving.step_time import StepTime
from kvmon.serving.workload import Workload, check_page_hashes
from kvmon.simulate.result import FullPool, Result
from kvmon.simulate.run import DEADLOCK, JOURNAL_FULL, NOW, STEP_LIMIT, STEPS_LEFT, TOO_LATE, Demand, new_clock, run

__all__ = ["JournalSink", "RecordedSteps", "demand_of", "simulate", "simulation_state"]


class RecordedSteps(NamedTuple):
    """Steps that an engine took, on the clock on which the workload's requests arrive: begin and duration, int64 (n)
    each in ns. Who comes or hangs up between the last one and `until_ns` still does."""

    start_ns: npt.NDArray[np.int64]
    duration_ns: npt.NDArray[np.int64]
    until_ns: int = 0


JournalSink = Callable[[npt.NDArray[np.int64]], None]

_JOURNAL_WORDS = 1 << 20
_STEPS_AT_ONCE = 1 << 17  # Ctrl-C is heard between two calls of the compiled loop
_NO_LIMIT = 1 << 62


def simulate(
    workload: Workload,
    allocator: AllocatorConfig,
    scheduler: SchedulerConfig | None = None,
    step_time: StepTime | None = None,
    *,
    faults: Faults | None = None,
    journal_sink: JournalSink | None = None,
    journal_words: int = _JOURNAL_WORDS,
    most_steps: int | None = None,
    linger_ns: int = 0,
    recorded: RecordedSteps | None = None,
) -> Result:
    """Simulate every request of `workload` and return what happened.

    `journal_sink` gets the journal in pieces that end between two steps or two arrivals; a piece is valid during the
    call only. `journal_words` is the size of such a piece; it grows where one step needs more. `most_steps` stops a run
    early; `linger_ns` goes on for so long after nothing can move any more, as an engine does. With `recorded` steps
    begin and end when an engine's did, whatever `step_time` says, and the run ends with the last of them. `linger_ns`
    does not count then.
    Raises ConfigError when the workload's prefix identities cannot name pages of this size, the faults cannot strike
    this pool, or the clock runs over.
    """
    times = step_time or StepTime()
    wrong = faults or Faults()
    state = simulation_state(
        workload, allocator, scheduler, journal_words if journal_sink is not None else 0, faults=wrong
    )
    demand = demand_of(workload, wrong, recorded)
    clock = new_clock(None, linger_ns, 0 if recorded is None else recorded.until_ns)
    model = np.array(
        [times.base_ns, times.prefill_token_ns, times.decode_sequence_ns, times.context_token_ns], np.float64
    )
    _compile(model)
    seconds = 0.0
    steps_left = _NO_LIMIT if most_steps is None else most_steps
    status = JOURNAL_FULL
    while status == JOURNAL_FULL or (status == STEP_LIMIT and steps_left and not clock[STEPS_LEFT]):
        clock[STEPS_LEFT] = steps = min(steps_left, _STEPS_AT_ONCE)
        began = time.perf_counter()
        status = run(state, demand, clock, model)
        seconds += time.perf_counter() - began
        steps_left -= steps - int(clock[STEPS_LEFT])
        if journal_sink is not None:
            used = int(state.journal.state[USED])
            if used:
                journal_sink(state.journal.words[:used])
                state.journal.state[USED] = 0
            needed = int(room_for_step(state)) + 64
            if status == JOURNAL_FULL and needed > state.journal.words.size:
                state = state._replace(journal=Journal(np.empty(2 * needed, np.int64), state.journal.state))
    if status == TOO_LATE:
        raise ConfigError("the run passed 146 years: steps of this length are no engine's; look at the step times")
    return _result(state, workload, status, int(clock[NOW]), seconds)


def _compile(model: npt.NDArray[np.float64]) -> None:
    """Run without a request, so that compiling (once a machine, or once a process) is no part of the measured time."""
    empty = at.new_serving(
        PagedConfig(1), SchedulerConfig(), new_journal(0), requests=0, identities=0, hash_tokens=0, row_units=1
    )
    nothing = Demand(
        order=np.zeros(0, np.int32),
        pause=np.zeros(1, np.int64),
        first=np.zeros(1, np.int32),
        sibling=np.zeros(1, np.int32),
        patience=np.zeros(1, np.int64),
        due=np.zeros((2, 2), np.int64),
        errors=np.zeros((0, 4), np.int64),
        steps=np.zeros((0, 2), np.int64),
    )
    run(empty, nothing, new_clock(), model)


def demand_of(workload: Workload, faults: Faults, recorded: RecordedSteps | None = None) -> Demand:
    """What `run` has to know of the workload, of the errors outside of the pool, and of an engine's own steps."""
    n = len(workload)
    independent = workload.independent
    first = np.zeros(n + 1, np.int32)
    sibling = np.zeros(n + 1, np.int32)
    for index in np.flatnonzero(~independent)[::-1].tolist():
        leader = workload.follows[index]
        sibling[index + 1] = first[leader]
        first[leader] = index + 1
    patience = np.zeros(1, np.int64)
    if len(workload.abort_ns):
        patience = np.concatenate([patience, workload.abort_ns])
    errors = np.array(sorted(faults.errors), np.int64).reshape(-1, 4)
    return Demand(
        order=(np.flatnonzero(independent) + 1).astype(np.int32),
        pause=np.concatenate([np.zeros(1, np.int64), workload.arrival_ns]),
        first=first,
        sibling=sibling,
        patience=patience,
        due=np.zeros((2 * n + 2, 2), np.int64),
        errors=errors,
        steps=np.zeros((0, 2), np.int64) if recorded is None else np.column_stack(recorded[:2]).astype(np.int64),
    )


def simulation_state(
    workload: Workload,
    allocator: AllocatorConfig,
    scheduler: SchedulerConfig | None,
    journal_words: int,
    *,
    faults: Faults | None = None,
) -> at.Serving:
    """State with all requests of `workload` known and none arrived; `journal_words` 0 keeps no journal."""
    check_page_hashes(workload.hash_tokens, allocator)
    config = scheduler or SchedulerConfig()
    config.check_for(allocator)
    if faults is not None:
        faults.check_for(allocator)
    longest = workload.prompt_tokens.astype(np.int64) + np.minimum(workload.output_tokens, workload.token_limit)
    pages = -(-(int(longest.max()) + 2 * config.lookahead_tokens) // allocator.unit_tokens)
    state = at.new_serving(
        allocator,
        config,
        new_journal(journal_words),
        faults=faults,
        requests=len(workload),
        identities=len(workload.hashes),
        hash_tokens=workload.hash_tokens,
        row_units=min(pages, allocator.capacity_units),
    )
    facts = state.facts[1:]
    facts[:, at.ARRIVAL] = workload.arrival_ns
    facts[:, at.CLASS] = workload.class_id
    facts[:, at.PROMPT] = workload.prompt_tokens
    facts[:, at.LIMIT] = workload.token_limit
    facts[:, at.INTENDED] = workload.output_tokens
    facts[:, at.HASH_FIRST] = workload.hash_offsets[:-1]
    facts[:, at.COVERED] = workload.covered_tokens()
    facts[:, at.DRAWN_AS] = workload.drawn_as if len(workload.drawn_as) else np.arange(1, len(workload) + 1)
    for class_id, level in config.priorities:
        facts[workload.class_id == class_id, at.PRIORITY] = level
    state.hashes[: len(workload.hashes)] = workload.hashes
    return state


def _result(state: at.Serving, workload: Workload, status: int, now_ns: int, seconds: float) -> Result:
    tally = state.tally
    averages = state.averages
    first = state.facts[1:, at.FIRST_TOKEN_NS]
    got_one = first > 0
    ttft = (first[got_one] - state.facts[1:, at.ARRIVAL][got_one]) / 1e9
    active_ns = float(averages[at.ACTIVE_NS])
    fragmented_ns = float(averages[at.FRAGMENTED_NS])
    paged = bool(state.config[at.PAGED])
    ended = int(tally[at.COMPLETED] + tally[at.REFUSED] + tally[at.ABORTED] + tally[at.ERRORS])
    reasons = tally[at.REASONS : at.REASONS + 32].reshape(2, 16)
    totals = reasons.sum(axis=0)
    return Result(
        requests=len(workload),
        completed=int(tally[at.COMPLETED]),
        refused=int(tally[at.REFUSED]),
        errors=int(tally[at.ERRORS]),
        aborted=int(tally[at.ABORTED]),
        unfinished=len(workload) - ended,
        running_at_end=int(tally[at.RUNNING]),
        waiting_at_end=int(tally[at.QUEUED]),
        allocation_failures={reason.name.lower(): int(totals[reason]) for reason in Reason if totals[reason]},
        failures_at_start=int(reasons[0].sum()),
        failures_mid_stream=int(reasons[1].sum()),
        preemptions=int(tally[at.PREEMPTIONS]),
        recomputed_tokens=int(tally[at.LOST_TOKENS] - tally[at.AGAIN_HIT_TOKENS]),
        evictions=int(state.pages.tally[page_pool.EVICTIONS_DONE]) if paged else 0,
        prefix_lookup_tokens=int(tally[at.LOOKUP_TOKENS]),
        prefix_hit_tokens=int(tally[at.HIT_TOKENS]),
        readmission_lookup_tokens=int(tally[at.AGAIN_LOOKUP_TOKENS]),
        readmission_hit_tokens=int(tally[at.AGAIN_HIT_TOKENS]),
        relocations=int(tally[at.RELOCATIONS]),
        copied_tokens=int(tally[at.COPIED_TOKENS]),
        compactions=int(tally[at.COMPACTIONS]),
        compacted_tokens=int(tally[at.COMPACTED_TOKENS]),
        swapped_out_tokens=int(tally[at.SWAPPED_OUT_TOKENS]),
        swapped_in_tokens=int(tally[at.SWAPPED_IN_TOKENS]),
        swaps_refused=int(tally[at.SWAPS_REFUSED]),
        draft_tokens=int(tally[at.DRAFT_TOKENS]),
        accepted_tokens=int(tally[at.ACCEPTED_TOKENS]),
        transfers=int(tally[at.TRANSFERS_BEGUN]),
        stranded_transfers=int(tally[at.STRANDED]),
        leaked_units=int(tally[at.LEAKED_UNITS]),
        twice_freed_units=int(tally[at.TWICE_FREED]),
        output_tokens=int(tally[at.OUTPUT_TOKENS]),
        computed_tokens=int(tally[at.COMPUTED_TOKENS]),
        tail_waste_ratio=float(averages[at.TAIL]) / active_ns if active_ns else None,
        page_utilization_ratio=float(averages[at.UTILIZATION]) / active_ns if active_ns else None,
        reserved_ratio=float(averages[at.RESERVED]) / active_ns if active_ns else None,
        external_fragmentation_ratio=(
            float(averages[at.FRAGMENTATION]) / fragmented_ns if fragmented_ns and not paged else None
        ),
        free_at_fragmentation_ratio=_ratio(
            tally[at.FREE_AT_FAILURE], tally[at.FRAGMENTED_FAILURES] * state.config[at.CAPACITY_UNITS]
        ),
        largest_at_fragmentation_ratio=_ratio(tally[at.LARGEST_AT_FAILURE], tally[at.FREE_AT_FAILURE]),
        while_waiting=_while_waiting(state),
        capacity_units=int(state.config[at.CAPACITY_UNITS]),
        unit_tokens=int(state.config[at.UNIT_TOKENS]),
        peak_active_units=int(tally[at.PEAK_ACTIVE]),
        units_at_end=_units_by_state(state),
        steps=int(tally[at.STEPS]),
        duration_s=now_ns / 1e9,
        ttft_p50_s=float(np.percentile(ttft, 50)) if ttft.size else None,
        ttft_p99_s=float(np.percentile(ttft, 99)) if ttft.size else None,
        deadlock=status == DEADLOCK,
        step_limit_reached=status == STEP_LIMIT,
        wall_seconds=seconds,
    )


def _units_by_state(state: at.Serving) -> dict[str, int]:
    """Units of the first pool by their state now; they sum to its capacity."""
    capacity = int(state.config[at.CAPACITY_UNITS])
    if state.config[at.PAGED]:
        tally = state.pages.tally
        pinned, deferred = int(tally[page_pool.IDLE_PINNED]), int(tally[page_pool.DEFERRED])
        cached, queued = int(tally[page_pool.EVICTABLE]), int(tally[page_pool.QUEUED])
        free = queued - cached
    else:
        cached = deferred = 0
        free, pinned = int(state.runs.tally[run_pool.FREE]), int(state.tally[at.REGION_UNITS])
    active = capacity - free - cached - pinned - deferred
    return {"active": active, "cached": cached, "pinned": pinned, "deferred": deferred, "free": free}


def _ratio(part: float, whole: float) -> float | None:
    return float(part) / float(whole) if whole else None


def _while_waiting(state: at.Serving) -> FullPool | None:
    averages = state.averages
    ns = float(averages[at.FULL_NS])
    if not ns:
        return None
    slots = ns * float(state.config[at.CAPACITY_UNITS] * state.config[at.UNIT_TOKENS])
    return FullPool(
        written_ratio=float(averages[at.FULL_WRITTEN]) / slots,
        used_later_ratio=float(averages[at.FULL_USED_LATER]) / slots,
        never_used_ratio=float(averages[at.FULL_NEVER_USED]) / slots,
        free_ratio=float(averages[at.FULL_FREE]) / slots,
        batch=float(averages[at.FULL_BATCH]) / ns,
    )
