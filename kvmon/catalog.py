"""Every metric that kvmon exposes, once: name, kind, unit, labels, meaning, and which fidelity can know it.

The exporter builds its families from here; dashboards, alert rules and docs/metrics.md name nothing else. Invariants,
held by tests: names are stable and follow Prometheus' conventions; labels are the engine, its rank, a pool and
enumerations, never a request, a block or a process; one rank with one pool stays within `SERIES_BUDGET`. This module
computes nothing. It is longer than other files because a table of metrics reads best in one place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvmon.errors import ConfigError

__all__ = [
    "ENUMERATIONS",
    "FIDELITIES",
    "INFO_LABELS",
    "METRICS",
    "SERIES_BUDGET",
    "TOPICS",
    "Fidelity",
    "Metric",
    "MetricKind",
    "metric",
]

MetricKind = Literal["gauge", "counter", "histogram", "info"]
Fidelity = Literal["exact", "sampled", "counts", "cache_only"]

SERIES_BUDGET = 150
"""Series that one rank with one pool may expose at most; every label value of every metric counted. A page has
fewer: of `kvmon_verdict` only what holds is there."""

FIDELITIES: dict[Fidelity, str] = {
    "exact": "the adapter sees every unit at every event",
    "sampled": "it sees units now and then, counts always",
    "counts": "it sees how many units, not which",
    "cache_only": "it sees what enters and leaves the prefix cache, nothing else",
}
"""What an adapter can see. A number that this fidelity cannot know is absent, never zero."""

TOPICS = {
    "memory": "Where the KV memory is",
    "fragmentation": "What could be granted now",
    "allocator": "What the allocator did",
    "requests": "What the traffic asked for and got",
    "diagnosis": "What is wrong",
    "trust": "Whether the books add up",
    "device": "The GPU",
    "exporter": "kvmon itself",
}
"""Topics in the order of the documentation, with their headings."""

ENUMERATIONS: dict[tuple[str, str], tuple[str, ...]] = {
    ("kvmon_memory_bytes", "state"): ("active", "cached", "pinned", "deferred", "free"),
    ("kvmon_active_slots", "kind"): ("written", "tail", "reserved"),
    ("kvmon_owned_memory_bytes", "owner"): ("running", "waiting", "preempted", "finished", "unattributed"),
    ("kvmon_lost_ratio", "size"): ("p50", "p95", "p99", "head"),
    ("kvmon_free_runs", "order"): ("0", "2", "4", "6", "8", "10", "12", "14"),
    ("kvmon_allocation_failures_total", "reason"): (
        "unknown",
        "exhausted",
        "no_contiguous_run",
        "evictable_not_reclaimed",
        "all_pinned",
        "never_fits",
        "pool_starved",
        "partition_full",
        "watermark",
        "accounting_error",
    ),
    ("kvmon_requests", "state"): ("waiting", "running", "preempted"),
    ("kvmon_requests_finished_total", "reason"): ("unknown", "stop", "length", "abort", "error", "refused"),
    ("kvmon_gpu_memory_bytes", "state"): ("used", "reserved", "free"),
    ("kvmon_gpu_used_bytes", "part"): ("kv_pool", "weights", "torch_other", "torch_slack", "rest"),
    ("kvmon_torch_memory_bytes", "state"): ("allocated", "inactive_split", "cached"),
    ("kvmon_verdict", "verdict"): (
        "healthy",
        "fragmentation",
        "never_fits",
        "pool_starved",
        "partition",
        "reclaim_failed",
        "reservation",
        "pinned",
        "stranded",
        "tail_waste",
        "double_free",
        "leak",
        "deadlock",
        "preemption_storm",
        "not_kv",
        "cache_thrash",
        "head_of_line",
        "capacity",
        "telemetry_untrusted",
    ),
}
"""The values that a label of a metric can take, by metric and label."""

INFO_LABELS = frozenset(
    {"adapter", "adapter_version", "contiguity", "engine_version", "fidelity", "layout", "python", "tier"}
    | {"unit_bytes", "unit_tokens", "version"}
)
"""Labels that only info metrics carry: facts that do not change while a process lives."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric as users query it.

    `unit` is the unit of the value in words. `labels` are in the order of the exposition. `fidelity` lists what knows
    the number. `buckets` are upper bounds in `unit`, without the last, infinite one; only histograms have them.
    """

    name: str
    kind: MetricKind
    topic: str
    unit: str
    labels: tuple[str, ...]
    fidelity: tuple[Fidelity, ...]
    help: str
    buckets: tuple[float, ...] = ()

    @property
    def family(self) -> str:
        """The name without the suffix that its kind adds (`_total`, `_info`), as client libraries want it."""
        return self.name.removesuffix({"counter": "_total", "info": "_info"}.get(self.kind, ""))

    @property
    def samples(self) -> tuple[str, ...]:
        """Names of the samples that a scrape holds: its own, or `_bucket`, `_sum` and `_count` of a histogram."""
        if self.kind != "histogram":
            return (self.name,)
        return (f"{self.name}_bucket", f"{self.name}_sum", f"{self.name}_count")

    @property
    def series(self) -> int:
        """Series of one rank with one pool (or of one GPU, or one collector), every enumerated label value counted."""
        count = 1 if self.kind != "histogram" else len(self.buckets) + 3
        for label in self.labels:
            count *= len(ENUMERATIONS.get((self.name, label), ("",)))
        return count


_RANK = ("engine", "rank")
_POOL = ("engine", "rank", "pool")
_EXACT: tuple[Fidelity, ...] = ("exact",)
_UNITS: tuple[Fidelity, ...] = ("exact", "sampled")
_COUNTS: tuple[Fidelity, ...] = ("exact", "sampled", "counts")
_CACHE: tuple[Fidelity, ...] = ("exact", "sampled", "cache_only")
_ALL: tuple[Fidelity, ...] = ("exact", "sampled", "counts", "cache_only")

# Bounds are powers of two of a millisecond, as the fold counts durations: every bucket is exact.
_DURATIONS = (0.128, 1.024, 8.192, 65.536, 524.288)
_IDLE = (1.024, 8.192, 65.536, 262.144, 2097.152)
_WAITS = (0.008, 0.128, 1.024, 8.192, 65.536)

METRICS: tuple[Metric, ...] = (
    Metric(
        "kvmon_memory_bytes", "gauge", "memory", "bytes", (*_POOL, "state"), _COUNTS,
        "KV memory by state, which sums to the capacity. active: referenced by a request; cached: reusable prefix "
        "content that can be evicted; pinned: cached and protected; deferred: freed but held for a transfer; free: "
        "nothing in it. States that the adapter cannot tell apart are absent, and part of free.",
    ),
    Metric(
        "kvmon_memory_capacity_bytes", "gauge", "memory", "bytes", _POOL, _COUNTS,
        "KV memory that the pool can hand out in all.",
    ),
    Metric(
        "kvmon_memory_used_high_bytes", "gauge", "memory", "bytes", _POOL, _COUNTS,
        "Highest use in the last minute of event time, so that a spike between two scrapes is seen. Use is "
        "everything that is neither free nor evictable: active, pinned and deferred.",
    ),
    Metric(
        "kvmon_active_slots", "gauge", "memory", "token slots", (*_POOL, "kind"), _EXACT,
        "Token slots of active memory. written: hold keys and values; tail: the unfilled rest of a sequence's last "
        "page; reserved: set aside for tokens to come.",
    ),
    Metric(
        "kvmon_page_utilization_ratio", "gauge", "memory", "ratio", _POOL, _EXACT,
        "Share of the slots of active memory that hold a token: written / (written + tail + reserved). Absent while "
        "nothing is active.",
    ),
    Metric(
        "kvmon_owned_memory_bytes", "gauge", "memory", "bytes", (*_POOL, "owner"), _EXACT,
        "Active memory by the state of the request that holds it; shared memory counts once, for its most active "
        "holder. finished: its request has ended (stranded memory); unattributed: the engine has not named a holder "
        "yet.",
    ),
    Metric(
        "kvmon_shared_memory_bytes", "gauge", "memory", "bytes", _POOL, _UNITS,
        "Active memory with more than one reference: prefixes that several requests use at once.",
    ),
    Metric(
        "kvmon_oldest_allocation_age_seconds", "gauge", "memory", "seconds", _POOL, _EXACT,
        "Age of the oldest active memory. It grows without end when something is never freed. Absent while nothing "
        "is active.",
    ),
    Metric(
        "kvmon_runs_per_sequence", "gauge", "memory", "runs", _POOL, _EXACT,
        "Mean number of adjacent stretches that a running sequence's memory is scattered over; 1 is contiguous. A "
        "transfer pays for each. Absent while nothing runs.",
    ),
    Metric(
        "kvmon_pool_info", "info", "memory", "1",
        (*_POOL, "layout", "contiguity", "tier", "unit_bytes", "unit_tokens"), _ALL,
        "What the pool is: layout (paged, contiguous, token, arena), contiguity that a request needs (none, "
        "preferred, required), tier (gpu, cpu, disk, remote), and bytes and tokens of its smallest unit. Always 1.",
    ),
    Metric(
        "kvmon_largest_free_block_bytes", "gauge", "fragmentation", "bytes", _POOL, _COUNTS,
        "Largest block that the allocator could grant now, without evicting anything. Where requests need no "
        "contiguity: all free memory.",
    ),
    Metric(
        "kvmon_largest_free_block_tokens", "gauge", "fragmentation", "tokens", _POOL, _COUNTS,
        "Largest block that the allocator could grant now, in tokens: compare it with the length of a request.",
    ),
    Metric(
        "kvmon_largest_free_block_after_eviction_bytes", "gauge", "fragmentation", "bytes", _POOL, _UNITS,
        "Largest block that the allocator could grant if it evicted everything that is evictable.",
    ),
    Metric(
        "kvmon_largest_free_block_low_bytes", "gauge", "fragmentation", "bytes", _POOL, _COUNTS,
        "Smallest value of the largest free block in the last minute of event time, so that a dip between two "
        "scrapes is seen.",
    ),
    Metric(
        "kvmon_external_fragmentation_ratio", "gauge", "fragmentation", "ratio", _POOL, _UNITS,
        "1 - longest free run / free memory. A trend, blind to the size of requests; in a pool that needs no "
        "contiguity it blocks nothing. Absent when nothing is free.",
    ),
    Metric(
        "kvmon_lost_ratio", "gauge", "fragmentation", "ratio", (*_POOL, "size"), _UNITS,
        "Share of the requests of this size that would fit into the free memory were it one block, and do not fit as "
        "it lies: 1 - sum(floor(run / s)) / floor(free / s). size: percentiles of the last 1,024 blocks handed out, "
        "and the request at the head of the queue. Absent where requests need no contiguity, and when not even one "
        "would fit.",
    ),
    Metric(
        "kvmon_free_runs", "gauge", "fragmentation", "runs", (*_POOL, "order"), _UNITS,
        "Maximal stretches of adjacent free units by length: order k counts runs of 2^k to 4 * 2^k - 1 units, the "
        "last order all longer ones.",
    ),
    Metric(
        "kvmon_allocated_units_total", "counter", "allocator", "units", _POOL, _COUNTS,
        "Units handed out.",
    ),
    Metric(
        "kvmon_released_units_total", "counter", "allocator", "units", _POOL, _COUNTS,
        "Units whose last reference was dropped; what they hold may stay cached.",
    ),
    Metric(
        "kvmon_cache_inserted_units_total", "counter", "allocator", "units", _POOL, _CACHE,
        "Units whose content was entered into the prefix cache.",
    ),
    Metric(
        "kvmon_evicted_units_total", "counter", "allocator", "units", _POOL, _CACHE,
        "Units whose cached content was forgotten to make room.",
    ),
    Metric(
        "kvmon_cache_resets_total", "counter", "allocator", "resets", _POOL, _CACHE,
        "Times the whole prefix cache was dropped.",
    ),
    Metric(
        "kvmon_allocation_failures_total", "counter", "allocator", "failures", (*_POOL, "reason"), _COUNTS,
        "Allocations refused, counted once for each wait of a request, not for each retry. reason is the "
        "allocator's; unknown where the adapter cannot see it.",
    ),
    Metric(
        "kvmon_migrated_tokens_total", "counter", "allocator", "tokens", _POOL, _EXACT,
        "Tokens copied because a sequence had to move to another block of the same pool.",
    ),
    Metric(
        "kvmon_block_lifetime_seconds", "histogram", "allocator", "seconds", _POOL, _EXACT,
        "Time from a unit's allocation to the drop of its last reference.",
        _DURATIONS,
    ),
    Metric(
        "kvmon_idle_before_eviction_seconds", "histogram", "allocator", "seconds", _POOL, _EXACT,
        "Time that cached content lay unused before it was evicted. Short times mean that the cache is too small for "
        "its traffic.",
        _IDLE,
    ),
    Metric(
        "kvmon_reuse_gap_seconds", "histogram", "allocator", "seconds", _POOL, _EXACT,
        "Time that cached content lay unused before a request hit it again. Compare with the idle time before "
        "eviction.",
        _IDLE,
    ),
    Metric(
        "kvmon_requests", "gauge", "requests", "requests", (*_RANK, "state"), _COUNTS,
        "Requests by state. preempted: lost its memory and waits to be computed again.",
    ),
    Metric(
        "kvmon_head_need_bytes", "gauge", "requests", "bytes", _POOL, _COUNTS,
        "Memory that the request at the head of the queue waits for; compare with the largest free block. Absent "
        "when none waits for KV.",
    ),
    Metric(
        "kvmon_requests_arrived_total", "counter", "requests", "requests", _RANK, _COUNTS,
        "Requests that reached the scheduler.",
    ),
    Metric(
        "kvmon_requests_finished_total", "counter", "requests", "requests", (*_RANK, "reason"), _COUNTS,
        "Requests that ended, by reason. refused: could never be served.",
    ),
    Metric(
        "kvmon_preemptions_total", "counter", "requests", "preemptions", _RANK, _COUNTS,
        "Running requests that lost their memory to others.",
    ),
    Metric(
        "kvmon_recomputed_tokens_total", "counter", "requests", "tokens", _RANK, _COUNTS,
        "Tokens whose keys and values were thrown away by a preemption and have to be computed again.",
    ),
    Metric(
        "kvmon_prefix_lookup_tokens_total", "counter", "requests", "tokens", _RANK, _COUNTS,
        "Prompt tokens looked up in the prefix cache.",
    ),
    Metric(
        "kvmon_prefix_hit_tokens_total", "counter", "requests", "tokens", _RANK, _COUNTS,
        "Prompt tokens found in the prefix cache; divide by the lookups for the hit ratio.",
    ),
    Metric(
        "kvmon_prefill_tokens_total", "counter", "requests", "tokens", _RANK, _COUNTS,
        "Prompt tokens computed.",
    ),
    Metric(
        "kvmon_decode_tokens_total", "counter", "requests", "tokens", _RANK, _COUNTS,
        "Tokens computed by decoding.",
    ),
    Metric(
        "kvmon_steps_total", "counter", "requests", "steps", _RANK, _COUNTS,
        "Steps that the engine completed. No progress with requests waiting is a hang.",
    ),
    Metric(
        "kvmon_step_seconds_total", "counter", "requests", "seconds", _RANK, _COUNTS,
        "Time spent in steps; divide by the steps for the mean.",
    ),
    Metric(
        "kvmon_kv_wait_seconds", "histogram", "requests", "seconds", _RANK, _COUNTS,
        "Time from the first refused allocation of a request to its admission: what it waited for KV memory, not for "
        "its turn.",
        _WAITS,
    ),
    Metric(
        "kvmon_verdict", "gauge", "diagnosis", "1", (*_POOL, "verdict"), _ALL,
        "1 for each verdict that holds in the last minute of event time, and for healthy where none does; the others "
        "are absent. `kvmon explain VERDICT` says what it means and what to do.",
    ),
    Metric(
        "kvmon_memory_wait_ratio", "gauge", "diagnosis", "ratio", _POOL, _COUNTS,
        "Share of the last minute of event time in which at least one request waited for memory of this pool.",
    ),
    Metric(
        "kvmon_memory_lost_requests", "gauge", "diagnosis", "requests", _POOL, _COUNTS,
        "Requests that were refused or aborted for want of memory of this pool in the last minute of event time.",
    ),
    Metric(
        "kvmon_recomputed_ratio", "gauge", "diagnosis", "ratio", _RANK, _COUNTS,
        "Tokens thrown away by preemptions, of the tokens prefilled in the last minute of event time. Near 1 most work "
        "is done over and over. Absent while nothing is prefilled.",
    ),
    Metric(
        "kvmon_forgotten_ratio", "gauge", "diagnosis", "ratio", _RANK, _COUNTS,
        "Prompt tokens that were asked for before and had been evicted, of those looked up in the last minute of event "
        "time, from a sample of page names. Absent while nothing is looked up.",
    ),
    Metric(
        "kvmon_stuck_seconds", "gauge", "diagnosis", "seconds", _RANK, _COUNTS,
        "Time in the last minute in which requests waited and steps computed nothing.",
    ),
    Metric(
        "kvmon_residual_units", "gauge", "trust", "units", _POOL, _COUNTS,
        "Sum of what the engine says about its own pool, less the capacity. Negative: a leak; positive: a double "
        "free; 0 is healthy. Absent where the engine makes no claims.",
    ),
    Metric(
        "kvmon_drift_units", "gauge", "trust", "units", _POOL, _UNITS,
        "Units that the recorded events put into another state than the engine's own count; 0 is healthy. Otherwise "
        "events were missed.",
    ),
    Metric(
        "kvmon_unowned_units", "gauge", "trust", "units", _POOL, _EXACT,
        "Active units that no live request owned when the last step closed; 0 is healthy, growth is a leak.",
    ),
    Metric(
        "kvmon_gpu_memory_bytes", "gauge", "device", "bytes", ("gpu", "state"), _ALL,
        "Memory of a GPU as its driver (NVML) counts it, all processes together. gpu is the device's UUID; reserved "
        "is the driver's own part, within used where the driver is old.",
    ),
    Metric(
        "kvmon_gpu_used_bytes", "gauge", "device", "bytes", ("gpu", "part"), _ALL,
        "What the used memory of a GPU is for; the parts sum to it. kv_pool and weights: of what torch allocated in "
        "all engines here; torch_other: the rest of that, such as activations; torch_slack: reserved by torch, given "
        "to nobody; rest: other processes, CUDA contexts, the driver. A part that an engine does not tell is within "
        "torch_other. Absent without an engine that names the GPU. Negative for a moment where an engine's number is "
        "older than the driver's.",
    ),
    Metric(
        "kvmon_gpu_overclaimed_bytes", "gauge", "device", "bytes", ("gpu",), _ALL,
        "Memory of a GPU that engines say they have beyond what there is: what the negative parts of "
        "kvmon_gpu_used_bytes lack. 0 is healthy; anything else that stays means that a part is told wrongly.",
    ),
    Metric(
        "kvmon_gpu_processes", "gauge", "device", "processes", ("gpu",), _ALL,
        "Processes that compute on a GPU, as far as its driver shows them; absent where it shows none, as in many "
        "containers.",
    ),
    Metric(
        "kvmon_gpu_process_memory_bytes", "gauge", "device", "bytes", ("gpu",), _ALL,
        "Memory that these processes hold together, CUDA contexts included. Absent unless the driver tells it of each.",
    ),
    Metric(
        "kvmon_torch_memory_bytes", "gauge", "device", "bytes", (*_RANK, "gpu", "state"), _ALL,
        "What torch's allocator in the engine reserved of a GPU; the states sum to it. allocated: given out; "
        "inactive_split: free, in pieces beside what is given out, of use for a smaller request only; cached: free in "
        "whole segments, given back when the GPU runs short. gpu is the UUID where the engine tells it, else its own "
        "number for it.",
    ),
    Metric(
        "kvmon_torch_largest_free_block_bytes", "gauge", "device", "bytes", (*_RANK, "gpu"), _ALL,
        "Largest block that is free in what torch reserved, from a look every half minute or so. A request beyond it, "
        "and beyond what is free on the GPU, fails however much is free in all.",
    ),
    Metric(
        "kvmon_torch_allocation_retries_total", "counter", "device", "retries", (*_RANK, "gpu"), _ALL,
        "Times that torch ran out of memory, gave back what it had cached and tried again. Each stalls the engine; "
        "they come before an out-of-memory error.",
    ),
    Metric(
        "kvmon_engine_info", "info", "exporter", "1",
        (*_RANK, "engine_version", "adapter", "adapter_version", "fidelity"), _ALL,
        "The engine and the adapter that records it, and what that adapter sees (fidelity). Always 1.",
    ),
    Metric(
        "kvmon_engine_up", "gauge", "exporter", "1", _RANK, _ALL,
        "1 while the engine's process lives, 0 when it is gone. A dead engine keeps this series alone.",
    ),
    Metric(
        "kvmon_engine_stalled", "gauge", "exporter", "1", _RANK, _ALL,
        "1 when the engine lives and has work, but recorded nothing for longer than the stall limit; its last "
        "numbers stay.",
    ),
    Metric(
        "kvmon_heartbeat_age_seconds", "gauge", "exporter", "seconds", _RANK, _ALL,
        "Time since the engine last recorded anything.",
    ),
    Metric(
        "kvmon_converging", "gauge", "exporter", "1", _RANK, _ALL,
        "1 until a late start or a gap has been made good by a complete audit sweep; numbers that depend on it are "
        "absent meanwhile.",
    ),
    Metric(
        "kvmon_events_read_total", "counter", "exporter", "events", _RANK, _ALL,
        "Recorded events that were read.",
    ),
    Metric(
        "kvmon_events_lost_total", "counter", "exporter", "events", _RANK, _ALL,
        "Events that the probe could not record, and frames that were overwritten or damaged before they were read.",
    ),
    Metric(
        "kvmon_reader_lag_bytes", "gauge", "exporter", "bytes", _RANK, _ALL,
        "Recorded and not read yet.",
    ),
    Metric(
        "kvmon_build_info", "info", "exporter", "1", ("version", "python"), _ALL,
        "The version of kvmon and of the Python that runs it. Always 1.",
    ),
    Metric(
        "kvmon_collector_duration_seconds", "gauge", "exporter", "seconds", ("collector",), _ALL,
        "Time that a collector took in this scrape.",
    ),
    Metric(
        "kvmon_collector_success", "gauge", "exporter", "1", ("collector",), _ALL,
        "1 when a collector succeeded in this scrape, 0 when it failed; the others are served all the same.",
    ),
    Metric(
        "kvmon_directories_missing", "gauge", "exporter", "1", (), _ALL,
        "Recording directories that cannot be read now; 0 is healthy. Their engines' last numbers stay.",
    ),
    Metric(
        "kvmon_streams_unreadable", "gauge", "exporter", "1", (), _ALL,
        "Recordings of engines that cannot be read (permission, newer format) or that another one of the same engine "
        "and rank hides; 0 is healthy.",
    ),
    Metric(
        "kvmon_series", "gauge", "exporter", "series", (), _ALL,
        "Series of engines in this scrape.",
    ),
    Metric(
        "kvmon_series_dropped_total", "counter", "exporter", "series", (), _ALL,
        "Series that the budget kept out of scrapes; anything but 0 means that numbers are missing.",
    ),
)  # fmt: skip
"""The catalogue, by topic."""

_BY_NAME = {entry.name: entry for entry in METRICS}


def metric(name: str) -> Metric:
    """The metric called `name`, as users query it (`kvmon_preemptions_total`).

    Raises ConfigError for a name that the catalogue does not hold.
    """
    try:
        return _BY_NAME[name]
    except KeyError:
        raise ConfigError(f"'{name}' is no metric of kvmon: 'kvmon metrics' lists them") from None
