"""What a step computed: from the batch that was prepared to the update that ends it.

With asynchronous batching the next batch is prepared and launched before the last one is updated; a step is always the
one that is updated, and tokens of batches still in flight are not written yet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from kvmon.adapters.transformers.layout import Layout
from kvmon.adapters.transformers.live import Live, Requests
from kvmon.adapters.transformers.refusals import Refusals
from kvmon.probe import PoolProbe, StreamProbe

__all__ = ["CLAIMS_EVERY_NS", "Steps"]

CLAIMS_EVERY_NS = 1_000_000_000


class _Batch(NamedTuple):
    futures: list[Any]
    tokens: int
    context: int


class Steps:
    """The steps of one processor."""

    def __init__(
        self,
        processor: Any,
        layout: Layout,
        probe: StreamProbe,
        pool: PoolProbe,
        requests: Requests,
        refusals: Refusals,
        clock: Callable[[], int],
    ) -> None:
        self._processor, self._layout, self._probe, self._pool = processor, layout, probe, pool
        self._requests, self._refusals, self._clock = requests, refusals, clock
        self._scheduler, self._cache = processor.scheduler, processor.cache
        self._batches: deque[_Batch] = deque()
        self._last: _Batch | None = None
        self._in_margin = True
        self._begun = clock()
        self._claims_at = 0
        self._names: list[str] = []
        self._decode = self._counted = 0
        self._updating = self._stopped = False
        # of a batch that was launched before the recording began nothing is known
        self._unknown = bool(getattr(processor, "use_async_batching", False) and self._scheduler.active_requests)
        self._rested: int | None = None
        self.claim_more: Callable[[], None] | None = None

    # -- a batch is prepared --

    def begin(self) -> None:
        """The engine looks what there is to do."""
        self._begun = self._clock()
        self._last, self._in_margin = None, True
        self._requests.begin_step()
        self._refusals.begin()

    def margin(self, result: object, *args: Any, **kwargs: Any) -> None:
        """The scheduler looked whether enough is free to let requests in."""
        self._in_margin = bool(result)

    def scheduled(self, result: tuple[list[Any] | None, bool, int, int], *args: Any, **kwargs: Any) -> None:
        """A batch was chosen, or nobody could be."""
        futures, _, tokens, context = result
        self._last = _Batch(futures, tokens, context) if futures else None

    def prepared(self, ready: object) -> None:
        """It will be computed, or there is nothing to do."""
        if ready and self._last is not None:
            if not self._in_margin:
                self._kept_out(self._last)
            self._batches.append(self._last)
            self._rested = None
        elif not ready:
            self._refusals.tell()
            self._rest()

    def _kept_out(self, batch: _Batch) -> None:
        """With too little free, the batch takes nobody new although it has room for more."""
        full = (
            batch.tokens >= self._cache.max_batch_tokens or len(batch.futures) >= self._scheduler.max_requests_per_batch
        )
        order = self._scheduler.waiting_requests_order
        if full or not order or self._scheduler.block_new_requests:
            return
        one, state = self._requests.find(order[0]), self._scheduler.waiting_requests[order[0]]
        if one is not None:
            tokens = min(len(state.remaining_prefill_tokens), self._cache.max_batch_tokens - batch.tokens)
            self._refusals.kept_out(one, state, tokens)

    def _rest(self) -> None:
        """Nothing to compute: say so once, and while somebody waits every time."""
        waiting = bool(self._scheduler.active_requests or self._scheduler.waiting_requests)
        if waiting or self._rested != self._requests.changes:
            self._rested = self._requests.changes
            self._step(0, 0, 0)

    def gave_up(self) -> None:
        """Nobody can be scheduled: the engine raises, and its loop ends."""
        self._refusals.gave_up()

    # -- it was computed --

    def updating(self) -> None:
        """Its results are about to be looked at: who was decoding in it is known now, before anybody ends."""
        if self._unknown or not self._batches:
            return
        self._updating, futures = True, self._batches[0].futures
        self._names = [future.state.request_id for future in futures]
        counting = self._requests.counting
        self._decode = len(counting.intersection(self._names))
        self._stopped = len(counting) > self._decode
        self._counted = self._decode
        if self._decode < len(futures):
            self._decode += sum(map(self._decodes, futures))

    def _decodes(self, future: Any) -> bool:
        """Whether somebody who is not counted as decoding does: after a wait, or ended while this was in flight."""
        if future.query_length != 1 or future.state.request_id in self._requests.counting:
            return False
        one = self._requests.find(future.state.request_id)
        return one is None or one.started

    def updated(self, result: object = None) -> None:
        """The step is over."""
        while self._requests.forks:
            child = self._requests.forks.pop()
            child.state = self._scheduler.active_requests.get(child.name, child.state)
        if self._unknown or not self._batches:
            self._unknown = False
            return
        self._updating = False
        batch, names, requests = self._batches.popleft(), self._names, self._requests
        counting = requests.counting
        if self._stopped:
            for name in counting.difference(names):  # not in this batch: it did not grow
                counting.discard(name)
                one = requests.find(name)
                if one is not None:
                    self._probe.progress(one.number, self.computed(one), False)
        if self._counted < len(names):
            for name, future in zip(names, batch.futures, strict=True):
                if name not in counting:
                    self._grew(name, future)
        self._refusals.tell()
        self._step(batch.tokens - self._decode, self._decode, batch.context)

    def _grew(self, name: str, future: Any) -> None:
        """A request whose growth a reader cannot foresee: a part of its prompt, or its first token."""
        one, state = self._requests.find(name), future.state
        if one is None or not one.running:  # it has ended, or lost its memory while this was in flight
            return
        one.state = state
        computed = self.computed(one)
        if future.has_new_token:
            if not one.started:
                one.started = True
                self._probe.first_token(one.number)
            self._requests.counting.add(name)
        self._probe.progress(one.number, computed, bool(future.has_new_token))

    def computed(self, one: Live) -> int:
        """Tokens that are written when the open step closes: all that were prepared but those still in flight."""
        flying = 0
        for batch in list(self._batches)[self._updating :]:
            flying += sum(future.query_length for future in batch.futures if future.state is one.state)
        return max(int(one.state.current_len()) - flying, 0)

    def _step(self, prefill: int, decode: int, context: int) -> None:
        now = self._clock()
        if now - self._claims_at >= CLAIMS_EVERY_NS:
            self._claims_at = now
            self._claim()
        scheduler = self._scheduler
        self._probe.step(
            self._begun,
            max(now - self._begun, 0),
            prefill,
            decode,
            context,
            len(scheduler.active_requests),
            len(scheduler.waiting_requests),
            self._head_need(),
        )

    def _head_need(self) -> int | None:
        """Units that the request at the head of the queue needs to get in: the engine asks for its next chunk."""
        order = self._scheduler.waiting_requests_order
        if not order:
            return None
        state = self._scheduler.waiting_requests.get(order[0])
        if state is None:
            return None
        tokens = min(len(state.remaining_prefill_tokens), int(self._cache.max_batch_tokens))
        return self._refusals.need(order[0], int(state.current_len()), tokens)

    def _claim(self) -> None:
        """What the engine's own structures add up to: free blocks, ledgers, and the blocks that tables name."""
        layout, named = self._layout, 0
        for group in layout.groups:
            allocator = group.allocator
            shared = allocator.ledger.shared_ref_counts
            held = sum(map(len, allocator.block_table.values())) - sum(shared.values()) + len(shared)
            named += held * group.slices
        self._pool.claims(layout.free_units(self._cache.pool), layout.idle_units(), named, 0)
        if self.claim_more is not None:
            self.claim_more()
