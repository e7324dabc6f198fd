"""One sequence alone: what a page, a step, a layer costs. Nothing is wrong here, and nothing may be found."""

from __future__ import annotations

from kvmon.allocators.config import PagedConfig
from kvmon.serving.config import SchedulerConfig
from kvmon.serving.scenarios.scenario import Draw, Scenario, Setup
from kvmon.serving.scenarios.traffic import one_by_one

__all__ = ["SINGLE"]


def _pages(cured: bool) -> PagedConfig:
    return PagedConfig(512, 128) if cured else PagedConfig(4096, 16)


def _two_phase(draw: Draw, cured: bool) -> Setup:
    prompt, output = draw.whole("prompt", 100, 3000), draw.whole("output", 50, 400)
    return Setup(one_by_one([(0.0, prompt, output, output)]), _pages(cured))


def _updating(draw: Draw, cured: bool) -> Setup:
    output = draw.whole("output", 500, 1500)
    return Setup(one_by_one([(0.0, draw.whole("prompt", 5, 40), output, output)]), _pages(cured))


def _single_step(draw: Draw, cured: bool) -> Setup:
    return Setup(one_by_one([(0.0, draw.whole("prompt", 100, 3000), 1, 1)]), _pages(cured))


def _space(draw: Draw, cured: bool) -> Setup:
    layers = draw.one_of("layers", (16, 32, 64))
    token_bytes = 2 * layers * 8 * 128 * 2
    prompt = draw.whole("prompt", 500, 3000)
    return Setup(one_by_one([(0.0, prompt, 100, 100)]), _pages(cured), token_bytes=token_bytes * (2 if cured else 1))


def _structure(draw: Draw, cured: bool) -> Setup:
    window = draw.one_of("window", (512, 1024))
    prompt = draw.whole("prompt", 200, 800)
    work = one_by_one([(0.0, prompt, 2500, 2500)])
    pool = PagedConfig(4096, 16, prefix_cache=False, window_tokens=0 if cured else window)
    return Setup(work, pool, SchedulerConfig())


SINGLE = (
    Scenario(
        "two-phase",
        "healthy",
        "one sequence: a prompt of m tokens, then decode",
        "blocks = ceil(m/B) after the prefill, then one every B tokens",
        "nothing to avoid (twin: pages of 128)",
        _two_phase,
    ),
    Scenario(
        "updating",
        "healthy",
        "one sequence that decodes for long",
        "one slot a token, a new block every B tokens",
        "nothing to avoid (twin: pages of 128)",
        _updating,
    ),
    Scenario(
        "single-step",
        "healthy",
        "one prompt, one token",
        "the memory is there for one step",
        "nothing to avoid (twin: pages of 128)",
        _single_step,
    ),
    Scenario(
        "space",
        "healthy",
        "one sequence, layers drawn",
        "bytes a token by the formula: twice the layers, twice the bytes",
        "nothing to avoid (twin: twice the layers)",
        _space,
    ),
    Scenario(
        "structure",
        "healthy",
        "one sequence through full and sliding-window layers",
        "the window's pages plateau while the others grow",
        "nothing to avoid (twin: full layers only)",
        _structure,
    ),
)
