"""A pool of which only the amount is known: a fold counts it right, from the start and after one sweep."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kvmon.adapters.counted import NET, Counted
from kvmon.probe import PoolInfo, StreamProbe
from kvmon.recording import StreamReader, find_streams
from kvmon.state import StreamState


def test_the_fold_counts_what_is_used(tmp_path: Path) -> None:
    """Up, down, and out of bounds, where an engine says more than it has."""
    free = 300
    probe = StreamProbe(tmp_path, "e", config={"fidelity": "counts"})
    pool = probe.attach_pool(PoolInfo("kv", 300, 64, 16, attributes=NET), fresh=False)
    counted = Counted(pool, 300, lambda: free)
    probe.audit_from(counted)
    reader, state = StreamReader(find_streams(tmp_path)[0]), StreamState(verify=True)
    for number, free in enumerate((300, 120, 121, 0, -5, 290, 400, 7)):
        counted.follow()
        for _ in range(8):  # a sweep and more
            probe.step(number, 1, 0, 0, 0, 0, 0)
        for piece in iter(reader.poll, None):
            state.apply(np.frombuffer(piece.data, np.uint32))
        assert state.converged and state.pools[1].net and not state.faults()
        assert state.pools[1].free == min(max(free, 0), 300) and state.pools[1].active == 300 - state.pools[1].free
    probe.close()
