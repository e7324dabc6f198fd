"""A stream written by hand, record by record, as an adapter of a foreign engine would."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from kvmon.adapters.described import engine_config, pool_info
from kvmon.allocators import AllocatorConfig
from kvmon.events import FinishReason, Kind, encode
from kvmon.events.wire import checksum
from kvmon.replay.recordings import Recording
from kvmon.serving import SchedulerConfig
from tests.unit.replay.replaying import recording_of_words

__all__ = ["Written"]


class Written:
    """Records of a stream; `recording` reads what was closed by steps. No pool without `attach`."""

    def __init__(
        self,
        allocator: AllocatorConfig,
        *,
        config: Mapping[str, Any] | None = None,
        fresh: bool = True,
        attach: bool = True,
    ) -> None:
        said = {**engine_config(allocator, SchedulerConfig()), **(config or {})}
        self.words: list[int] = encode(Kind.ENGINE_CONFIG, text=json.dumps(said))
        if attach:
            self.put(Kind.POOL_ATTACHED, pool=1, restated=0, text=pool_info(allocator, 64).text(fresh))
        self._frame = self._begin = 0

    def __enter__(self) -> Written:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._begin == len(self.words), "records behind the last step"

    def put(self, kind: Kind, **values: Any) -> None:
        """One record."""
        self.words += encode(kind, **values)

    def arrive(self, request: int, *, at: int, prompt: int = 32, names: Sequence[int] = ()) -> None:
        """A request with a limit of 20 tokens, and the names of its pages."""
        self.put(Kind.REQUEST_ARRIVED, request=request, at=at, class_id=0, prompt=prompt, limit=20)
        if names:
            self.names(request, names)

    def names(self, request: int, names: Sequence[int], first: int = 0) -> None:
        """Names of pages of 16 tokens; small ones keep their value though no word may be zero."""
        self.put(
            Kind.REQUEST_HASHES,
            request=request,
            hash_tokens=16,
            first_page=first,
            hashes=tuple(name | 1 << 32 for name in names),
        )

    def restate(self, request: int, *, prompt: int, limit: int) -> None:
        """An audit names a live request."""
        self.put(
            Kind.AUDIT_REQUEST,
            request=request,
            state=2,
            class_id=0,
            at=1,
            prompt=prompt,
            limit=limit,
            computed=prompt,
            decoding=1,
        )

    def finish(self, request: int, reason: FinishReason, output: int) -> None:
        """A request ends."""
        self.put(Kind.REQUEST_FINISHED, request=request, reason=int(reason), output=output)

    def step(self, start: int, duration: int, *, running: int = 1) -> None:
        """Close a frame."""
        size = len(self.words) - self._begin + 17
        values = {"prefill": 1, "decode": 1, "context": 9, "running": running, "waiting": 0}
        step = encode(
            Kind.STEP,
            seq=self._frame,
            words=size,
            time=start + duration,
            start=start,
            duration=duration,
            checksum=1,
            **values,
        )
        self.words += step
        body = np.array(self.words[self._begin : -1], "<u4")
        self.words[-1] = checksum(body.tobytes())
        self._begin = len(self.words)
        self._frame += 1

    def recording(self) -> Recording:
        """What was written, read."""
        return recording_of_words([np.array(self.words, np.uint32)], "foreign")
