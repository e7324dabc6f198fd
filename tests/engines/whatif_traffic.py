"""Traffic for engines whose recordings are replayed: requests with times, shared texts, answers that end by themselves.

Invariant: the same kind and seed give the same requests; nothing here knows an engine.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kvmon.serving.step_time import StepTime

__all__ = ["STOP_TOKEN", "Asked", "Call", "TestClock", "Traffic", "calls_of", "draw_traffic"]

STOP_TOKEN = 2
_WORDS = range(3, 123)  # tokens; the smallest model knows 128
_BOUND = 0.2  # share of the answers that are as long as their client allows
_HANG_UP_S = (0.05, 1.5)
_PAUSE_S = (0.5, 2.0)  # from one turn to the next
_STEP_TIME = StepTime(8e6, 2e4, 1e5, 50.0)
_NOISE = 0.05  # of a step's time, at most
_LOOK_NS = 1000  # from one look at the clock to the next


@dataclass(frozen=True)
class Asked:
    """One request.

    at_ns           when it comes
    prompt, answer  their tokens; an answer ends with STOP_TOKEN
    limit           most tokens that its client allows
    hang_up_ns      how long after its arrival its client hangs up; 0 = never
    priority        smaller is more urgent
    """

    at_ns: int
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    limit: int
    hang_up_ns: int = 0
    priority: int = 0


@dataclass(frozen=True)
class Traffic:
    """How requests are drawn; ranges are (least, most) tokens.

    `conversations` that begin `rate` times a second, of `turns` each, every one with all that was said before; before a
    first prompt stands the begin of one of `texts` texts, `shared` tokens of it. `hang_ups` is a share of the
    requests, `levels` how many priorities there are.
    """

    conversations: int
    rate: float
    prompts: tuple[int, int]
    answers: tuple[int, int]
    texts: int = 0
    shared: tuple[int, int] = (0, 0)
    turns: int = 1
    hang_ups: float = 0.0
    levels: int = 1


class Call(NamedTuple):
    """A client comes, or hangs up: when, and the number of the request."""

    at_ns: int
    hangs_up: bool
    number: int


class TestClock:
    """Nanoseconds that pass when somebody looks, and with each step what a formula says, with some noise."""

    __test__ = False

    def __init__(self) -> None:
        self.now = 1_000_000_000
        self._noise = random.Random(0)

    def __call__(self) -> int:
        self.now += _LOOK_NS
        return self.now

    def compute(self, prefill: int, decode: int, context: int) -> None:
        """A step of so many tokens, sequences that decode, and tokens of context read."""
        takes = _STEP_TIME.base_ns + prefill * _STEP_TIME.prefill_token_ns + decode * _STEP_TIME.decode_sequence_ns
        takes += context * _STEP_TIME.context_token_ns
        self.now += round(takes * (1 + _NOISE * self._noise.uniform(-1, 1)))


def calls_of(asked: Sequence[Asked]) -> list[Call]:
    """What clients do, the last one first."""
    calls = [Call(one.at_ns, False, number) for number, one in enumerate(asked)]
    calls += [Call(one.at_ns + one.hang_up_ns, True, number) for number, one in enumerate(asked) if one.hang_up_ns]
    return sorted(calls, reverse=True)


def draw_traffic(kind: Traffic, seed: int = 0) -> list[Asked]:
    """The requests of a kind, in the order in which they come."""
    draw = random.Random(seed)
    texts = [_text(draw, (kind.shared[1],) * 2) for _ in range(kind.texts)]
    found = []
    begin = 0.0
    for _ in range(kind.conversations):
        begin += draw.expovariate(kind.rate)
        now = begin
        said = draw.choice(texts)[: draw.randint(*kind.shared)] if texts else ()
        for _ in range(kind.turns):
            prompt = said + _text(draw, kind.prompts)
            answer = (*_text(draw, kind.answers)[1:], STOP_TOKEN)
            limit = len(answer) if draw.random() < _BOUND else kind.answers[1] + 1
            hangs_up = draw.uniform(*_HANG_UP_S) if draw.random() < kind.hang_ups else 0
            found.append(
                Asked(round(now * 1e9), prompt, answer, limit, round(hangs_up * 1e9), draw.randrange(kind.levels))
            )
            said = prompt + answer
            now += draw.uniform(*_PAUSE_S)
    return sorted(found, key=lambda one: one.at_ns)


def _text(draw: random.Random, length: tuple[int, int]) -> tuple[int, ...]:
    return tuple(draw.choices(_WORDS, k=draw.randint(*length)))
