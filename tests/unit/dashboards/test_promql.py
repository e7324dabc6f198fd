"""The checker of expressions finds what is wrong with them."""

from __future__ import annotations

import pytest

from kvmon.dashboards.source.promql import metrics_in, problems


@pytest.mark.parametrize(
    "expression",
    [
        'sum by (engine) (rate(kvmon_preemptions_total{rank=~"$rank"}[$__rate_interval]))',
        "increase(kvmon_steps_total[$__range] offset $__interval)",
        'kvmon_kv_wait_seconds_bucket{le="1.024"}',
        'kvmon_verdict{verdict=~"leak|dead.*"}',
        "up == 0",
    ],
)
def test_what_is_right_passes(expression: str) -> None:
    """With Grafana's variables in ranges, offsets and values."""
    assert problems(expression) == []


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("rate(kvmon_preemption_total[5m])", "'kvmon_preemption_total' is no metric of kvmon: did you mean"),
        ('kvmon_verdict{verdict=~"leak|leek"}', "the label 'verdict' of kvmon_verdict is never 'leek': did you mean"),
        ('kvmon_verdict{verdict=~"nothing.+"}', "the label 'verdict' of kvmon_verdict is never 'nothing.+'"),
        ('kvmon_kv_wait_seconds_bucket{le="3"}', "the label 'le' of kvmon_kv_wait_seconds_bucket is never '3'"),
        ('kvmon_steps_total{pool="kv"}', "kvmon_steps_total has no label 'pool'"),
        ("sum by (engin) (kvmon_steps_total)", "no series here has the label 'engin': did you mean engine?"),
        ("kvmon_steps_total / on (node) kvmon_steps_total", "no series here has the label 'node'"),
        ("up * on (job) group_left (nod) kvmon_steps_total", "no series here has the label 'nod'"),
        ("kvmon_steps_total[", "is no PromQL"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(expression: str, says: str) -> None:
    """A metric, a label, a value, a group and a bracket that are not there."""
    (found,) = problems(expression)
    assert found.startswith(says)


def test_a_caller_knows_more_series_and_shows_labels() -> None:
    """What rules record, and what a legend names."""
    assert problems("pool:free:ratio", known={"pool:free:ratio": ("engine",)}) == []
    assert problems("kvmon_steps_total", shown=("engine", "pool"))[0].startswith("no series here has the label 'pool'")
    assert metrics_in("up + kvmon_steps_total") == {"up", "kvmon_steps_total"}
