"""Contiguous memory at 75 to 80 % load fails with about a quarter of it free; pages on the same traffic do not.

The orders of magnitude are those of small simulations behind the case studies: a token a step, blocks that grow by 64
tokens and move, requests that do not fit are lost, at the start or in the middle of a stream.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from kvmon.allocators import AllocatorConfig, ContiguousConfig, PagedConfig
from kvmon.serving import SchedulerConfig, StepTime, Workload
from kvmon.serving.scenarios.traffic import at_load
from kvmon.serving.workloads import SharedPrefixes, merge
from kvmon.simulate import Result, simulate

SLOTS = 65_536
STEP_S = 0.009
LOST = SchedulerConfig(on_no_fit="refuse", on_growth_failure="abort")
ONE_TOKEN_A_STEP = StepTime(STEP_S * 1e9, 0, 0, 0)


class Page(NamedTuple):
    """A case study: its prefix, lengths with their share of the load, and what was seen before."""

    prefix: int
    parts: tuple[tuple[str, float], ...]
    fragmentation: float
    free_at_failure: float
    largest_of_free: float


PAGES = {
    "stabilizing": Page(
        250, (("lognormal:150,1/gamma:250,0.87", 0.6), ("uniform:2000-6000/uniform:200-600", 0.4)), 0.62, 0.274, 0.23
    ),
    "choosing": Page(
        300, (("uniform:50-1500/gamma:300,0.87", 0.6), ("uniform:1500-4000/gamma:400,0.87", 0.4)), 0.70, 0.241, 0.17
    ),
    "post-incident": Page(
        600,
        (("lognormal:120,1/gamma:200,0.87", 0.15), ("log-uniform:50-4000/uniform:800-1500", 0.85)),
        0.73,
        0.269,
        0.18,
    ),
    "root-cause": Page(220, (("uniform:20-2000/one-of:50,1500", 1.0),), 0.74, 0.238, 0.13),
}


def traffic(page: Page, seed: int, load: float) -> Workload:
    """Two minutes of a page's traffic."""
    parts = [
        at_load(
            10 * seed + i,
            2500,
            lengths,
            pool_tokens=SLOTS,
            load=load * share,
            prefixes=SharedPrefixes(1, page.prefix),
            step_s=STEP_S,
        )
        for i, (lengths, share) in enumerate(page.parts)
    ]
    end = min(120e9, *(float(part.arrival_ns[-1]) for part in parts))
    cut = [part.first(int((part.arrival_ns <= end).sum())) for part in parts]
    return merge(*cut) if len(cut) > 1 else cut[0]


def served(pool: AllocatorConfig, page: Page, load: float) -> list[Result]:
    """Ten seeds through a pool."""
    return [simulate(traffic(page, seed, load), pool, LOST, ONE_TOKEN_A_STEP) for seed in range(10)]


def row(blocks: list[Result], pages: list[Result]) -> str:
    """What docs/laboratory.md says of a page, in the order of its columns."""
    free = np.mean([r.free_at_fragmentation_ratio or 0 for r in blocks])
    largest = np.mean([r.largest_at_fragmentation_ratio or 0 for r in blocks])
    lost = [np.mean([getattr(r, name) for r in blocks]) for name in ("refused", "errors", "completed")]
    more = sum(r.completed for r in pages) / sum(r.completed for r in blocks) - 1
    cells = [
        f"{np.mean([r.external_fragmentation_ratio for r in blocks]):.2f}",
        f"{free:.1%}",
        f"{largest:.2f}",
        " / ".join(f"{count:,.0f}" for count in lost),
        f"{np.mean([r.page_utilization_ratio for r in pages]):.1%}",
        f"{more:+.1%}",
    ]
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("load", [0.75, 0.80])
@pytest.mark.parametrize("name", PAGES)
def test_contiguous_fails_with_a_quarter_free_and_pages_do_not(name: str, load: float) -> None:
    """Fragmentation, free memory at a failure and the largest block of it are as seen before; pages lose far less."""
    page = PAGES[name]
    blocks = served(ContiguousConfig(SLOTS, 1, 64), page, load)
    pages = served(PagedConfig(SLOTS // 16, 16), page, load)
    print(f"\n| {name} at {load:.0%} {row(blocks, pages)}")
    assert np.mean([r.external_fragmentation_ratio for r in blocks]) == pytest.approx(page.fragmentation, abs=0.09)
    free = [r.free_at_fragmentation_ratio for r in blocks if r.free_at_fragmentation_ratio is not None]
    largest = [r.largest_at_fragmentation_ratio for r in blocks if r.largest_at_fragmentation_ratio is not None]
    assert np.mean(free) == pytest.approx(page.free_at_failure, abs=0.05)
    assert np.mean(largest) == pytest.approx(page.largest_of_free, abs=0.04)
    failures = sum(sum(r.allocation_failures.values()) for r in blocks)
    assert sum(r.allocation_failures.get("no_contiguous_run", 0) for r in blocks) >= 0.8 * failures
    at_start, mid_stream = sum(r.failures_at_start for r in blocks), sum(r.failures_mid_stream for r in blocks)
    assert at_start + mid_stream == failures
    assert (sum(r.refused for r in blocks), sum(r.errors for r in blocks)) == (at_start, mid_stream)
    assert at_start > 0 and mid_stream > at_start
    assert all(not r.allocation_failures.get("no_contiguous_run") for r in pages)
    assert np.mean([r.page_utilization_ratio for r in pages]) >= 0.985
    lost = sum(r.requests - r.completed for r in blocks)
    assert sum(r.requests - r.completed for r in pages) < 0.25 * lost
    assert 1.015 < sum(r.completed for r in pages) / sum(r.completed for r in blocks) < 1.25


def test_moves_are_counted() -> None:
    """Growth by chunks copies: a block that cannot grow in place moves, and its tokens with it."""
    for result in served(ContiguousConfig(SLOTS, 1, 64), PAGES["root-cause"], 0.8)[:3]:
        assert result.relocations > 1000
        assert result.copied_tokens > 500 * result.relocations
