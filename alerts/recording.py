"""The recording rules: what several alerts, or a dashboard, ask for again and again.

Names are `level:metric:operation`, as kubernetes-mixin has them; a level is what the series still distinguishes: `rank`
(one rank of an engine), `pool` (a pool of it), `pool_verdict`. Windows are thresholds and therefore not in the names.
Invariant: names are as stable as those of metrics; dashboards use them.
"""

from __future__ import annotations

from kvmon.alerts.rule import ON_RANK, POOL, RANK, Recording
from kvmon.alerts.thresholds import Thresholds, load_thresholds

__all__ = ["last", "recorded", "recordings"]


def last(series: str, limits: Thresholds) -> str:
    """The last sample of `series`, even if a scrape was missed since: that must not make a waiting alert begin anew."""
    return f"last_over_time({series}[{limits.duration('fresh')}])"


def _fresh(expression: str, limits: Thresholds) -> str:
    """`expression` of engines that recorded something lately: the last minute of an idle one is history."""
    heartbeat = last("kvmon_heartbeat_age_seconds", limits)
    return f"{expression} and {ON_RANK} ({heartbeat} < {limits.seconds('fresh')})"


def recordings(limits: Thresholds) -> list[Recording]:
    """The recording rules, for these thresholds."""
    window, step = limits.duration("verdict_window"), limits.duration("verdict_step")
    rate = limits.duration("rate_window")
    looks = limits.seconds("verdict_window") // limits.seconds("verdict_step")
    progress = limits.duration("progress_window")
    slow = f"{limits['slow_wait']:g}"
    arrived = f"rate(kvmon_requests_arrived_total[{rate}])"
    waits = f"rate(kvmon_kv_wait_seconds_count[{rate}])"
    quick = f'rate(kvmon_kv_wait_seconds_bucket{{le="{slow}"}}[{rate}])'
    held = _fresh("kvmon_verdict == 1", limits)
    lost = _fresh(f"sum by (job, instance, engine, rank) ({last('kvmon_memory_lost_requests', limits)})", limits)
    return [
        Recording(
            "pool_verdict:kvmon_verdict:held_ratio",
            f"clamp_max(count_over_time(({held})[{window}:{step}]) / {looks}, 1)",
            (*POOL, "verdict"),
            f"Share of the looks at the last {window} at which a verdict held and the engine was at work.",
        ),
        Recording(
            "pool:kvmon_memory_wait_ratio:avg",
            _fresh(f"avg_over_time(kvmon_memory_wait_ratio[{window}])", limits),
            POOL,
            f"Share of the last {window} in which somebody waited for memory of the pool.",
        ),
        Recording(
            "rank:kvmon_memory_lost_requests:arrived_ratio",
            f"({lost}) / clamp_min(60 * {arrived}, 1)",
            RANK,
            "Requests lost for want of memory in the last minute, of those that arrive in one.",
        ),
        Recording(
            "rank:kvmon_kv_wait_seconds:slow_ratio",
            f"clamp_max(({waits} - ignoring (le) {quick}) / ((({arrived} >= {waits}) or {waits}) > 0), 1)",
            RANK,
            f"Share of the requests that waited for memory for longer than {slow} s before they began: of those that "
            "arrived, or that waited, where these are more.",
        ),
        Recording(
            "rank:kvmon_tokens:rate",
            f"rate(kvmon_prefill_tokens_total[{progress}]) + rate(kvmon_decode_tokens_total[{progress}])",
            RANK,
            "Tokens computed a second, prompts and answers together.",
        ),
        Recording(
            "rank:kvmon_requests:sum",
            f"sum by (job, instance, engine, rank) ({last('kvmon_requests', limits)})",
            RANK,
            "Requests that run, wait, or wait again after they were preempted.",
        ),
    ]


def recorded() -> dict[str, tuple[str, ...]]:
    """Labels of each recorded series by its name."""
    return {rule.record: rule.labels for rule in recordings(load_thresholds())}
