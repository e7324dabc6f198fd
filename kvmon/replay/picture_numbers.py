"""The numbers of a picture, from what was summed up: rates over the time that was seen, shares of a pool.

Invariant: a number that the recording cannot know is absent, never zero.
"""

from __future__ import annotations

from collections.abc import Mapping

from kvmon.replay.picture_sums import Measured, PoolSums, RequestSums, StreamSums
from kvmon.state import PoolState, StreamState

__all__ = ["Numbers", "of_failures", "of_pool", "of_requests", "of_steps", "sees_requests"]

_P95 = 0.95

Numbers = dict[str, Measured]


def _known(numbers: Mapping[str, Measured | float | None]) -> Numbers:
    """Those that are."""
    return {
        name: value if isinstance(value, Measured) else Measured(value)
        for name, value in numbers.items()
        if value is not None
    }


def sees_requests(state: StreamState) -> bool:
    """Whether the adapter sees more than what a cache has."""
    return state.config.get("fidelity") != "cache_only"


def of_failures(state: StreamState, counts: Mapping[str, int], seen_s: float) -> Numbers:
    """From the counts of a picture."""
    if not seen_s or not sees_requests(state):
        return {}
    return {
        "refused_a_minute": Measured.rate(counts["refused"], seen_s, 60),
        "lost_a_minute": Measured.rate(counts["lost"], seen_s, 60),
    }


def of_requests(state: StreamState, sums: RequestSums, seen_s: float, unseen_s: float) -> Numbers:
    """Arrivals are those of the time from the first to the last one: what a backlog takes behind it is no traffic."""
    if not sees_requests(state):
        return {}
    arrivals = None
    if sums.first_ns is not None and sums.last_ns is not None:
        came_s = (sums.last_ns - sums.first_ns) / 1e9 - unseen_s
        arrivals = Measured.rate(sums.arrived - 1, came_s) if sums.arrived > 1 and came_s > 0 else None
    elif seen_s:
        arrivals = Measured(0.0)
    return _known(
        {
            "arrivals_a_second": arrivals,
            "failed_ratio": Measured.share(sums.failed, sums.ended, sums.ended) if sums.ended else None,
            "prompt_tokens_mean": sums.prompt.mean(),
            "prompt_tokens_p95": sums.prompt.percentile(_P95),
            "output_tokens_mean": sums.output.mean(),
            "output_tokens_p95": sums.output.percentile(_P95),
            "queued_s_p95": sums.queued.percentile(_P95, 1e-9),
            "first_token_s_p95": sums.first_token.percentile(_P95, 1e-9),
            "memory_wait_s_p95": sums.memory_wait.percentile(_P95, 1e-9),
        }
    )


def of_steps(sums: StreamSums, arrived: int, seen_s: float) -> Numbers:
    """What the steps said, and what they did."""
    means, counts = sums.means, sums.counts
    prefill, lookup = counts.get("prefill_tokens"), counts.get("lookup_tokens")
    found: dict[str, Measured | float | None] = {
        "running_mean": means["running"].mean,
        "waiting_mean": means["waiting"].mean,
        "waiting_peak": means["waiting"].most,
        "waiting_for_memory_mean": means["waiting_for_memory"].mean,
        "step_seconds_mean": means["step_seconds"].mean,
        "recomputed_ratio": counts["recomputed_tokens"] / prefill if prefill else None,
        # whether a prompt is in the cache is one sample, whatever its length
        "hit_ratio": Measured.share(counts["hit_tokens"], lookup, max(arrived, 1)) if lookup else None,
    }
    if counts.get("steps") and seen_s:
        found["preemptions_a_minute"] = Measured.rate(counts["preemptions"], seen_s, 60)
        found["steps_a_second"] = counts["steps"] / seen_s
        found["prefill_tokens_a_second"] = counts["prefill_tokens"] / seen_s
        found["decode_tokens_a_second"] = counts["decode_tokens"] / seen_s
    return _known(found)


def of_pool(pool: PoolState, sums: PoolSums, seen_s: float) -> Numbers:
    """Shares of a pool."""
    means, evicted = sums.means, sums.counts.get("evicted_tokens")
    available, active = means["available"], means["active"]
    # of a pool of which the use alone is known, all that is in use is active
    used_mean = active.mean if available.mean is None else 1 - available.mean
    used_peak = active.most if available.least is None else 1 - available.least
    of_runs = pool.contiguity != "none"  # else any free units will do
    return _known(
        {
            "use_mean": used_mean,
            "use_peak": used_peak,
            "cached_mean": means["cached"].mean,
            "pinned_mean": means["pinned"].mean,
            "deferred_mean": means["deferred"].mean,
            "unowned_peak": means["unowned"].most,
            "largest_free_mean": means["largest_free"].mean if of_runs else None,
            "largest_free_least": means["largest_free"].least if of_runs else None,
            "external_fragmentation_mean": means["external_fragmentation"].mean,
            "lost_at_head_mean": means["lost_at_head"].mean,
            "page_utilization_mean": means["page_utilization"].mean,
            "tail_mean": means["tail"].mean,
            "reserved_mean": means["reserved"].mean,
            "evicted_tokens_a_second": None if evicted is None or not seen_s else evicted / seen_s,
        }
    )
