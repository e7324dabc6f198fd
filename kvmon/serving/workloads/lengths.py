"""Lengths of prompts and of what is generated: the published shapes by name, or any two distributions.

Sources:

    sharegpt        mean 161 in, 338 out (PagedAttention, SOSP'23, figure 11); the output is shaped like a gamma with a
                    CV of 0.87, the input as a log-normal with sigma 1
    alpaca          mean 19.3 in, 58.5 out (the same figure); the shapes are assumed
    long-context    Mooncake's conversation trace (FAST'25): mean 12,035 in with p50 6,909 and p99 85,400, a log-normal
                    through the first two; out p25 / p50 / p75 / p95 of 157 / 350 / 472 / 698, a normal
    agent-steps     assumed: what a tool returns has a heavy tail; 180 out is near the mean of Mooncake's tool trace

Invariant: prompt + generated <= max_tokens, which is the longest sequence of the engine that is asked.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvmon.errors import ConfigError
from kvmon.serving.workloads.distributions import DISTRIBUTIONS, Distribution, parse_distribution
from kvmon.serving.workloads.parameters import known

__all__ = ["LENGTHS", "Lengths", "parse_lengths"]

_FREE_MAX_TOKENS = 131_072


@dataclass(frozen=True)
class Lengths:
    """Distributions of prompt and output in tokens, and the longest sequence in tokens unless somebody says another."""

    prompt: Distribution
    output: Distribution
    max_tokens: int = _FREE_MAX_TOKENS


#: Name -> (prompt/output, longest sequence in tokens, what it is).
LENGTHS = {
    "sharegpt": ("lognormal:161,1.31/gamma:338,0.87", 2048, "chats: mean 161 in, 338 out"),
    "alpaca": ("lognormal:19.3,0.6/gamma:58.5,1", 2048, "short instructions: mean 19.3 in, 58.5 out"),
    "long-context": ("lognormal:12035,1.43/normal:343,0.73", 131_072, "documents: p50 6,900 in, 343 out"),
    "agent-steps": ("lognormal:600,1.5/gamma:180,1", 131_072, "tool results and calls: mean 600 in, 180 out"),
}


def parse_lengths(text: str) -> Lengths:
    """Lengths by name, or `PROMPT/OUTPUT` such as `uniform:20-2000/one-of:50,1500`. Raises ConfigError."""
    prompt, slash, output = text.partition("/")
    if slash:
        return Lengths(parse_distribution(prompt), parse_distribution(output))
    if text.partition(":")[0] in DISTRIBUTIONS:
        raise ConfigError(f"'{text}' says only one length: write PROMPT/OUTPUT, such as {text}/fixed:100")
    known(text, LENGTHS, "lengths")
    spec, max_tokens, _ = LENGTHS[text]
    prompt, _, output = spec.partition("/")
    return Lengths(parse_distribution(prompt), parse_distribution(output), max_tokens)
