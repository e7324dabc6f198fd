"""Running engines in tests: every request to its end, with what it generated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kvmon.engine import Engine, Sampling


@dataclass
class Run:
    """What each request generated, and how those ended that did not by themselves."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    finish: dict[int, str] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    steps: int = 0


def run(engine: Engine, after_step: Callable[[], None] | None = None, most_steps: int = 5000) -> Run:
    """Step until nothing is left; allocator and scheduler are checked after each step."""
    done = Run()
    while engine.has_work:
        take(engine, done)
        engine.scheduler.check()
        if after_step is not None:
            after_step()
        assert done.steps < most_steps, "the engine does not come to an end"
    return done


def take(engine: Engine, done: Run) -> None:
    """One step into `done`."""
    done.steps += 1
    for output in engine.step():
        done.tokens.setdefault(output.request, []).extend(output.tokens)
        if output.finish is not None:
            done.finish[output.request] = output.finish
        if output.error is not None:
            done.errors[output.request] = output.error


def generate(engine: Engine, prompts: Sequence[Sequence[int]], tokens: int, n: int = 1) -> list[list[list[int]]]:
    """The tokens of each sample of each prompt, all queued at once."""
    numbers = [engine.add(prompt, Sampling(tokens, ignore_eos=True, n=n)) for prompt in prompts]
    done = run(engine)
    assert not done.errors
    return [[done.tokens[number] for number in samples] for samples in numbers]
