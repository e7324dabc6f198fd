"""Captures of earlier kvmons: they open, verify and are sought in as before.

`golden/capture_v1_checkpoints.kvmon` was written by kvmon at fce5afa, whose checkpoints had version 1: a paged and a
contiguous run of the simulator, and the last part of the contiguous one, which begins with a checkpoint.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from kvmon.capture import CapturedStream, CaptureReader, Frames
from kvmon.capture.layout import ChunkKind
from kvmon.capture.pieces import apply_piece
from kvmon.cli.main import cli
from kvmon.errors import RecordingError
from kvmon.state import StreamState, checkpoint
from kvmon.state.arrays import NO_SECOND
from tests.unit.capture.traffic import same

OLD = Path(__file__).parents[2] / "golden" / "capture_v1_checkpoints.kvmon"


def stream_of(reader: CaptureReader, name: str) -> CapturedStream:
    """The stream of this name."""
    return next(stream for stream in reader.streams if stream.facts.engine == name)


def times_of(reader: CaptureReader, stream: CapturedStream) -> list[int]:
    """When each frame of a stream ended."""
    return [int(time) for piece in reader.pieces(stream) if isinstance(piece, Frames) for time in piece.table.times]


def known(state: StreamState) -> list[object]:
    """What a user sees of a state."""
    rows = state.requests
    facts: list[object] = [state.converged, state.time_ns, state.last_step, state.config]
    for number, pool in state.pools.items():
        facts += [pool.units, pool.status.tolist(), pool.slots(), pool.largest_free, pool.unowned, pool.evicted]
        facts += [pool.units_by_owner_state(), pool.runs_per_sequence(), pool.ages_seconds().tolist()]
        facts += sorted(
            (int(rows.id[row]), state.table(row, number).tolist()) for row in np.flatnonzero(rows.id).tolist()
        )
    return facts


def test_it_is_an_old_one_with_checkpoints() -> None:
    """The fixture holds what it is for."""
    with CaptureReader(OLD) as reader:
        kinds = {stream.facts.engine: [chunk.kind for chunk in stream.chunks] for stream in reader.streams}
    assert set(kinds) == {"paged", "contiguous", "trimmed"}
    assert all(ChunkKind.CHECKPOINT in found for found in kinds.values())
    assert kinds["trimmed"][1] == ChunkKind.CHECKPOINT


@pytest.mark.parametrize("name", ["paged", "contiguous"])
def test_seeking_gives_what_folding_from_the_start_gives(name: str) -> None:
    """At every frame, in both orders, whatever checkpoint lies before it."""
    with CaptureReader(OLD) as reader:
        stream = stream_of(reader, name)
        times = times_of(reader, stream)
        folded = StreamState()
        wanted: dict[int, list[object]] = {}
        for piece in reader.pieces(stream):
            assert isinstance(piece, Frames)
            begin = 0
            for end, time in zip(piece.table.ends.tolist(), piece.table.times.tolist(), strict=True):
                folded.apply(piece.words[begin:end])
                wanted[time] = known(folded)
                begin = end
        for time in times[::-3]:
            assert known(reader.state_at(stream, time)) == wanted[time]
        assert known(reader.fold(stream)) == wanted[times[-1]]
        assert not reader.damage


def test_a_capture_that_begins_with_an_old_checkpoint_knows_what_was_before() -> None:
    """The last part of a run knows everything from its first frame on, as the whole run does."""
    with CaptureReader(OLD) as reader:
        whole, part = stream_of(reader, "contiguous"), stream_of(reader, "trimmed")
        for time in times_of(reader, part):
            late = reader.state_at(part, time)
            assert late.converged
            assert known(late) == known(reader.state_at(whole, time))
            marks = late.pools[1].marks()
            assert 0 <= marks.least_free <= marks.most_used + marks.least_free <= 160


def test_states_go_on_as_those_of_this_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """From an old checkpoint on, the fold ends in the very arrays of one that needed none."""
    with CaptureReader(OLD) as reader:
        for name in ("paged", "contiguous"):
            stream = stream_of(reader, name)
            end = times_of(reader, stream)[-1]
            sought = reader.state_at(stream, end)
            monkeypatch.setattr(CaptureReader, "_checkpoint", lambda *_: None)
            plain = reader.state_at(stream, end)
            monkeypatch.undo()
            for state in (sought, plain):
                # An old one does not say since when it knew everything, and of its first second it kept no marks.
                state._pools.marks[:, :, :] = NO_SECOND
                state.converged_from = 0
                # And it let a running request wait for memory until it ended, though it had got some.
                state.requests.waits[:] = 0
                state.requests.starved[:] = 0
            assert same(sought, plain)


def test_old_checkpoints_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A seek reads the chunks behind the nearest checkpoint, not the whole file."""
    loaded: list[bool] = []

    def load(data: bytes, *, detail: bool = True, verify: bool = False) -> StreamState:
        state = checkpoint.load(data, detail=detail, verify=verify)
        loaded.append(detail)
        return state

    monkeypatch.setattr("kvmon.capture.reader.load", load)
    with CaptureReader(OLD) as reader:
        stream = stream_of(reader, "contiguous")
        time = times_of(reader, stream)[-1]
        units = [reader.state_at(stream, time, detail=detail).pools[1].units for detail in (True, False)]
    assert loaded == [True, False] and units[0] == units[1]


def test_kvmon_verify_finds_it_clean() -> None:
    """The command checks all three streams; the last one from its checkpoint on."""
    result = CliRunner().invoke(cli, ["verify", str(OLD)])
    assert result.exit_code == 0, result.output
    assert result.output.count("exclusive and conserved at every one of") == 3
    assert "verified from frame 33 on" in result.output


def test_reading_old_checkpoints_refuses_what_they_cannot_say() -> None:
    """Version 1 has no groups of layers and no buddy blocks: a pool of such a kind is folded from the start."""
    with CaptureReader(OLD) as reader:
        chunk = next(chunk for chunk in stream_of(reader, "paged").chunks if chunk.kind == ChunkKind.CHECKPOINT)
        state = reader._checkpoint(chunk, True, False)
        assert state is not None
        assert known(state) == known(reader.state_at(stream_of(reader, "paged"), chunk.last_time_ns))
    folded = StreamState()
    with CaptureReader(OLD) as reader:
        for piece in reader.pieces(stream_of(reader, "paged")):
            apply_piece(folded, piece)
    folded.pools[1].info["groups"] = 2
    data = bytearray(checkpoint.dump(folded))
    data[4] = 1
    with pytest.raises(RecordingError, match="group of layers"):
        checkpoint.load(bytes(data))
