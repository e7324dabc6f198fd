"""Colours by meaning, the same on every dashboard and as in kvmon's reports, and the gravity of each verdict.

Invariant: nothing is told by hue alone that a colour-blind reader needs (blue, orange, bluish green and vermilion of
Okabe and Ito, in shades that stand on Grafana's dark and light background), and every value of an enumeration that has
colours has one.
"""

from __future__ import annotations

from kvmon.catalog import ENUMERATIONS
from kvmon.dashboards.source.trouble import SourceError, nearest

__all__ = ["COLOURS", "GROUPS", "VERDICTS_BY_GRAVITY", "colour"]

COLOURS: dict[str, str] = {
    "good": "#28a07f",
    "warn": "#e09b1a",
    "bad": "#e0524a",
    "unsure": "#b98ad9",
    "neutral": "#7d8794",
    "quiet": "#565f6c",
    "blue": "#4a90d9",
    "sky": "#8cc4f0",
    "green": "#28a07f",
    "mint": "#7ed3b8",
    "orange": "#e09b1a",
    "yellow": "#e8d44d",
    "red": "#e0524a",
    "pink": "#c56ca3",
    "violet": "#b98ad9",
    "brown": "#a8764f",
    "teal": "#3fb3c4",
    # what Grafana itself makes dark on light and light on dark
    "text": "text",
    "none": "transparent",
}
"""Colours by the name that a source uses."""

_BY_GRAVITY: dict[str, tuple[str, ...]] = {
    "good": ("healthy",),
    "unsure": ("telemetry_untrusted",),
    "bad": ("double_free", "leak", "deadlock", "never_fits", "pool_starved", "stranded"),
}

VERDICTS_BY_GRAVITY: dict[str, tuple[str, ...]] = {
    **_BY_GRAVITY,
    "warn": tuple(
        name
        for name in ENUMERATIONS["kvmon_verdict", "verdict"]
        if not any(name in names for names in _BY_GRAVITY.values())
    ),
}
"""Verdicts by colour. bad: something is broken, or stands still for ever; warn: requests pay for how memory is used;
unsure: the numbers cannot be trusted."""

GROUPS: dict[str, dict[str, str]] = {
    "state": {"active": "blue", "cached": "green", "pinned": "pink", "deferred": "orange", "free": "quiet"},
    "slot": {"written": "blue", "tail": "yellow", "reserved": "sky"},
    "owner": {
        "running": "blue",
        "waiting": "sky",
        "preempted": "orange",
        "finished": "red",
        "unattributed": "neutral",
    },
    "request": {"running": "blue", "waiting": "orange", "preempted": "pink"},
    "reason": {
        "exhausted": "blue",
        "no_contiguous_run": "red",
        "evictable_not_reclaimed": "green",
        "all_pinned": "pink",
        "never_fits": "brown",
        "pool_starved": "teal",
        "partition_full": "sky",
        "watermark": "yellow",
        "accounting_error": "violet",
        "unknown": "neutral",
    },
    "finish": {
        "stop": "blue",
        "length": "sky",
        "abort": "orange",
        "error": "red",
        "refused": "pink",
        "unknown": "neutral",
    },
    "gpu": {"used": "blue", "reserved": "neutral", "free": "quiet"},
    "part": {"kv_pool": "blue", "weights": "violet", "torch_other": "teal", "torch_slack": "yellow", "rest": "neutral"},
    "torch": {"allocated": "blue", "inactive_split": "yellow", "cached": "green"},
    "size": {"p50": "sky", "p95": "blue", "p99": "violet", "head": "red"},
    "verdict": {name: gravity for gravity, names in VERDICTS_BY_GRAVITY.items() for name in names},
}
"""The colour of each value of an enumeration, by the name that a source uses for the enumeration."""


def colour(name: str) -> str:
    """What Grafana calls a colour. Raises SourceError for a name that the palette does not have."""
    try:
        return COLOURS[name]
    except KeyError:
        raise SourceError(f"there is no colour '{name}': {nearest(name, COLOURS)}") from None
