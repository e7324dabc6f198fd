"""Follow the recording of a vLLM scheduler and hold its fold against vLLM's own blocks, tables and counters."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kvmon.adapters.vllm.recording import Recording
from kvmon.recording.reader import StreamReader, find_streams
from kvmon.state import StreamState
from kvmon.state.requests import computed_tokens

_REFS, _CACHED, _DEFERRED = (1 << 24) - 1, 1 << 24, 1 << 26


@dataclass
class Followed:
    """A stream and its fold, brought up to date by `read`."""

    reader: StreamReader
    state: StreamState

    @classmethod
    def of(cls, directory: Path) -> Followed:
        """The only stream in a directory."""
        (path,) = find_streams(directory)
        return cls.at(path)

    @classmethod
    def at(cls, path: Path) -> Followed:
        """The stream at `path`."""
        return cls(StreamReader(path), StreamState(verify=True))

    def read(self) -> StreamState:
        """Fold everything that is there."""
        while (piece := self.reader.poll()) is not None:
            words = np.frombuffer(piece.data, "<u4")
            table = self.state.apply(words)
            assert table.consumed == len(words), "a frame does not parse"
        return self.state


def differences(
    state: StreamState, scheduler: Any, recording: Recording, in_flight: dict[str, int] | None = None
) -> list[str]:
    """Where the fold and the engine say different things: references, content, owners, live requests, tokens.

    `in_flight` holds the tokens of each request that were scheduled and did not come back yet.
    """
    found: list[str] = []
    manager = scheduler.kv_cache_manager
    blocks = manager.block_pool.blocks
    status = state.pools[1].status
    if len(status) != len(blocks) - 1:
        return [f"{len(status)} units, {len(blocks)} blocks"]
    for block, word in zip(blocks[1:], status.tolist(), strict=True):
        refs, content, deferred = word & _REFS, bool(word & _CACHED), bool(word & _DEFERRED)
        references = 0 if deferred else block.ref_cnt
        if deferred != (block.block_id in recording.held.deferred):
            found.append(f"unit {block.block_id}: deferred {deferred}")
        if refs != references or content != (block._block_hash is not None):
            found.append(
                f"unit {block.block_id}: {refs} {content}, block: {block.ref_cnt} {block._block_hash is not None}"
            )
    rows = {int(number): row for row, number in enumerate(state.requests.id) if number}
    live = {rid: one for rid, one in scheduler.requests.items() if not one.status.name.startswith("FINISHED")}
    numbers = recording.requests.numbers
    if {numbers[rid] for rid in live} != set(rows):
        found.append(f"live requests {sorted(numbers[rid] for rid in live)}, folded {sorted(rows)}")
        return found
    groups = manager.coordinator.single_type_managers
    for rid, request in live.items():
        row = rows[numbers[rid]]
        for number, group in enumerate(groups):
            table = Counter(state.table(row, 1, number).tolist())
            truth = Counter(block.block_id for block in group.req_to_blocks.get(rid, ()) if block.block_id)
            if table != truth:
                found.append(f"request {numbers[rid]}, group {number}: {sorted(table)} of {sorted(truth)}")
        running = request.status.name == "RUNNING"
        if running != (int(state.requests.state[row]) == 2):
            found.append(f"request {numbers[rid]}: state {state.requests.state[row]}, {request.status.name}")
        if running:
            folded = int(computed_tokens(state.requests, row, state.steps))
            written = request.num_computed_tokens - (in_flight or {}).get(rid, 0)
            if folded != written:
                found.append(f"request {numbers[rid]}: {folded} tokens, {written}")
    units = state.pools[1].units
    if sum(units.values()) != len(blocks) - 1:
        found.append(f"states sum to {sum(units.values())}")
    return found


__all__ = ["Followed", "differences"]
