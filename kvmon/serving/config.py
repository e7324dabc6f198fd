"""How the scheduler decides: budgets, admission, and what happens when memory runs out.

Invariant: a configuration that exists is valid. Defaults are vLLM's v1 scheduler on a small GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvmon.allocators.config import AllocatorConfig, PagedConfig
from kvmon.errors import ConfigError

__all__ = ["SchedulerConfig"]

_MOST = 2**31 - 2
_MOST_NS = 2**62


@dataclass(frozen=True)
class SchedulerConfig:
    """Policy of continuous batching.

    token_budget        most tokens computed in one step (`max_num_batched_tokens`)
    max_sequences       most requests that hold memory at once (`max_num_seqs`)
    chunked_prefill     a prompt may be computed over several steps; without, one longer than the budget runs in one
                        step as its only prefill
    watermark           share of the pool left free by admissions while anything runs
    admit_by            what must fit when a request is admitted: its first `chunk`, its whole `prompt`, or everything
                        it may become (`full`): then what all running ones may become must fit together, nobody is ever
                        preempted, and one that alone is too large is refused
    on_no_fit           a request that does not fit waits (and blocks those behind it) or is refused
    on_never_fits       a request that is larger than the pool is refused, or waits like any other (and blocks those
                        behind it for ever), as engines do that do not look
    on_growth_failure   a running request that cannot grow preempts the youngest, waits, or is aborted
    max_model_len       longest sequence in tokens; None: prompt + limit of each request
    priorities          (class, level), each class once: lower levels are admitted first and preempted last, classes not
                        named have level 0; within a level first come, first served
    preemption          what becomes of a preempted request's tokens: computed again (`recompute`) or copied to the host
                        tier (`swap`), first fit, in one piece; without room there they are computed again
    host_tokens         size of the host tier
    lookahead_tokens    draft tokens a decoding request verifies in each step (speculative decoding); as many slots more
                        are set aside for the next ones
    acceptance          chance that a draft is accepted if all before it were, drawn for each from a hash of request and
                        position
    transfer_share      share of the requests whose memory another engine still reads when they have ended
    transfer_ns         how long that takes; their units are neither free nor anybody's so long
    """

    token_budget: int = 2048
    max_sequences: int = 256
    chunked_prefill: bool = True
    watermark: float = 0.0
    admit_by: str = "prompt"
    on_no_fit: str = "wait"
    on_never_fits: str = "refuse"
    on_growth_failure: str = "preempt"
    max_model_len: int | None = None
    priorities: tuple[tuple[int, int], ...] = ()
    preemption: str = "recompute"
    host_tokens: int = 0
    lookahead_tokens: int = 0
    acceptance: float = 0.0
    transfer_share: float = 0.0
    transfer_ns: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.token_budget <= _MOST:
            raise ConfigError(f"a token budget of {self.token_budget} is not possible: choose 1 to {_MOST}")
        if not 1 <= self.max_sequences <= _MOST:
            raise ConfigError(f"{self.max_sequences} sequences at once are not possible: choose 1 to {_MOST}")
        if not 0.0 <= self.watermark < 1.0:
            raise ConfigError(
                f"a watermark of {self.watermark} is no share of the pool: choose 0 or more and less than 1"
            )
        if self.max_model_len is not None and not 2 <= self.max_model_len <= _MOST:
            raise ConfigError(f"a model length of {self.max_model_len} is not possible: choose 2 to {_MOST}")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} '{getattr(self, name)}' is unknown: choose {' or '.join(allowed)}")
        if len(dict(self.priorities)) < len(self.priorities):
            raise ConfigError("a class has two priorities: give each class one")
        if not all(class_id >= 0 and abs(level) < 2**31 for class_id, level in self.priorities):
            raise ConfigError("a priority is a class from 0 and a whole number, lower is more urgent")
        if (self.preemption == "swap") != (self.host_tokens > 0) or self.host_tokens < 0:
            raise ConfigError("swapping needs a host tier, and a host tier is for swapping: give both or none")
        if not 0 <= self.lookahead_tokens <= 1024:
            raise ConfigError(f"{self.lookahead_tokens} draft tokens are not possible: choose 0 to 1024")
        for name in ("acceptance", "transfer_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} of {getattr(self, name)} is no share: choose 0 to 1")
        if self.acceptance and not self.lookahead_tokens:
            raise ConfigError("without draft tokens none is accepted: give lookahead_tokens too")
        if not 0 <= self.transfer_ns < _MOST_NS or bool(self.transfer_share) != bool(self.transfer_ns):
            raise ConfigError("transfers need both: the share of requests and how long one takes")

    def check_for(self, allocator: AllocatorConfig) -> None:
        """Raise ConfigError where an option means nothing for this pool."""
        if self.transfer_share and not isinstance(allocator, PagedConfig):
            raise ConfigError("transfers read the pages of a paged pool: choose paged, or transfer_share 0")
        unit = allocator.unit_tokens
        if 0 < self.host_tokens < unit:
            raise ConfigError(f"a host tier of {self.host_tokens} tokens holds no block of {unit}: enlarge it")
        if self.host_tokens and isinstance(allocator, PagedConfig) and allocator.window_pool_units:
            raise ConfigError("there is one pool beside the first: choose a pool for the window group or a host tier")

    @property
    def levels(self) -> dict[int, int]:
        """Level of each class that has one."""
        return dict(self.priorities)


_CHOICES = {
    "admit_by": ("chunk", "prompt", "full"),
    "on_no_fit": ("wait", "refuse"),
    "on_never_fits": ("refuse", "wait"),
    "on_growth_failure": ("preempt", "wait", "abort"),
    "preemption": ("recompute", "swap"),
}
