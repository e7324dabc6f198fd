"""transformers' own continuous batching under a clock of its own: recorded, and read back as a replay reads it.

Cache, allocators, scheduler and offloading are transformers' own. Of the model there is its time alone: a step takes
what a formula says, with some noise, and answers are those of the traffic.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import kvmon
from kvmon.adapters.transformers import recorder
from kvmon.replay.recordings import Recording, read_recordings
from tests.engines.transformers_driven import Driven, ScriptedIO
from tests.engines.whatif_traffic import Asked, TestClock, calls_of

__all__ = ["run_transformers"]

_MOST_STEPS = 50_000


class _TimedIO(ScriptedIO):
    """Answers as the traffic has them; a batch takes its time."""

    def __init__(self, asked: Sequence[Asked], clock: TestClock) -> None:
        super().__init__()
        self._asked, self._clock = asked, clock

    def prepare_batch_update(self) -> tuple[list[Any], list[int], None]:
        """The oldest batch, its tokens, and how long they took."""
        futures = self._batches.popleft()
        decode = sum(future.query_length == 1 for future in futures)
        tokens = sum(future.query_length for future in futures)
        context = sum(int(future.state.current_len()) for future in futures)
        self._clock.compute(tokens - decode, decode, context)
        return futures, [self._next(future.state) for future in futures if future.has_new_token], None

    def _next(self, state: Any) -> int:
        # What was generated before a soft reset is part of the prompt since; a batch in flight may be one too many.
        asked = self._asked[int(state.request_id)]
        at = len(state.initial_tokens) + len(state.generated_tokens) - len(asked.prompt)
        return asked.answer[min(at, len(asked.answer) - 1)]


def run_transformers(directory: Path, asked: Sequence[Asked], **options: Any) -> Recording:
    """Serve `asked` by a processor of `options` (see `manager_of`), recorded in `directory`."""
    directory.mkdir(parents=True)
    clock = TestClock()
    driven = Driven("llama", **options)
    driven.processor.inputs_and_outputs = _TimedIO(asked, clock)
    calls = calls_of(asked)
    begin = clock.now
    with mock.patch.object(recorder, "CLOCK", clock):
        attached = kvmon.attach(driven.processor, directory=directory)
        for _ in range(_MOST_STEPS):
            idle = not driven.processor.has_pending_requests() and driven.manager.input_queue.empty()
            if idle and calls:
                clock.now = max(clock.now, begin + calls[-1].at_ns)
            while calls and begin + calls[-1].at_ns <= clock.now:
                call = calls.pop()
                one = asked[call.number]
                if call.hangs_up:
                    driven.cancel(str(call.number))
                else:
                    driven.add(str(call.number), list(one.prompt), one.limit)
            driven.step()
            assert driven.died is None, driven.died
            if idle and not calls:
                break
        else:
            raise AssertionError("the requests never end")
        probe = attached._recorders[0].probe
        assert probe is not None and probe.lost == 0, probe.loss_reasons
        kvmon.detach(attached)
    (read,) = read_recordings(directory)
    return read
