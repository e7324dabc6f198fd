"""How the scheduler decides: budgets, admission, and what happens when memory runs out.

Invariant: a configuration that exists is valid. Defaults are vLLM's v1 scheduler on a small GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvmon.errors import ConfigError

__all__ = ["SchedulerConfig"]

_MOST = 2**31 - 2


@dataclass(frozen=True)
class SchedulerConfig:
    """Policy of continuous batching.

    token_budget        most tokens computed in one step (`max_num_batched_tokens`)
    max_sequences       most requests that hold memory at once (`max_num_seqs`)
    chunked_prefill     a prompt may be computed over several steps; without, one longer than the budget runs in one
                        step as its only prefill
    watermark           share of the pool left free by admissions while anything runs
    admit_by            what must fit when a request is admitted: its whole `prompt`, or its first `chunk`
    on_no_fit           a request that does not fit waits (and blocks those behind it) or is refused
    on_growth_failure   a running request that cannot grow preempts the youngest, waits, or is aborted
    max_model_len       longest sequence in tokens; None: prompt + limit of each request
    """

    token_budget: int = 2048
    max_sequences: int = 256
    chunked_prefill: bool = True
    watermark: float = 0.0
    admit_by: str = "prompt"
    on_no_fit: str = "wait"
    on_growth_failure: str = "preempt"
    max_model_len: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.token_budget <= _MOST:
            raise ConfigError(f"a token budget of {self.token_budget} schedules nothing: choose at least 1")
        if not 1 <= self.max_sequences <= _MOST:
            raise ConfigError(f"{self.max_sequences} sequences at once is none: choose at least 1")
        if not 0.0 <= self.watermark < 1.0:
            raise ConfigError(
                f"a watermark of {self.watermark} is no share of the pool: choose 0 or more and less than 1"
            )
        if self.max_model_len is not None and not 2 <= self.max_model_len <= _MOST:
            raise ConfigError(f"a model length of {self.max_model_len} holds no prompt and output: choose at least 2")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} '{getattr(self, name)}' is unknown: choose {' or '.join(allowed)}")


_CHOICES = {
    "admit_by": ("prompt", "chunk"),
    "on_no_fit": ("wait", "refuse"),
    "on_growth_failure": ("preempt", "wait", "abort"),
}
