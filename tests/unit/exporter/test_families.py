"""Families come from the catalogue alone; what is unknown or has no room stays out."""

from __future__ import annotations

import numpy as np
import pytest

from kvmon.catalog import METRICS, Fidelity, metric
from kvmon.errors import ConfigError, InvariantError
from kvmon.exporter.families import Budget, CatalogFamily, bucket_counts
from kvmon.state import Histogram

POOL = ("engine", "0", "pool")


def durations(*milliseconds: int) -> Histogram:
    """As the fold counts them: slot k holds up to 2**k ms."""
    counts = np.zeros(48, np.int64)
    for value in milliseconds:
        counts[max(0, (value - 1).bit_length())] += 1
    return Histogram(counts, sum(milliseconds) / 1000)


def test_a_name_outside_the_catalogue_is_an_error() -> None:
    """What the catalogue does not hold cannot be served."""
    with pytest.raises(ConfigError, match="is no metric of kvmon"):
        CatalogFamily("kvmon_made_up")


def test_a_wrong_number_of_labels_is_an_error() -> None:
    """A series with a label too few would be another metric."""
    with pytest.raises(InvariantError, match="has the labels engine, rank, pool, state, not 3 of them"):
        CatalogFamily("kvmon_memory_bytes").add(POOL, 1.0, Budget(10))


def test_what_is_not_known_is_absent() -> None:
    """None makes no series, and uses no budget."""
    family, budget = CatalogFamily("kvmon_shared_memory_bytes"), Budget(10)
    family.add(POOL, None, budget)
    assert family.rows == [] and budget.used == 0


@pytest.mark.parametrize("fidelity", ["exact", "sampled", "counts", "cache_only"])
def test_what_the_fidelity_cannot_know_is_absent(fidelity: Fidelity) -> None:
    """Of every metric of a rank exactly those are served that the catalogue says this fidelity knows."""
    for entry in METRICS:
        if "rank" not in entry.labels:
            continue
        family = CatalogFamily(entry.name)
        labels = tuple("x" for _ in entry.labels)
        if entry.kind == "histogram":
            family.add_histogram(labels, durations(5), Budget(100, fidelity))
        else:
            family.add(labels, 1.0, Budget(100, fidelity))
        assert bool(family.rows) == (fidelity in entry.fidelity), entry.name


def test_the_budget_is_kept_and_what_it_dropped_is_counted() -> None:
    """Series beyond the budget stay out and are counted."""
    family, budget = CatalogFamily("kvmon_memory_bytes"), Budget(3)
    for state in ("active", "cached", "pinned", "deferred", "free"):
        family.add((*POOL, state), 1.0, budget)
    assert len(family.rows) == 3
    assert (budget.left, budget.used, budget.dropped) == (0, 3, 2)


def test_a_histogram_goes_in_whole_or_not_at_all() -> None:
    """A histogram that lacks buckets would be a wrong number."""
    entry = metric("kvmon_block_lifetime_seconds")
    family, budget = CatalogFamily(entry.name), Budget(entry.series - 1)
    family.add_histogram(POOL, durations(5), budget)
    assert family.rows == [] and budget.dropped == entry.series
    family.add_histogram(POOL, durations(5), Budget(entry.series))
    assert len(family.rows) == entry.series


@pytest.mark.parametrize("entry", [entry for entry in METRICS if entry.buckets], ids=lambda entry: entry.name)
def test_buckets_are_exact(entry: object) -> None:
    """Durations just below, at and just above each bound fall where Prometheus expects them."""
    bounds = entry.buckets  # type: ignore[attr-defined]
    values = [round(bound * 1000) + offset for bound in bounds for offset in (-1, 0, 1)]
    buckets = dict(bucket_counts(durations(*values), bounds))
    for bound in bounds:
        assert buckets[repr(float(bound))] == sum(value <= bound * 1000 for value in values), bound
    assert buckets["+Inf"] == len(values)
