"""How the next token is chosen: the most likely one, or drawn from what temperature and top-p leave.

Invariant: what a request draws depends on its own seed and on how many tokens it has drawn, never on who else is in the
batch, on the layout, or on a preemption in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kvmon.errors import ConfigError, InputError

__all__ = ["Sampling", "choose", "generator_of"]

_MOST_TOKENS = 2**30
_MOST_SAMPLES = 128


@dataclass(frozen=True)
class Sampling:
    """What a request wants. Raises ConfigError for what cannot be.

    max_tokens    output tokens at most
    temperature   0: the most likely token; else logits are divided by it
    top_p         only the most likely tokens that together have this probability
    seed          of the draws; None: the engine's seed and the request's number decide
    stop_tokens   a request ends with one of them, beside the model's own end-of-sequence tokens
    ignore_eos    those do not end it
    n             samples of the same prompt
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop_tokens: tuple[int, ...] = ()
    ignore_eos: bool = False
    n: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.max_tokens <= _MOST_TOKENS:
            raise ConfigError(f"max_tokens of {self.max_tokens} is not possible: choose 1 to {_MOST_TOKENS}")
        if not 0.0 <= self.temperature <= 100.0:
            raise ConfigError(f"a temperature of {self.temperature} is not possible: choose 0 to 100")
        if not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"top_p of {self.top_p} is no probability: choose more than 0 and at most 1")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise ConfigError(f"a seed of {self.seed} does not fit 64 bits: choose a smaller one")
        if not 1 <= self.n <= _MOST_SAMPLES:
            raise ConfigError(f"{self.n} samples of a prompt are not possible: choose 1 to {_MOST_SAMPLES}")


def generator_of(sampling: Sampling, engine_seed: int, request: int, sample: int) -> torch.Generator | None:
    """The source of a request's draws; None where it draws nothing. Samples of one prompt draw apart."""
    if sampling.temperature == 0:
        return None
    seed = sampling.seed + sample if sampling.seed is not None else (engine_seed << 32) + request
    return torch.Generator().manual_seed(seed & (2**63 - 1))


def choose(logits: torch.Tensor, wanted: Sequence[Sampling], generators: Sequence[torch.Generator | None]) -> list[int]:
    """The next token of each row of `logits` (n, vocabulary)."""
    tokens: list[int] = logits.argmax(dim=-1).tolist()
    for row, (sampling, generator) in enumerate(zip(wanted, generators, strict=True)):
        if generator is not None:
            tokens[row] = _draw(logits[row].cpu(), sampling, generator)
    return tokens


def _draw(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    # The difference first: however small the temperature, the most likely token has 0 and no other a larger number.
    scores = logits.double()
    chances = torch.softmax((scores - scores.max()) / sampling.temperature, dim=-1)
    if not torch.isfinite(chances).all():
        raise InputError("the model's scores are no numbers: its weights are damaged, or need --dtype float32")
    if sampling.top_p < 1.0:
        ordered, order = chances.sort(descending=True, stable=True)
        # The token that reaches top_p is still in.
        ordered[ordered.cumsum(0) - ordered >= sampling.top_p] = 0.0
        chances = torch.zeros_like(chances).scatter_(0, order, ordered)
    return int(torch.multinomial(chances, 1, generator=generator))
