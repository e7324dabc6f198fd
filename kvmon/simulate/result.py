"""What a simulation found, as numbers that have one definition.

All ratios are 0 to 1. Averages are over simulated time while at least one unit is active: each step counts with its
duration, memory as scheduled, tokens as computed by its end. A number that the allocator cannot have is None, never 0.

Invariant: a result is plain data; `to_json` is what `kvmon simulate --json` prints.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

__all__ = ["Result"]


@dataclass(frozen=True)
class Result:
    """Totals and averages of one run.

    requests / completed / refused / errors      arrived; ended by stop or length; refused at admission; aborted
    allocation_failures                          by reason, once a wait; at start and in mid-stream apart
    prefix_lookup_tokens / prefix_hit_tokens     of first admissions; `readmission_*` after preemptions
    tail_waste_ratio                             unfilled slots of started units / slots of active units
    page_utilization_ratio                       written slots / slots of active units
    reserved_ratio                               slots set aside for tokens to come / slots of active units
    external_fragmentation_ratio                 1 - longest free run / free units, while any is free; None when paged
    ttft_p50_s / ttft_p99_s                      arrival to first token in simulated seconds; None when nobody got one
    deadlock                                     the run stopped because nothing could move any more
    step_limit_reached                           the run stopped because its steps were used up
    duration_s / wall_seconds                    simulated time to the last step's end / time the simulator took
    """

    requests: int
    completed: int
    refused: int
    errors: int
    unfinished: int
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
    output_tokens: int
    computed_tokens: int
    tail_waste_ratio: float | None
    page_utilization_ratio: float | None
    reserved_ratio: float | None
    external_fragmentation_ratio: float | None
    capacity_units: int
    unit_tokens: int
    peak_active_units: int
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
