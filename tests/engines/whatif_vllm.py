"""vLLM's own scheduler and pool under a clock of its own: recorded, and read back as a replay reads it.

Of the model there is its time alone: a step takes what a formula says, with some noise, and answers are those of the
traffic. So a run is the same every time, and the same traffic can be served under another configuration.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import kvmon
from kvmon.adapters.vllm import recording, requests, steps
from kvmon.probe import StreamProbe
from kvmon.replay.recordings import Recording, read_recordings
from tests.engines.vllm_alone import Driver, make_scheduler
from tests.engines.whatif_traffic import STOP_TOKEN, Asked, TestClock, calls_of

__all__ = ["run_vllm"]

_MOST_STEPS = 50_000


class _Timed(Driver):
    """A driver whose clients come and hang up when `asked` says so, on a clock that steps move on."""

    def __init__(self, scheduler: Any, asked: Sequence[Asked], clock: TestClock) -> None:
        super().__init__(scheduler, in_flight=2 if scheduler.scheduler_config.async_scheduling else 1)
        self._asked, self._clock = asked, clock

    def serve(self) -> None:
        """Until everybody has ended."""
        from vllm.v1.request import RequestStatus

        calls = calls_of(self._asked)
        begin = self._clock.now
        for _ in range(_MOST_STEPS):
            idle = not self.scheduler.requests
            if idle:
                self.drain()
                if not calls:
                    return
                self._clock.now = max(self._clock.now, begin + calls[-1].at_ns)
            while calls and begin + calls[-1].at_ns <= self._clock.now:
                call = calls.pop()
                if not call.hangs_up:
                    self._come(call.number)
                elif str(call.number) in self.scheduler.requests:
                    self.scheduler.finish_requests(str(call.number), RequestStatus.FINISHED_ABORTED)
            if self.scheduler.requests:
                self.step()
        raise AssertionError("the requests never end")

    def _come(self, number: int) -> None:
        from vllm import SamplingParams
        from vllm.v1.request import Request

        one = self._asked[number]
        request = Request(
            request_id=str(number),
            prompt_token_ids=list(one.prompt),
            sampling_params=SamplingParams(max_tokens=one.limit, stop_token_ids=[STOP_TOKEN]),
            pooling_params=None,
            block_hasher=self._hasher if self.scheduler.kv_cache_manager.enable_caching else None,
            arrival_time=float(number),
            priority=one.priority,
        )
        self.scheduler.add_request(request)
        self._requests.append(request)

    def take_in(self) -> None:
        """The oldest step that is in flight has run, and took its time."""
        output = self._outputs[0]
        cached = output.scheduled_cached_reqs
        decode = sum(output.num_scheduled_tokens[rid] == 1 for rid in cached.req_ids)
        context = sum(cached.num_computed_tokens) + sum(new.num_computed_tokens for new in output.scheduled_new_reqs)
        self._clock.compute(output.total_num_scheduled_tokens - decode, decode, context)
        super().take_in()

    def _model_output(self, ids: list[str], sampled: list[list[int]]) -> Any:
        for rid, tokens in zip(ids, sampled, strict=True):
            if tokens:
                tokens[0] = self._asked[int(rid)].answer[self.scheduler.requests[rid].num_output_tokens]
        return super()._model_output(ids, sampled)


@contextmanager
def _on(clock: TestClock) -> Iterator[None]:
    """What kvmon records stands on `clock`."""
    time = SimpleNamespace(monotonic_ns=clock)
    with (
        mock.patch.object(steps, "time", time),
        mock.patch.object(requests, "time", time),
        mock.patch.object(recording, "StreamProbe", partial(StreamProbe, clock=clock)),
    ):
        yield


def run_vllm(directory: Path, asked: Sequence[Asked], **options: Any) -> Recording:
    """Serve `asked` with a scheduler of `options` (see `make_scheduler`), recorded in `directory`; checked against
    vLLM's own counters."""
    scheduler = make_scheduler(directory / "models", **options)
    # a configuration without an executor says no, although the scheduler is the asynchronous one
    scheduler.scheduler_config.async_scheduling = bool(options.get("asynchronous"))
    clock = TestClock()
    driver = _Timed(scheduler, asked, clock)
    with _on(clock), kvmon.attach(scheduler, directory=directory / "kv") as attached:
        driver.serve()
        assert attached.grade == "exact" and attached.probe.lost == 0
    (read,) = read_recordings(directory / "kv")
    assert read.outcome is not None and read.outcome.preemptions == driver.preempted
    return read
