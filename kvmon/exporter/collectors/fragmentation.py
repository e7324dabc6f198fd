"""What could be granted now: the largest free block, free runs, and what their scatter costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

from kvmon.catalog import ENUMERATIONS
from kvmon.exporter.families import CatalogFamily
from kvmon.exporter.source import Need, PoolView, View
from kvmon.state.fragmentation import external_fragmentation, lost_share

__all__ = ["FragmentationCollector"]

_ORDERS = ENUMERATIONS["kvmon_free_runs", "order"]


class FragmentationCollector:
    """One pool's free memory as an allocator sees it."""

    name = "fragmentation"
    needs: ClassVar[tuple[Need, ...]] = ("survey",)

    def __init__(self, source: Callable[[], View]) -> None:
        self._source = source

    def collect(self) -> Iterator[CatalogFamily]:
        """The families of this topic."""
        families = {
            name: CatalogFamily(f"kvmon_{name}")
            for name in (
                "largest_free_block_bytes",
                "largest_free_block_tokens",
                "largest_free_block_after_eviction_bytes",
                "largest_free_block_low_bytes",
                "external_fragmentation_ratio",
                "lost_ratio",
                "free_runs",
            )
        }
        for rank in self._source().shown:
            for view in rank.settled_pools:
                _largest(families, view)
                if rank.follower.fidelity in ("exact", "sampled"):
                    _runs(families, view)
        yield from families.values()


def _largest(families: dict[str, CatalogFamily], view: PoolView) -> None:
    pool, labels, budget = view.pool, view.labels, view.rank.budget
    families["largest_free_block_bytes"].add(labels, pool.largest_free * pool.unit_bytes, budget)
    families["largest_free_block_tokens"].add(labels, pool.largest_free * pool.unit_tokens, budget)
    families["largest_free_block_low_bytes"].add(labels, view.marks.least_largest_free * pool.unit_bytes, budget)


def _runs(families: dict[str, CatalogFamily], view: PoolView) -> None:
    pool, labels, budget, survey = view.pool, view.labels, view.rank.budget, view.survey
    free = survey.free
    after = pool.free + pool.evictable if pool.contiguity == "none" else survey.largest_after_eviction
    families["largest_free_block_after_eviction_bytes"].add(labels, after * pool.unit_bytes, budget)
    families["external_fragmentation_ratio"].add(labels, external_fragmentation(survey.longest_free_run, free), budget)
    for (name, size), placements in zip(view.surveyed.sizes.items(), survey.placements, strict=True):
        families["lost_ratio"].add((*labels, name), lost_share(placements, free, pool.granted(size)), budget)
    for order, count in zip(_ORDERS, survey.free_runs, strict=True):
        families["free_runs"].add((*labels, order), count, budget)
