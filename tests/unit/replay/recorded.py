"""Recordings of the simulator's allocators under random traffic, with the naive model beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvmon.adapters.described import engine_config, pool_info, second_pool_info
from kvmon.adapters.journal_words import JournalWords
from kvmon.capture import CaptureWriter, StreamFacts
from kvmon.probe import PoolInfo
from kvmon.state import scan
from tests.naive.timeline import NaiveTimeline, PoolFacts, frames_of
from tests.unit.adapters.driven import TOKEN_BYTES, Options, Traffic

Words = npt.NDArray[np.uint32]


class Recorded:
    """The frames of one run, and the pools that it had."""

    def __init__(self, options: Options, seed: int, steps: int) -> None:
        allocator, scheduler = options.allocator, options.scheduler
        traffic, pieces = Traffic(options, seed), []
        first, second = pool_info(allocator, TOKEN_BYTES), second_pool_info(allocator, scheduler, TOKEN_BYTES)
        words = JournalWords(
            lambda piece: pieces.append(piece.copy()),
            json.dumps(engine_config(allocator, scheduler)),
            first,
            second=second,
            requests=steps * 3 + 10,
        )
        for _ in range(steps):
            words(traffic.step())
        words.close()
        self.words: Words = np.concatenate(pieces)
        self.table = scan(self.words)
        self.pools: dict[int, PoolInfo] = {1: first} | ({} if second is None else {2: second})

    @property
    def edges(self) -> tuple[int, int]:
        """Just before the first frame, and the end of the last."""
        return int(self.table.times[0]) - 1, int(self.table.times[-1])

    def naive(self) -> NaiveTimeline:
        """A naive model that has seen nothing yet."""
        facts = {}
        for number, info in self.pools.items():
            facts[number] = PoolFacts(
                unit_tokens=info.unit_tokens,
                contiguous=info.contiguity != "none",
                buddy=info.placement == "buddy",
                windowed="window_tokens" in info.attributes,
            )
        return NaiveTimeline({number: info.capacity_units for number, info in self.pools.items()}, facts)

    def followed(self) -> NaiveTimeline:
        """A naive model that has seen everything."""
        naive = self.naive()
        for time_ns, events in frames_of(self.words, self.table):
            naive.frame(time_ns, events)
        return naive

    def capture(self, path: Path, *, every: int = 1, facts: Sequence[StreamFacts] = (StreamFacts("sim"),)) -> Path:
        """Write a capture with a checkpoint after about so many unit-operations, five a unit at the least."""
        with CaptureWriter(path, checkpoint_operations=every, force=True, wall=lambda: 0) as writer:
            for said in facts:
                sink, at = writer.add_stream(said), 0
                for end in [*self.table.ends[9:-1:10].tolist(), len(self.words)]:  # it cuts between two writes
                    sink.write(self.words[at:end])
                    at = end
        return path
