"""What a scheduler did in a step: admissions, owners, tokens; said when `schedule` and `update_from_output` return.

No request is named at the pool, so owners come from the scheduler's output, once a step. Between `schedule` and the
matching `update_from_output` another `schedule` may run (async scheduling), so what belongs to an output waits for it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import compress, islice
from typing import Any, NamedTuple

from kvmon.adapters.vllm.requests import Requests
from kvmon.adapters.vllm.waits import Waits
from kvmon.probe import PoolProbe, StreamProbe

__all__ = ["Steps"]

_MOST_OPEN = 64  # steps in flight; what is beyond was never updated
_SECOND_NS = 1_000_000_000
_PROGRESS_A_STEP = 64
_SPIN_NS = 20_000_000  # steps that do nothing are told this often, not thousands of times a second


class _Open(NamedTuple):
    """What is known of a step when it is scheduled, until its output comes back."""

    output: object
    began_ns: int
    prefill: int
    decode: int
    context: int
    scheduled: dict[str, int]
    passed_over: list[Any]
    head_need: int | None


class Steps:
    """The step hooks of one scheduler. `owners` says that units and their owners are recorded."""

    def __init__(
        self,
        scheduler: Any,
        probe: StreamProbe,
        pool: PoolProbe,
        requests: Requests,
        waits: Waits,
        *,
        owners: bool,
    ) -> None:
        self._scheduler, self._probe, self._pool = scheduler, probe, pool
        self._requests, self._waits, self._owners = requests, waits, owners
        manager = scheduler.kv_cache_manager
        self._blocks, self._caching = manager.block_pool, bool(manager.enable_caching)
        self._usage: Callable[[], float] | None = getattr(self._blocks, "get_usage", None)
        groups = scheduler.kv_cache_config.kv_cache_groups
        self._plain = len(groups) == 1 and type(groups[0].kv_cache_spec).__name__ == "FullAttentionSpec"
        self._open: deque[_Open] = deque(maxlen=_MOST_OPEN)
        self._began_ns = self._ended_ns = self._claimed_ns = 0
        self._restate: dict[str, Any] = {}
        self._rolling: list[Any] = []
        # requests whose units a connector told, with how many of each group: their output names them once more
        self._told: dict[str, list[int]] = {}
        self._external: dict[str, int] = {}
        self.inside = False

    # -- schedule --

    def before_schedule(self, *args: Any, **kwargs: Any) -> None:
        """A step begins."""
        self.inside = True
        self._began_ns = time.monotonic_ns()
        self._waits.before_step()

    def after_schedule(self, output: Any, *args: Any, **kwargs: Any) -> None:
        """The scheduler has decided: who was admitted, and who got which units."""
        self._waits.after_step()
        scheduled = output.num_scheduled_tokens
        prefill = context = 0
        if scheduled:
            for new in output.scheduled_new_reqs:
                context += new.num_computed_tokens
                self._admit(new.req_id, new.num_computed_tokens)
                if self._owners:
                    self._assign(new.req_id, new.block_ids)
            cached = output.scheduled_cached_reqs
            ids, tables = cached.req_ids, cached.new_block_ids
            context += sum(cached.num_computed_tokens)
            if cached.resumed_req_ids:
                resumed = cached.resumed_req_ids
                for rid, computed in zip(ids, cached.num_computed_tokens, strict=True):
                    if rid in resumed:
                        self._admit(rid, computed)
            if self._owners:
                numbers, assign = self._requests.numbers, self._pool.assign
                for rid, new_units in zip(compress(ids, tables), filter(None, tables), strict=True):
                    if self._plain and not self._told:
                        assign(numbers[rid], new_units[0])
                    else:
                        self._assign(rid, new_units)
            for rid in self._requests.prefilling:
                prefill += scheduled.get(rid, 0)
        decode = output.total_num_scheduled_tokens - prefill
        passed_over: list[Any] = []
        if len(scheduled) != len(self._scheduler.running):
            rest = (request for request in self._scheduler.running if request.request_id not in scheduled)
            passed_over = list(islice(rest, _PROGRESS_A_STEP))
        self._open.append(
            _Open(output, self._began_ns, prefill, decode, context, scheduled, passed_over, self._waits.head_need)
        )

    def told(self, result: object, request: Any, blocks: Any, num_external_tokens: int, *args: Any) -> None:
        """A connector is told of a request's blocks: with a transfer ahead nothing else names them for a while."""
        rid = request.request_id
        self._external[rid] = int(num_external_tokens)
        if self._owners and num_external_tokens and rid in self._requests.numbers and rid not in self._told:
            tables = blocks.get_block_ids()
            self._assign(rid, tables)
            self._told[rid] = [len(table) for table in tables]

    def left(self, rid: str, units: list[int]) -> None:
        """A window has passed units that others still hold."""
        request = self._scheduler.requests.get(rid)
        number = self._requests.numbers.get(rid)
        if request is not None and number is not None:
            self._pool.truncate(number, int(request.num_computed_tokens), units)
            self._restate[rid] = request

    def gone(self, rid: str) -> None:
        """A request ended or lost its memory."""
        self._waits.gone(rid)
        self._told.pop(rid, None)
        self._external.pop(rid, None)

    def _admit(self, rid: str, computed: int) -> None:
        number = self._requests.numbers[rid]
        request = self._scheduler.requests[rid]
        self._waits.admitted(rid)
        self._probe.admitted(number)
        if self._caching and not request.skip_reading_prefix_cache:
            hits = max(computed - self._external.get(rid, 0), 0)
            self._probe.cache_hit(number, hits, int(request.num_tokens))
        self._requests.prefilling[rid] = request
        if self._open and computed:  # frames of earlier steps close before this one's
            self._probe.progress(number, computed, False)

    def _assign(self, rid: str, tables: Iterable[list[int]]) -> None:
        number, told = self._requests.numbers[rid], self._told.pop(rid, None)
        for group, units in enumerate(tables):
            new = units if told is None else units[told[group] :]
            self._pool.assign(number, [unit for unit in new if unit], group)

    # -- update_from_output --

    def after_update(self, result: object, output: Any, *args: Any, **kwargs: Any) -> None:
        """The step's output is in: close its frame."""
        self.inside = False
        now = time.monotonic_ns()
        step = self._opened(output)
        scheduled = step.scheduled
        running, waiting = self._scheduler.get_request_counts()
        if not scheduled and self._idle(now, running, waiting):
            return
        for rid, request in list(self._requests.prefilling.items()):
            if rid in scheduled:
                self._prefilled(rid, request)
        for request in step.passed_over:
            self._progress(request.request_id, request)
        if self._restate:
            for rid, request in self._restate.items():
                self._progress(rid, request)
            self._restate.clear()
        self._requests.step()
        if now - self._claimed_ns > _SECOND_NS or now < self._claimed_ns:
            self._claimed_ns = now
            self._pool.claims(
                int(self._blocks.get_num_free_blocks()), usage=None if self._usage is None else float(self._usage())
            )
            self._rolling = list(self._scheduler.running)
        if self._rolling:
            for request in self._rolling[-_PROGRESS_A_STEP:]:
                if request.request_id not in self._requests.prefilling:
                    self._progress(request.request_id, request)
            del self._rolling[-_PROGRESS_A_STEP:]
        began = max(step.began_ns or now, self._ended_ns)
        self._ended_ns = max(now, began)
        self._probe.step(
            began, self._ended_ns - began, step.prefill, step.decode, step.context, running, waiting, step.head_need
        )

    def _opened(self, output: object) -> _Open:
        """What was noted when this output was made; of one that was never seen, nothing."""
        while self._open:
            step = self._open.popleft()
            if step.output is output:
                return step
        return _Open(output, 0, 0, 0, 0, {}, [], None)

    def _idle(self, now: int, running: int, waiting: int) -> bool:
        """Whether a step that did nothing needs no word: an engine that cannot go on spins."""
        emitter = self._probe.emitter
        return bool(waiting or running) and not emitter.pending and 0 <= now - self._ended_ns < _SPIN_NS

    def _prefilled(self, rid: str, request: Any) -> None:
        """Part of a prompt is written, or all of it and the first token is there."""
        number = self._requests.numbers.get(rid)
        if number is None or request.status.name != "RUNNING":
            return
        written = self.written(request)
        decoding = request.num_output_tokens > 0 and written >= request.num_tokens - 1
        if decoding:
            del self._requests.prefilling[rid]
            if request.num_output_tokens == 1:
                self._probe.first_token(number)
        self._probe.progress(number, written, decoding)

    def _progress(self, rid: str, request: Any) -> None:
        number = self._requests.numbers.get(rid)
        if number is not None and request.status.name == "RUNNING":
            self._probe.progress(number, self.written(request), rid not in self._requests.prefilling)

    def written(self, request: Any) -> int:
        """Tokens whose keys and values are written: computed, less those of steps that are still in flight."""
        rid = request.request_id
        in_flight = getattr(request, "num_in_flight_tokens", None)
        if in_flight is None:
            in_flight = sum(step.scheduled.get(rid, 0) for step in self._open)
        return max(int(request.num_computed_tokens) - int(in_flight), 0)
