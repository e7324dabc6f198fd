"""Chains of requests: each one's prompt is a header, everything that was said before, and a new text.

A single request is a chain of one. A chain ends early when its next prompt would leave no room to answer.

Invariant: in every request prompt + output <= max_tokens, and the prompt of a step is longer than the prompt and
output of the step before it together.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvmon.serving.workloads.distributions import Distribution
from kvmon.serving.workloads.lengths import Lengths
from kvmon.serving.workloads.prefixes import SharedPrefixes

__all__ = ["Chains", "draw_chains"]

_Numbers = npt.NDArray[np.int64]


class Chains(NamedTuple):
    """Requests, chain by chain and step by step (int64, n): number of the chain from 0, tokens, prefix (0: none)."""

    chain: _Numbers
    prompt_tokens: _Numbers
    output_tokens: _Numbers
    prefix_id: _Numbers

    @property
    def is_first(self) -> npt.NDArray[np.bool_]:
        """Whether a request is the first one of its chain (bool, n)."""
        return np.diff(self.chain, prepend=-1) > 0


def draw_chains(
    random: tuple[np.random.Generator, np.random.Generator, np.random.Generator],
    requests: int,
    steps: Distribution,
    lengths: Lengths,
    prefixes: SharedPrefixes | None,
    limit: int | None,
) -> Chains:
    """As many chains as make `requests` requests; the last chain may be cut.

    `random` draws steps, lengths and prefixes. `lengths.max_tokens` is the longest sequence, and the prefix with the
    shortest text has to leave room in it; no output is longer than `limit`.
    """
    parts: list[Chains] = []
    drawn = kept = chains = 0
    while kept < requests:
        # So many steps as the rest needs, if as many of them are kept as before.
        wanted = math.ceil((requests - kept) * (drawn / kept if kept else 1.0))
        counts = np.minimum(steps.draw(random[0], wanted), lengths.max_tokens)
        counts = counts[: np.searchsorted(np.cumsum(counts), wanted) + 1]
        part = _grow(random[1], counts, lengths, *_headers(random[2], prefixes, len(counts)), limit)
        parts.append(part._replace(chain=part.chain + chains))
        chains += len(counts)
        drawn += int(counts.sum())
        kept += len(part.chain)
    return Chains(*(np.concatenate(columns)[:requests] for columns in zip(*parts, strict=True)))


def _headers(random: np.random.Generator, prefixes: SharedPrefixes | None, n: int) -> tuple[_Numbers, _Numbers]:
    """Prefix of each of n chains, and its length in tokens."""
    if prefixes is None:
        return np.zeros(n, np.int64), np.zeros(n, np.int64)
    which = prefixes.draw(random, n)
    return which, np.where(which > 0, prefixes.tokens, 0)


def _grow(
    random: np.random.Generator,
    counts: _Numbers,
    lengths: Lengths,
    prefix_id: _Numbers,
    header: _Numbers,
    limit: int | None,
) -> Chains:
    """The requests of chains with `counts` steps, as far as they have room."""
    most = lengths.max_tokens
    chain = np.repeat(np.arange(len(counts)), counts)
    first = np.cumsum(counts) - counts
    text = np.minimum(lengths.prompt.draw(random, len(chain)), most)
    text[first] = np.minimum(text[first], most - 1 - header)
    output = np.minimum(lengths.output.draw(random, len(chain)), most if limit is None else limit)
    said = np.cumsum(text + output) - (text + output)
    prompt = header[chain] + said - said[first][chain] + text
    room = prompt < most
    chain, prompt = chain[room], prompt[room]
    return Chains(chain, prompt, np.minimum(output[room], most - prompt), prefix_id[chain])
