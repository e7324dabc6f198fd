"""Prompts for a workload that has none: tokens that are equal exactly where its prefix identities are.

A step of `hash_tokens` tokens is drawn from its identity, the rest of a prompt from the request's number. A later turn
of a conversation brings what was generated before, not what was foreseen: `generated` keeps it by its identities.

Invariant: tokens depend on the workload alone, and on what was generated; different identities have different tokens as
far as steps of some tokens can differ.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvmon.serving import Workload

__all__ = ["Prompts"]

Tokens = npt.NDArray[np.int64]

_OWN = np.uint64(0x5851F42D4C957F2D)  # what a request's number is drawn with, so that it never equals an identity


class Prompts:
    """The prompts of `workload`, in tokens from 0 to `vocabulary` - 1."""

    def __init__(self, workload: Workload, vocabulary: int) -> None:
        self._workload = workload
        self._vocabulary = vocabulary
        self._covered = workload.covered_tokens()
        self._said: dict[int, Tokens] = {}

    def named_tokens(self, index: int) -> int:
        """How many tokens of the prompt of request `index` (from 0) its identities name."""
        return int(min(self._covered[index], self._workload.prompt_tokens[index]))

    def names_output(self, index: int) -> bool:
        """Whether the identities of a request go on behind its prompt."""
        return bool(self._covered[index] > self._workload.prompt_tokens[index])

    def prompt(self, index: int) -> Tokens:
        """The prompt of request `index` (from 0): int64, one entry a token."""
        length, named = int(self._workload.prompt_tokens[index]), self.named_tokens(index)
        rest: Tokens = self._drawn(np.array([index + 1], np.uint64) * _OWN, length - named)[0]
        if not named:
            return rest
        step = self._workload.hash_tokens
        names = self._names(index)[: -(-named // step)]
        steps = self._drawn(names, step)
        for place, name in enumerate(names.tolist() if self._said else ()):
            if name in self._said:
                steps[place] = self._said[name]
        return np.concatenate((steps.ravel()[:named], rest))

    def generated(self, index: int, prompt: Tokens, output: Tokens) -> None:
        """Remember what a request generated, where its identities name it."""
        step = self._workload.hash_tokens
        known = np.concatenate((prompt, output))
        names = self._names(index).tolist()
        for place in range(len(prompt) // step, min(len(names), len(known) // step)):
            self._said[names[place]] = known[place * step : (place + 1) * step]

    def _names(self, index: int) -> npt.NDArray[np.uint64]:
        first, end = self._workload.hash_offsets[index : index + 2]
        return self._workload.hashes[first:end]

    def _drawn(self, seeds: npt.NDArray[np.uint64], tokens: int) -> Tokens:
        """`tokens` tokens from each seed: splitmix64 (Steele, Lea and Flood, OOPSLA 2014) of seed and place."""
        golden = np.uint64(0x9E3779B97F4A7C15)
        x = seeds[:, np.newaxis] * np.uint64(0xD1342543DE82EF95) + np.arange(1, tokens + 1, dtype=np.uint64) * golden
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        drawn: Tokens = ((x ^ (x >> np.uint64(31))) % np.uint64(self._vocabulary)).astype(np.int64)
        return drawn
