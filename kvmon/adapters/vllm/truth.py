"""vLLM's own state, as an audit ships it: references and content of blocks, block tables, live requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kvmon.adapters.counted import Counted
from kvmon.adapters.vllm.held import Held
from kvmon.adapters.vllm.requests import Requests
from kvmon.events.kinds import RequestState
from kvmon.events.wire import CACHED, DEFERRED, STATUS
from kvmon.probe import RequestPicture

__all__ = ["Truth"]

_RUNNING, _PREEMPTED, _WAITING = int(RequestState.RUNNING), int(RequestState.PREEMPTED), int(RequestState.WAITING)
_STATES = {"RUNNING": _RUNNING, "PREEMPTED": _PREEMPTED}


class Truth:
    """What the audit asks. With `used` given, units are known by their number alone, and no tables."""

    def __init__(
        self,
        scheduler: Any,
        requests: Requests,
        held: Held,
        written: Callable[[Any], int],
        used: Counted | None = None,
    ) -> None:
        self._scheduler, self._requests, self._held = scheduler, requests, held
        self._written, self._used = written, used
        self._blocks = scheduler.kv_cache_manager.block_pool
        self._by_number: dict[int, str] = {}

    def status(self, pool: int, first: int, count: int) -> Sequence[int]:
        """Status words of the units from `first` on."""
        if self._used is not None:
            return self._used.status(pool, first, count)
        blocks = self._blocks.blocks[first : first + count]
        words = [
            STATUS | block.ref_cnt if block._block_hash is None else STATUS | CACHED | block.ref_cnt for block in blocks
        ]
        for unit in self._held.deferred:
            if first <= unit < first + count:
                words[unit - first] = (words[unit - first] & CACHED) | STATUS | DEFERRED
        return words

    def live_requests(self) -> Sequence[int]:
        """Numbers of the requests that wait or run."""
        self._by_number = {number: rid for rid, number in self._requests.numbers.items()}
        return list(self._by_number)

    def picture(self, request: int) -> RequestPicture | None:
        """The request as it is now; None when it has ended."""
        rid = self._by_number.get(request, "")
        found = self._scheduler.requests.get(rid)
        if found is None or rid not in self._requests.numbers:
            return None
        state = _STATES.get(found.status.name, _WAITING)
        written = self._written(found) if state == _RUNNING else 0
        return RequestPicture(
            state=state,
            class_id=self._requests.facts[rid].class_id,
            arrived_ns=self._requests.facts[rid].arrived_ns,
            prompt=int(found.num_prompt_tokens),
            limit=found.max_tokens,
            computed=written,
            decoding=state == _RUNNING and rid not in self._requests.prefilling,
            tables=() if self._used is not None else self._tables(rid),
        )

    def _tables(self, rid: str) -> list[tuple[int, int, list[int]]]:
        groups = self._scheduler.kv_cache_manager.coordinator.single_type_managers
        return [
            (1, number, [block.block_id for block in group.req_to_blocks.get(rid, ()) if block.block_id])
            for number, group in enumerate(groups)
        ]
