"""How long a step takes: a linear model, for a clock instead of a GPU.

    duration = base + prefill_tokens * a + decode_sequences * b + context_tokens * c

`base` is what reading the weights once costs, `a` what a prompt token computes, `b` what a decoding sequence adds
besides memory, `c` what reading the keys and values of one token of context costs. The default is of the order of an
8-billion parameter model in bf16 on one H100: 16 GB of weights and 131,072 B of KV a token at about 3 TB/s, 30 us a
prompt token. It is a clock for allocation studies, not a promise about a machine: fit your own constants before you
quote a latency.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvmon.errors import ConfigError

__all__ = ["StepTime"]


@dataclass(frozen=True)
class StepTime:
    """Constants in nanoseconds; see the module for the formula."""

    base_ns: float = 6_000_000.0
    prefill_token_ns: float = 30_000.0
    decode_sequence_ns: float = 20_000.0
    context_token_ns: float = 40.0

    def __post_init__(self) -> None:
        values = (self.base_ns, self.prefill_token_ns, self.decode_sequence_ns, self.context_token_ns)
        if not all(0.0 <= value < 1e15 for value in values):
            raise ConfigError("a step-time constant is negative or not a number: give nanoseconds of 0 or more")
        if self.base_ns < 1.0:
            raise ConfigError("a step that takes no time never ends: give a base of at least 1 ns")

    def duration_ns(self, prefill_tokens: int, decode_sequences: int, context_tokens: int) -> int:
        """Duration of one step, the same as the compiled simulator computes."""
        return int(
            self.base_ns
            + prefill_tokens * self.prefill_token_ns
            + decode_sequences * self.decode_sequence_ns
            + context_tokens * self.context_token_ns
        )
