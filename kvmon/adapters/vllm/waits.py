"""Refused allocations: once a wait of a request, with what it needed, what there was, and what the engine did then.

vLLM's `allocate_slots` returns None, and asks again in every step. It is called for every request in every step, so it
is wrapped only while so few blocks are free that it could refuse: a bound from the step's token budget and the longest
request seen, below which a refusal is impossible otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any

from kvmon.adapters.vllm.geometry import smallest_block_tokens
from kvmon.events.kinds import Contiguity, FailureOutcome, FailureReason
from kvmon.probe import Patches, PoolProbe

__all__ = ["Waits"]

_NONE = int(Contiguity.NONE)
_WAITS, _ANOTHER, _ITSELF = (
    int(FailureOutcome.WAITS),
    int(FailureOutcome.PREEMPTED_ANOTHER),
    int(FailureOutcome.PREEMPTED_ITSELF),
)
_MOST_LOOKED_AT = 65_536  # free blocks that are told apart into empty and cached ones


@dataclass
class _Refusal:
    request: str
    number: int
    need: int
    free: int
    evictable: int
    reason: int


class Waits:
    """Watches one scheduler for refusals."""

    def __init__(
        self,
        scheduler: Any,
        pool: PoolProbe,
        number_of: Callable[[str], int | None],
        broken: Callable[[str], None],
        *,
        units: bool,
    ) -> None:
        """`units` says that blocks can be looked at; without that only how many there are is known."""
        self._scheduler, self._pool, self._number_of, self._units = scheduler, pool, number_of, units
        self._manager = scheduler.kv_cache_manager
        self._blocks = self._manager.block_pool
        self.capacity = int(self._blocks.num_gpu_blocks) - 1
        self.patches = Patches(broken)
        self._broken = broken
        self._waiting: set[str] = set()  # refused, and not admitted since
        self._pending: _Refusal | None = None  # of a running request: what became of it is not known yet
        self._need = 0
        self.head_need: int | None = None
        self._armed = False
        groups = scheduler.kv_cache_config.kv_cache_groups
        kinds = [type(group.kv_cache_spec).__name__ for group in groups]
        self._always = (
            getattr(scheduler, "connector", None) is not None
            or any("Mamba" in kind for kind in kinds)
            or getattr(scheduler, "is_encoder_decoder", False)
        )
        self._groups, self._tokens = len(groups), smallest_block_tokens(scheduler)
        lookahead = ceil(int(getattr(scheduler, "num_lookahead_tokens", 0) or 0) / self._tokens)
        budget = ceil(int(getattr(scheduler, "max_num_scheduled_tokens", 0) or scheduler.max_model_len) / self._tokens)
        self._step_most = len(groups) * (budget + int(scheduler.max_num_running_reqs) * (1 + lookahead))
        self._step_most += int(getattr(self._manager, "watermark_blocks", 0))
        self._longest = 0

    def arrived(self, request: Any) -> None:
        """A request that may need so much."""
        tokens = min(int(request.num_prompt_tokens) + int(request.max_tokens or 0), int(self._scheduler.max_model_len))
        self._longest = max(self._longest, self._groups * (ceil(tokens / self._tokens) + 2))

    def before_step(self) -> None:
        """Wrap what can refuse, where it could in the step that begins; unwrap it where it is far from that."""
        self.head_need = None
        low = self._step_most + self._longest
        free = self._blocks.get_num_free_blocks()
        if not self._armed and (free < low or self._always):
            self._arm()
        elif self._armed and free > 2 * low and not self._always:
            self.patches.undo()
            self._armed = False

    def preempted(self, request_id: str) -> None:
        """A request lost its memory: to the one that was refused a moment ago, if there is one.

        One that had to give way to itself goes on to wait for the same memory: that is no second refusal.
        """
        refusal, self._pending = self._pending, None
        if refusal is None:
            return
        itself = refusal.request == request_id
        if itself:
            self._waiting.add(request_id)
        self._say(refusal, _ITSELF if itself else _ANOTHER)

    def admitted(self, request_id: str) -> None:
        """A wait is over."""
        self._waiting.discard(request_id)

    gone = admitted

    def after_step(self) -> None:
        """A refusal that led to no preemption: the request waits for a free that is on its way."""
        refusal, self._pending = self._pending, None
        if refusal is not None:
            self._say(refusal, _WAITS)

    def _arm(self) -> None:
        self.patches.wrap(self._manager, "allocate_slots", self._allocating)
        self.patches.wrap(self._manager.coordinator, "get_num_blocks_to_allocate", self._counting)
        self._armed = True

    def _counting(self, original: Callable[..., int]) -> Callable[..., int]:
        def get_num_blocks_to_allocate(*args: Any, **kwargs: Any) -> int:
            need = self._need = original(*args, **kwargs)
            return need

        return get_num_blocks_to_allocate

    def _allocating(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def allocate_slots(request: Any, *args: Any, **kwargs: Any) -> Any:
            blocks = original(request, *args, **kwargs)
            if blocks is None:
                try:
                    self._refused(request)
                except Exception:  # a guest: whatever the body met, the engine goes on
                    self._broken("KVCacheManager.allocate_slots")
            return blocks

        return allocate_slots

    def _refused(self, request: Any) -> None:
        rid, running = request.request_id, request.status.name == "RUNNING"
        number = self._number_of(rid)
        if number is None:
            return
        need = int(self._need)
        unknown = need == self.capacity + 2  # Mamba's way to say "not in this step"
        if not running:
            self.head_need = self.head_need or (None if unknown else need)
            if rid in self._waiting:
                return
            self._waiting.add(rid)
        elif self._pending is not None and self._pending.request == rid:
            return
        free, evictable = self._free()
        held = self._held_by(rid)
        if unknown:
            need, reason = 0, FailureReason.UNKNOWN
        elif held + need > self.capacity:
            need, reason = held + need, FailureReason.NEVER_FITS
        elif need > free + evictable:
            reason = FailureReason.EXHAUSTED
        else:
            reason = FailureReason.WATERMARK  # kept free for requests that run, or are being loaded
        refusal = _Refusal(rid, number, need, free, evictable, int(reason))
        if running:
            self._pending = refusal
        else:
            self._say(refusal, _WAITS)

    def _free(self) -> tuple[int, int]:
        """Free blocks: empty ones, and those whose content could be evicted."""
        total, cached, left = int(self._blocks.get_num_free_blocks()), 0, _MOST_LOOKED_AT
        if not self._units:
            return total, 0
        block = self._blocks.free_block_queue.fake_free_list_head.next_free_block
        while block is not None and left:
            cached += block._block_hash is not None
            left -= 1
            block = block.next_free_block
        return total - cached, cached

    def _held_by(self, rid: str) -> int:
        if not self._units:
            return 0
        groups = self._manager.coordinator.single_type_managers
        return sum(1 for group in groups for block in group.req_to_blocks.get(rid, ()) if block.block_id)

    def _say(self, refusal: _Refusal, outcome: int) -> None:
        """At once: what this step has granted before has no owner yet, and passes for nobody's reserve."""
        self._pool.failed(
            refusal.number,
            refusal.need,
            _NONE,
            refusal.free,
            refusal.evictable,
            None,
            refusal.reason,
            outcome,
        )
