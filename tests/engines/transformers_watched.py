"""Engines of transformers that are watched in a test: driven by hand and compared, or in their own threads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kvmon
from tests.engines.transformers_driven import Driven, Traffic, manager_of
from tests.engines.transformers_truth import Follower

__all__ = ["PROMPTS", "followed", "own_functions", "served", "through_the_manager"]

PROMPTS = [[3 + (7 * k * k + 5 * place) % 110 for place in range(1 + 5 * k)] for k in range(8)]


def followed(directory: Path, name: str, seed: int, turns: int, *, cancels: float = 0.05, **options: Any) -> Follower:
    """Random traffic, compared after every step; an engine that dies of its own fault ends it."""
    driven = Driven(name, **options)
    recording = kvmon.attach(driven.processor, directory=directory)
    follower, traffic = Follower(directory, driven, recording), Traffic(driven, seed, cancels=cancels)
    for _ in range(turns):
        traffic.arrive()
        closes_a_frame = not driven._bootstrapping
        driven.step()
        if closes_a_frame:
            follower.compare()
        if driven.died is not None:
            assert not isinstance(driven.died, AssertionError)
            break
    probe = recording._recorders[0].probe
    assert probe is not None and probe.lost == 0, probe.loss_reasons
    kvmon.detach(recording)
    return follower


def served(name: str, seed: int, turns: int, watch: Path | None, **options: Any) -> tuple[dict[str, list[int]], str]:
    """What an engine answers, and how it died, with kvmon or without."""
    driven = Driven(name, **options)
    if watch is not None:
        kvmon.attach(driven.processor, directory=watch)
    traffic = Traffic(driven, seed)
    for _ in range(turns):
        traffic.arrive()
        driven.step()
        if driven.died is not None:
            break
    if watch is not None:
        kvmon.detach(driven.processor)
    return driven.tokens, repr(driven.died)


def through_the_manager(name: str, prompts: list[list[int]], attach: Any = None, **options: Any) -> Any:
    """Answers of a real model by the manager's own thread."""
    manager = manager_of(name, **options)
    recording = attach(manager) if attach is not None else None
    manager.start()
    for number, prompt in enumerate(prompts):
        manager.add_request(prompt, request_id=f"client-{number}", max_new_tokens=10)
    answers: dict[str, list[int]] = {}
    while len(answers) < len(prompts):
        output = manager.get_result(timeout=2)
        if output is None and not manager.is_running():
            break
        if output is not None and output.is_finished():
            answers[output.request_id] = list(output.generated_tokens)
    manager.stop()
    return answers, recording, manager


def _parts(processor: Any) -> list[Any]:
    """Everything that is patched."""
    cache = processor.cache
    allocators = list(cache.cache_allocators.values())
    found = [processor, cache, cache.pool, processor.scheduler, processor.offloading_manager, *allocators]
    found += [allocator.ledger for allocator in allocators]
    if processor.offloading_manager._cpu_pool is not None:
        found.append(processor.offloading_manager._cpu_pool)
    return found


def own_functions(manager: Any) -> list[list[str]]:
    """Names of the functions that instances have of their own."""
    return [
        sorted(name for name, value in vars(one).items() if callable(value) and hasattr(value, "__code__"))
        for one in [manager, *_parts(manager.batch_processor)]
    ]
