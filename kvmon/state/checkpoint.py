"""The whole state of a stream as bytes, and back: what lets a reader begin in the middle of a capture.

    0 magic "KVST"   4 version   8 bytes of the description   12 the description as JSON
    then each array as it is, at a multiple of 8

The description names every array with its type and shape. Invariant: a restored state equals the one that was dumped
in every array and number, and folds on as that one would. A version or an array that this kvmon does not know is
refused: the caller then begins at an earlier checkpoint, or at the start of the stream. Version 1 is read: it had no
groups of layers and no buddy pools.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict
from typing import Any

import numpy as np

from kvmon.errors import NewerFormatError, RecordingError
from kvmon.events import Event, Kind
from kvmon.state.arrays import NO_SECOND, UNOWNED, Array, Detail, Misc, Nodes, Pools, Requests, Runs
from kvmon.state.device import DeviceSample
from kvmon.state.faults import Fault, FaultKind
from kvmon.state.pool import PoolState
from kvmon.state.said import Claims
from kvmon.state.stream import StreamState
from kvmon.state.watch import NAMING, STARVED, Watch

__all__ = ["CHECKPOINT_VERSION", "dump", "load"]

CHECKPOINT_VERSION = 2
_MAGIC = b"KVST"
_HEAD = struct.Struct("<4sII")
_GROUPS: dict[str, Any] = {"pools": Pools, "detail": Detail, "runs": Runs, "requests": Requests, "nodes": Nodes}
_OF_DETAIL = (
    Misc.NAMES_OWNERS,
    Misc.NODES_FREE,
    Misc.NODES_LEFT,
    Misc.SLOTS_LEFT,
    Misc.SLOT_FREE,
    Misc.LAST_UNOWNED,
    Misc.FAILURES,
    Misc.LAST_FAILURE,
    Misc.STALE_TABLES,
)
_NUMBERS = ("lost_records", "gaps", "missing_frames", "damaged_frames", "next_frame", "converged_from")


def dump(state: StreamState) -> bytes:
    """Everything that `state` is; its length is a multiple of 8."""
    arrays = {"misc": state._misc, "status": state._status}
    for group in _GROUPS:
        value = getattr(state, f"_{group}")
        if value is not None:
            arrays |= {f"{group}.{name}": array for name, array in value._asdict().items()}
    kept = min(int(state._misc[Misc.FAULTS]), len(state._faults.rows))
    arrays["faults"] = state._faults.rows[:kept]
    description = {
        "numbers": {name: getattr(state, name) for name in _NUMBERS},
        "verify": state.verify,
        "sweeping": state._sweeping,
        "unbroken": state._unbroken,
        "config": state.config,
        "pools": {str(number): pool.info for number, pool in state.pools.items()},
        "claims": {str(number): asdict(claims) for number, claims in state.claims.items()},
        "drift": {str(number): drift for number, drift in state.drift.items()},
        "errors": [_event_out(event) for event in state.errors],
        "devices": [asdict(sample) for sample in state.device_samples.values()],
        "faults": [asdict(fault) for fault in state._extra_faults],
        "arrays": [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()],
    }
    text = json.dumps(description, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + _HEAD.size) % 8)
    parts = [_HEAD.pack(_MAGIC, CHECKPOINT_VERSION, len(text)), text]
    for array in arrays.values():
        raw = array.tobytes()
        parts += [raw, b"\0" * (-len(raw) % 8)]
    return b"".join(parts)


def load(data: bytes | memoryview, *, detail: bool = True, verify: bool = False) -> StreamState:
    """The state that was dumped; `detail=False` leaves out what such a state does not fold.

    Raises NewerFormatError where the version is not ours, RecordingError where the bytes are no checkpoint or hold
    other arrays than this kvmon folds.
    """
    try:
        magic, version, length = _HEAD.unpack_from(data)
        if magic != _MAGIC:
            raise ValueError("the first bytes are others")
        if version not in (1, CHECKPOINT_VERSION):
            raise NewerFormatError(
                f"a checkpoint has version {version}, this kvmon reads {CHECKPOINT_VERSION}: fold from the start"
            )
        description = json.loads(bytes(data[_HEAD.size : _HEAD.size + length]))
        arrays = _arrays(data, _HEAD.size + length, description["arrays"])
        if version == 1:
            _add_what_is_new(description, arrays)
        state = StreamState(detail=detail, verify=verify)
        _restore(state, description, arrays)
    except (struct.error, KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordingError(f"these bytes are no checkpoint: {type(error).__name__}: {error}") from None
    return state


def _arrays(data: bytes | memoryview, at: int, described: list[tuple[str, str, list[int]]]) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    for name, type_, shape in described:
        array = np.frombuffer(data, np.dtype(type_), int(np.prod(shape)), at).reshape(shape)
        arrays[name] = array.copy()
        at += (array.nbytes + 7) // 8 * 8
    return arrays


def _add_what_is_new(description: dict[str, Any], arrays: dict[str, Array]) -> None:
    """Make the parts of version 1 those of ours."""
    infos = description["pools"].values()
    if any(info.get("groups", 1) != 1 or info.get("placement") == "buddy" for info in infos):
        raise ValueError("version 1 does not say which group of layers holds a unit, or which block of buddies is free")
    description["drift"] = {}
    numbers = description["numbers"]
    numbers["converged_from"] = numbers["next_frame"] if arrays["misc"][Misc.CONVERGED] else None
    arrays["pools.groups"] = np.ones_like(arrays["pools.base"])
    marks = arrays["pools.marks"]
    marks[marks[:, :, 0] == 0, 0] = NO_SECOND  # the first second had no marks of its own
    if "runs.longest" in arrays:
        fresh = Runs.make(0)
        arrays |= {"runs.buddy": fresh.buddy, "runs.of_order": fresh.of_order}
    if "nodes.pool" in arrays:
        arrays["nodes.group"] = np.zeros_like(arrays["nodes.pool"])


def _restore(state: StreamState, description: dict[str, Any], arrays: dict[str, Array]) -> None:
    state._misc, state._status = _like(state._misc, arrays["misc"]), _like(state._status, arrays["status"])
    state._misc[Misc.VERIFY] = state.verify
    for group, type_ in _GROUPS.items():
        fresh = getattr(state, f"_{group}")
        if fresh is not None:
            parts = (_like(getattr(fresh, name), arrays[f"{group}.{name}"]) for name in type_._fields)
            setattr(state, f"_{group}", type_(*parts))
    _check_sizes(state)
    if state._detail is None:
        _forget_detail(state)
    if state._requests is not None:  # what led here is not known; windows begin anew
        state._watch = Watch.make(len(state._requests.id))
        state._watch.used[STARVED] = np.count_nonzero(state._requests.starved[state._requests.id != 0])
    rows = arrays["faults"]
    state._faults.rows[: len(rows)] = rows
    state._extra_faults = [Fault(**{**fault, "kind": FaultKind(fault["kind"])}) for fault in description["faults"]]
    for name in _NUMBERS:
        setattr(state, name, description["numbers"][name])
    state._sweeping, state._unbroken = bool(description["sweeping"]), bool(description["unbroken"])
    state.config = dict(description["config"])
    state.pools = {int(number): PoolState(int(number), info, state) for number, info in description["pools"].items()}
    if state._watch is not None:
        named = (int(pool.owners.any()) << number for number, pool in state.pools.items())
        state._watch.used[NAMING] = sum(named)
    state.claims = {int(number): Claims(**claims) for number, claims in description["claims"].items()}
    state.drift = {int(number): drift for number, drift in description["drift"].items()}
    state.errors = [_event_in(row) for row in description["errors"]]
    samples = (_sample_in(row, state.time_ns) for row in description["devices"])
    state.device_samples = {sample.device: sample for sample in samples}


def _like(mine: Array, given: Array) -> Array:
    """An array of a checkpoint, provided that it is of the kind that this kvmon folds."""
    if given.dtype != mine.dtype or given.ndim != mine.ndim or given.shape[1:] != mine.shape[1:]:
        raise ValueError(f"an array of {given.dtype} {given.shape} where this kvmon has {mine.dtype} {mine.shape}")
    return given


def _forget_detail(state: StreamState) -> None:
    """What a fold without detail does not keep up is not taken over either."""
    pools, fresh = state._pools, StreamState(detail=False)._misc
    pools.counts[:, UNOWNED] = 0
    for array in (pools.runs, pools.histogram, pools.histogram_sum, pools.marks, pools.last_failure):
        array[...] = 0
    pools.marks[:, :, 0] = NO_SECOND
    for slot in _OF_DETAIL:
        state._misc[slot] = fresh[slot]


def _check_sizes(state: StreamState) -> None:
    """Arrays that are used with one index have one length."""
    groups: list[tuple[Array, ...]] = [state._pools]
    if state._detail is not None and state._runs is not None:
        groups.append((state._status, *state._detail, state._runs.length, state._runs.of_length))
    if state._requests is not None:
        columns = state._requests._asdict()
        maps = (columns.pop("keys"), columns.pop("slots"))
        columns.pop("waits")
        groups += [maps, tuple(columns.values())]
    if state._nodes is not None:
        groups.append(state._nodes)
    if any(len(array) != len(group[0]) for group in groups for array in group):
        raise ValueError("arrays that belong together have different lengths")


def _event_out(event: Event) -> list[Any]:
    return [int(event.kind), event.pool, event.fields, event.position]


def _event_in(row: list[Any]) -> Event:
    kind, pool, fields, position = row
    return Event(Kind(kind), pool, fields, position)


def _sample_in(row: Any, time_ns: int) -> DeviceSample:
    """A sample; an earlier kvmon wrote the event, without its time."""
    return DeviceSample(**row) if isinstance(row, dict) else DeviceSample.of(_event_in(row).fields, time_ns)
