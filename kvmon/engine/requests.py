"""What the engine keeps of a request beside what its scheduler knows: its tokens, what it wants, and its draws.

Invariant: `tokens[:known]` are the prompt and everything sampled so far; a request that has ended is forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import torch

from kvmon.engine.sampling import Sampling

__all__ = ["Output", "PageNames", "Request"]


@dataclass(frozen=True)
class Output:
    """What a step brought to one request.

    tokens   new ones; the token that ends a request is not among them when it is a stop token
    finish   why it ended: stop, length, abort or error; None while it goes on
    error    one line, where that is error
    """

    request: int
    tokens: tuple[int, ...] = ()
    finish: str | None = None
    error: str | None = None


class Request:
    """One sequence: prompt (n tokens) and room for what it generates."""

    def __init__(self, prompt: npt.NDArray[np.int64], sampling: Sampling, generator: torch.Generator | None) -> None:
        self.sampling = sampling
        self.generator = generator
        self.prompt = len(prompt)
        self.known = len(prompt)
        self.tokens = np.empty(len(prompt) + sampling.max_tokens, np.int64)
        self.tokens[: len(prompt)] = prompt
        self.ends_with: frozenset[int] = frozenset()
        self.name = b""  # of the last full step of its tokens
        self.names_output = False

    def append(self, token: int) -> None:
        """One more token."""
        self.tokens[self.known] = token
        self.known += 1


class PageNames:
    """Names of full steps of `step` tokens, chained: equal names mean equal tokens from the beginning up to there.

    64 bits of a keyed hash (BLAKE2b, RFC 7693), so that a recording that holds the names does not hold the prompts.
    """

    def __init__(self, step: int, key: bytes) -> None:
        self._step = step
        self._key = key

    def prompt(self, request: Request, tokens: int) -> list[int]:
        """The names of the full steps among the first `tokens` tokens; the last one is kept in the request."""
        return [self.following(request, step) for step in range(tokens // self._step)]

    def following(self, request: Request, step: int) -> int:
        """The name of step number `step` (from 0) behind the one that was named last."""
        part = request.tokens[step * self._step : (step + 1) * self._step].astype("<u4").tobytes()
        request.name = blake2b(request.name + part, digest_size=8, key=self._key).digest()
        return int.from_bytes(request.name, "little") or 1
