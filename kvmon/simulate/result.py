"""What a simulation found, as numbers that have one definition.

All ratios are 0 to 1. Averages are over simulated time while at least one unit is active: each step counts with its
duration, memory as scheduled, tokens as computed by its end. A number that the allocator cannot have is None, never 0.

Invariant: a result is plain data; `to_json` is what `kvmon simulate --json` prints.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

__all__ = ["FullPool", "Result"]


@dataclass(frozen=True)
class FullPool:
    """Where the memory is while somebody waits for it: shares of the whole pool over that time, and the mean number of
    running requests. They sum to 1. The categories of PagedAttention's figure 2 (SOSP'23): token states, reserved,
    internal and external fragmentation.

    written_ratio       slots that hold keys and values
    used_later_ratio    set aside, and written before its request ends
    never_used_ratio    set aside and never written, and the unfilled rest of pages
    free_ratio          everything that no request asked for, what the placement rounds up included
    """

    written_ratio: float
    used_later_ratio: float
    never_used_ratio: float
    free_ratio: float
    batch: float


@dataclass(frozen=True)
class Result:
    """Totals and averages of one run.

    requests / completed / refused               arrived; ended by stop or length; refused at admission
    errors / aborted                             ended by the engine, for want of memory or by an error elsewhere; the
                                                 client hung up
    unfinished                                   not ended: running_at_end, waiting_at_end, or not come yet
    allocation_failures                          by reason, once a wait; at start and in mid-stream apart
    prefix_lookup_tokens / prefix_hit_tokens     of first admissions; `readmission_*` after preemptions
    tail_waste_ratio                             unfilled slots of started units / slots of active units
    page_utilization_ratio                       written slots / slots of active units
    reserved_ratio                               slots set aside for tokens to come / slots of active units
    compactions / compacted_tokens               blocks slid together; tokens copied by that
    swapped_out / swapped_in / swaps_refused     tokens to and from the host tier; preemptions it had no room for
    draft_tokens / accepted_tokens               of speculative decoding
    transfers / stranded_transfers               begun when a request ended; those that a fault keeps from ending
    leaked_units / twice_freed_units             faults of the allocator
    external_fragmentation_ratio                 1 - longest free run / free units, while any is free; None when paged
    free_at_fragmentation_ratio                  free share of the pool at failures for want of a run, their mean
    largest_at_fragmentation_ratio               largest free block / free units at those failures
    while_waiting                                see `FullPool`; None when nobody ever waited
    ttft_p50_s / ttft_p99_s                      arrival to first token in simulated seconds; None when nobody got one
    peak_active_units                            most units that requests held at once
    units_at_end                                 units by state when the run stopped: active, cached, pinned, deferred,
                                                 free; prefixes that stay behind in a contiguous pool are pinned
    deadlock                                     the run stopped because nothing could move any more
    step_limit_reached                           the run stopped because its steps were used up
    duration_s / wall_seconds                    simulated time to the last step's end / time the simulator took
    """

    requests: int
    completed: int
    refused: int
    errors: int
    aborted: int
    unfinished: int
    running_at_end: int
    waiting_at_end: int
    allocation_failures: dict[str, int]
    failures_at_start: int
    failures_mid_stream: int
    preemptions: int
    recomputed_tokens: int
    evictions: int
    prefix_lookup_tokens: int
    prefix_hit_tokens: int
    readmission_lookup_tokens: int
    readmission_hit_tokens: int
    relocations: int
    copied_tokens: int
    compactions: int
    compacted_tokens: int
    swapped_out_tokens: int
    swapped_in_tokens: int
    swaps_refused: int
    draft_tokens: int
    accepted_tokens: int
    transfers: int
    stranded_transfers: int
    leaked_units: int
    twice_freed_units: int
    output_tokens: int
    computed_tokens: int
    tail_waste_ratio: float | None
    page_utilization_ratio: float | None
    reserved_ratio: float | None
    external_fragmentation_ratio: float | None
    free_at_fragmentation_ratio: float | None
    largest_at_fragmentation_ratio: float | None
    while_waiting: FullPool | None
    capacity_units: int
    unit_tokens: int
    peak_active_units: int
    units_at_end: dict[str, int]
    steps: int
    duration_s: float
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    deadlock: bool
    step_limit_reached: bool
    wall_seconds: float

    def to_json(self) -> dict[str, object]:
        """The fields by name, ready for `json.dumps`."""
        return asdict(self)
