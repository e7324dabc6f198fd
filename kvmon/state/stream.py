"""The state of one stream: fold frames, answer what is known now.

One object for the exporter, for replay and for `kvmon verify`. Invariant: for every pool the states of its units sum
to its capacity after every record. While the stream is converging (read from the middle, or after a gap) nothing that
depends on the past is known, and `converged` says so. It is longer than other files because all of it works on one set
of arrays, which nobody else is to change.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kvmon.errors import RecordingError
from kvmon.events import Event, Kind, decode
from kvmon.events.totals import MAX_POOLS
from kvmon.state.arrays import Array, Detail, Faults, Misc, Nodes, Pools, Requests, Runs
from kvmon.state.device import DeviceSample
from kvmon.state.faults import Fault, FaultKind
from kvmon.state.frames import FrameTable, ScanEnd, scan, whole_records
from kvmon.state.growth import extended, grown_nodes, grown_requests, grown_rows
from kvmon.state.kernels import DONE, LOG_FULL, NEEDS_NODES, NEEDS_ROWS, fold
from kvmon.state.pool import PoolState
from kvmon.state.requests import computed_tokens, end_of_table, forget_unstated, recount, slots_of_table
from kvmon.state.said import Claims, Step, Table
from kvmon.state.watch import OPEN_END, REFUSALS, STARVED, WINDOWS, W, Watch, note_error
from kvmon.state.watch_kernels import close_window
from kvmon.state.whole_pools import audit_slice, clear_pool

if TYPE_CHECKING:
    from kvmon.state.curves import Curves
    from kvmon.state.track import Track

__all__ = ["StreamState"]

LogSink = Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], None]

_FIRST_ROWS, _FIRST_NODES, _KEPT_FAULTS = 256, 4096, 1000
_LARGEST_POOL = 1 << 27
_MOST_GROUPS = 256


class StreamState:
    """Everything the events of one stream add up to.

    `detail=False` folds only the states of units (no owners, ages, requests, free runs): faster, for questions that
    need no more. `verify=True` also looks, at the end of each step, for tokens beyond units, and remembers every
    fault. `converged_from` is the first frame at which the whole past was known, whatever was lost behind it.
    """

    def __init__(self, *, detail: bool = True, verify: bool = False) -> None:
        self.config: dict[str, Any] = {}
        self.pools: dict[int, PoolState] = {}
        self.claims: dict[int, Claims] = {}
        self.drift: dict[int, int | None] = {}
        self.errors: list[Event] = []
        self.lost_records = 0
        self.gaps = 0
        self.missing_frames = 0
        self.damaged_frames = 0
        self.next_frame: int | None = None
        self.converged_from: int | None = None
        self.device_samples: dict[int, DeviceSample] = {}
        self.verify = verify
        self._detailed = detail
        self._misc = np.zeros(Misc.WIDTH, np.int64)
        self._misc[Misc.VERIFY] = verify
        self._status: Array = np.zeros(8, np.uint32)
        self._pools = Pools.make()
        self._detail = Detail.make(8) if detail else None
        self._runs = Runs.make(8) if detail else None
        self._requests = Requests.make(_FIRST_ROWS) if detail else None
        self._watch = Watch.make(_FIRST_ROWS) if detail else None
        self._take_logs: LogSink | None = None
        self._curves: Curves | None = None
        self._track: Track | None = None
        self._nodes = Nodes.make(_FIRST_NODES) if detail else None
        self._misc[Misc.SLOTS_LEFT] = _FIRST_ROWS
        self._misc[Misc.NODES_LEFT] = _FIRST_NODES
        self._faults = Faults.make(_KEPT_FAULTS)
        self._extra_faults: list[Fault] = []
        self._sweeping = False
        self._room: dict[int, int] = {}
        self._unbroken = False

    # -- what is known --

    @property
    def converged(self) -> bool:
        """Whether the whole past that matters is known."""
        return bool(self._misc[Misc.CONVERGED])

    @property
    def time_ns(self) -> int:
        """Time of the last folded frame, on the engine's monotonic clock."""
        return int(self._misc[Misc.TIME])

    @property
    def frame(self) -> int:
        """Number of the last folded frame, or of the one that is being folded."""
        return int(self._misc[Misc.FRAME])

    @property
    def refused(self) -> int:
        """Refused allocations so far, of a state with detail."""
        return int(self._misc[Misc.FAILURES])

    @property
    def steps(self) -> int:
        """Steps folded so far."""
        return int(self._misc[Misc.STEPS])

    @property
    def last_step(self) -> Step | None:
        """The last step; None before the first one."""
        if self.steps == 0:
            return None
        start, duration, prefill, decode, context, running, waiting, need = (
            int(self._misc[slot])
            for slot in (
                Misc.STEP_START,
                Misc.STEP_NS,
                Misc.PREFILL,
                Misc.DECODE,
                Misc.CONTEXT,
                Misc.RUNNING,
                Misc.WAITING,
                Misc.HEAD_NEED,
            )
        )
        return Step(start, duration, prefill, decode, context, running, waiting, need or None)

    @property
    def last_step_time_ns(self) -> int:
        """Time of the frame that the last step closed."""
        return int(self._misc[Misc.LAST_STEP_TIME])

    @property
    def tallies(self) -> Pools:
        """The arrays of the pools by number, cumulative numbers among them; to be read, never written."""
        return self._pools

    @property
    def requests(self) -> Requests:
        """The arrays of live requests; for `state.requests_view` and collectors.

        Raises RecordingError when this state was folded without detail.
        """
        if self._requests is None or self._detail is None or self._nodes is None:
            raise RecordingError("requests were not folded: this state holds units only")
        if self._misc[Misc.STALE_TABLES]:
            recount(self._misc, self._detail, self._requests, self._nodes)
        return self._requests

    def tables(self, row: int, pool: int) -> list[Table]:
        """What the request in `row` holds in `pool`, one table for each group of layers. Needs detail."""
        pools, requests, tokens = self._pools, self.requests, int(self._pools.unit_tokens[pool])
        computed = int(computed_tokens(requests, row, self.steps))
        longest = int(end_of_table(row, pool, pools, self._detail, requests, self._nodes))
        found = []
        for group in range(int(pools.groups[pool])):
            units = self.table(row, pool, group)
            end = longest if pools.windowed[pool] else len(units) * tokens
            written, tail, reserved = (int(slots) for slots in slots_of_table(len(units), end, tokens, computed))
            found.append(Table(units, written, tail, reserved))
        return found

    def table(self, row: int, pool: int, group: int = 0) -> npt.NDArray[np.int64]:
        """Units of `pool` in the block table of the request in `row` for a group of layers, in the order of the
        sequence. Needs detail.
        """
        nodes, detail = self._nodes, self._detail
        if nodes is None or detail is None:
            raise RecordingError("block tables were not folded: this state holds units only")
        base, units = int(self._pools.base[pool]), []
        node = int(self.requests.head[row])
        while node >= 0:
            unit = int(nodes.unit[node])
            here = nodes.pool[node] == pool and nodes.group[node] == group
            if here and nodes.generation[node] == detail.generation[unit]:
                units.append(unit - base)
            node = int(nodes.next[node])
        return np.array(units[::-1], np.int64)

    def fresh_device_samples(self) -> list[DeviceSample]:
        """The last sample of each device that still speaks of now."""
        return [sample for sample in self.device_samples.values() if not sample.stale(self.time_ns)]

    @property
    def fault_count(self) -> int:
        """Faults found in all."""
        return int(self._misc[Misc.FAULTS]) + len(self._extra_faults)

    def faults(self) -> list[Fault]:
        """The first faults found, in the order of the stream."""
        found = [
            Fault(
                FaultKind(int(kind)),
                int(frame),
                int(word),
                int(time),
                int(pool),
                *(None if value < 0 else int(value) for value in rest),
            )
            for kind, frame, word, time, pool, *rest in self._faults.rows[: self._misc[Misc.FAULTS]]
        ]
        return sorted(found + self._extra_faults, key=lambda fault: (fault.frame, fault.word))

    # -- for a timeline --

    def begin_curves(self, curves: Curves, track: Track) -> None:
        """From now on `track` is filled, and `curves` is told what its kernels do not see. Needs detail."""
        if self._watch is None:
            raise RecordingError("a timeline needs requests: this state holds units only")
        self._curves, self._track = curves, track

    def end_curves(self) -> None:
        """The timeline is whole."""
        self._curves = self._track = None

    def everything(self) -> tuple[Any, ...]:
        """Every array as the kernels of `state.track_kernels` take them."""
        return (
            self._misc,
            self._status,
            self._pools,
            self._detail,
            self._runs,
            self._requests,
            self._nodes,
            self._watch,
        )

    # -- logs for a diagnosis --

    def log_to(self, take: LogSink) -> None:
        """Give the rows of `state.watch` to `take` (refusals, windows), each once and in order; needs detail."""
        self._take_logs = take

    def drain(self) -> None:
        """Hand over the rows of the logs so far; nobody asked: drop them."""
        watch = self._watch
        if watch is None:
            return
        refusals, windows = int(watch.used[REFUSALS]), int(watch.used[WINDOWS])
        if self._take_logs is not None and refusals + windows:
            self._take_logs(watch.refusals[:refusals], watch.windows[:windows])
        watch.used[REFUSALS] = watch.used[WINDOWS] = 0

    def open_window(self) -> npt.NDArray[np.int64]:
        """Rows of the window that has not ended yet as if it ended with the last frame (see `state.watch.W`)."""
        if self._watch is None or self._requests is None or self._watch.used[OPEN_END] == 0:
            return np.zeros((0, W.WIDTH), np.int64)
        watch = self._watch
        copy = watch._replace(
            windows=np.zeros((len(watch.open), W.WIDTH), np.int64),
            used=watch.used.copy(),
            open=watch.open.copy(),
            before=watch.before.copy(),
        )
        copy.used[WINDOWS] = 0
        close_window(self.time_ns, self._misc, self._pools, self._detail, self._requests, self._nodes, copy)
        return copy.windows[: int(copy.used[WINDOWS])]

    # -- folding --

    def apply(self, words: npt.NDArray[np.uint32], *, verify_checksums: bool = True) -> FrameTable:
        """Fold the whole frames at the start of `words` and say how far they went; the rest is the caller's to
        judge.
        """
        table = scan(words, verify=verify_checksums)
        self.apply_frames(words, table)
        return table

    def apply_frames(self, words: npt.NDArray[np.uint32], table: FrameTable) -> None:
        """Fold frames that were scanned before."""
        start, count = 0, len(table.numbers)
        breaks = np.flatnonzero(np.diff(table.numbers) != 1) + 1 if count else np.zeros(0, np.int64)
        for stop in [*breaks.tolist(), count]:
            if stop > start:
                self._continue_at(int(table.numbers[start]), int(table.times[start]))
                begin = int(table.ends[start - 1]) if start else 0
                self._fold(words, begin, table.ends[start:stop], table.numbers[start:stop], table.times[start:stop])
                self.next_frame = int(table.numbers[stop - 1]) + 1
            start = stop

    def apply_open(self, words: npt.NDArray[np.uint32]) -> bool:
        """Fold the records of a frame that a dead writer never closed; False where they do not even parse."""
        table = scan(words)
        if len(words) == 0 or table.end not in (ScanEnd.ALL, ScanEnd.INCOMPLETE):
            return False
        if len(table.numbers):  # killed after it closed a frame and before it could say so
            self.apply_frames(words, table)
            words = words[table.consumed :]
            if len(words) == 0:
                return True
        self._fold_part(words[: whole_records(words)], self.next_frame or 0, self.time_ns)
        return True

    def apply_part(self, words: npt.NDArray[np.uint32], frame: int, time_ns: int) -> None:
        """Fold whole records from the begin of a frame whose end is not wanted: no step closes."""
        self._continue_at(frame, time_ns)
        self._fold_part(words, frame, time_ns)

    def _fold_part(self, words: Array, frame: int, time_ns: int) -> None:
        numbers, times = np.array([frame], np.int64), np.array([time_ns], np.int64)
        self._fold(words, 0, np.array([len(words)], np.int64), numbers, times)

    def gap(self, *, frames: int = 0, damaged: int = 0, records: int = 0) -> None:
        """Something is missing here: nothing that depends on the past is known until a sweep closes.

        `records` of the frame that is folded, which the probe could not write.
        """
        self.gaps += 1
        if self._watch is not None:
            self._watch.open[0, W.GAPS] += 1
            self._watch.open[0, W.KNOWN] = 0
        self.missing_frames += frames
        self.damaged_frames += damaged
        self._misc[Misc.CONVERGED] = 0
        self._sweeping = self._unbroken = False
        if self._curves is not None:
            self._curves.lost(frames, records)

    def _continue_at(self, frame: int, time_ns: int) -> None:
        expected = self.next_frame
        if expected is not None and frame != expected:
            self._note(FaultKind.FRAME_MISSING, frame, 0, time_ns, value=frame - expected)
            self.gap(frames=max(frame - expected, 0))
        elif expected is None:
            self._unbroken = frame == 0

    def _fold(self, words: Array, begin: int, ends: Array, numbers: Array, times: Array) -> None:
        misc = self._misc
        misc[Misc.AT] = misc[Misc.FRAME_START] = begin
        misc[Misc.FRAME_AT] = 0
        misc[Misc.POOL] = 1
        while True:
            why = fold(
                words,
                ends,
                numbers,
                times,
                misc,
                self._status,
                self._pools,
                self._detail,
                self._runs,
                self._requests,
                self._nodes,
                self._faults,
                self._watch,
                self._track,
            )
            if why == DONE:
                return
            if why == LOG_FULL:
                self.drain()
                continue
            if why == NEEDS_ROWS and self._requests is not None:
                self._requests = grown_requests(self._requests, self._misc)
                if self._watch is not None:
                    self._watch = self._watch._replace(of_row=grown_rows(self._watch.of_row))
                if self._track is not None and self._curves is not None:
                    self._track = self._curves.track = self._track.grown()
            elif why == NEEDS_NODES and self._nodes is not None:
                self._nodes = grown_nodes(self._nodes, self._misc, int(self._pools.capacity.max()))
            else:
                self._handle(words)

    def _handle(self, words: Array) -> None:
        """A record that changes the shape of the state, or that the kernel has no business with."""
        at = int(self._misc[Misc.AT])
        size = 1 + (int(words[at]) & 0x7FFFF)
        pool = int(self._misc[Misc.POOL])
        for event in decode(words[at : at + size].tolist()):
            handler = _HANDLERS.get(event.kind)
            if handler is not None:
                handler(self, event, pool)
                if self._curves is not None and event.kind in _TOLD:
                    self._curves.changed(event)
        self._misc[Misc.AT] = at + size

    def _engine_config(self, event: Event, pool: int) -> None:
        self.config = _json(event.fields["text"])

    def _pool_attached(self, event: Event, pool: int) -> None:
        number, info = event.fields["pool"], _json(event.fields["text"])
        if number in self.pools and event.fields["restated"]:
            if _sound(number, info) and info["capacity_units"] != self.pools[number].capacity_units:
                self._resize(number, info["capacity_units"])  # it changed within a gap
            return
        if not _sound(number, info):
            self._note_here(FaultKind.UNKNOWN_POOL, number)
            return
        known = self.converged if self.pools else self._unbroken
        first = not self.pools
        self._attach(number, info)
        self._misc[Misc.CONVERGED] = known and bool(info.get("fresh"))
        if self._watch is not None and self.converged:
            self._watch.open[0, W.KNOWN] = 1
        if first and self.converged:
            self.converged_from = 0

    def _attach(self, number: int, info: dict[str, Any]) -> None:
        pools, capacity = self._pools, int(info["capacity_units"])
        if (
            self._detail is not None and number in self.pools
        ):  # block tables name units of the old size: they count for nothing
            old = int(pools.base[number])
            self._detail.generation[old + 1 : old + 1 + int(pools.capacity[number])] += 1
            self._misc[Misc.STALE_TABLES] = 1
        if capacity > self._room.get(number, 0):
            self._new_region(number, capacity)
        pools.capacity[number] = capacity
        pools.unit_tokens[number] = max(1, int(info.get("unit_tokens", 1)))
        pools.runs[number] = self._detailed and info.get("contiguity", "none") != "none"
        pools.windowed[number] = bool(info.get("window_tokens"))
        pools.groups[number] = min(max(1, int(info.get("groups", 1))), _MOST_GROUPS)
        if self._runs is not None:
            self._runs.buddy[number] = info.get("placement") == "buddy"
        self._misc[Misc.POOLS] = max(int(self._misc[Misc.POOLS]), number)
        clear_pool(number, self._status, pools, self._detail, self._runs)
        self.pools[number] = PoolState(number, info, self)

    def _new_region(self, number: int, capacity: int) -> None:
        """Room for a pool behind all others; twice as much as is asked for where it outgrew what it had, so that a
        pool that grows again and again takes a bounded multiple of its size.
        """
        room = capacity if number not in self._room else 2 * capacity
        self._pools.base[number] = len(self._status) - 1
        self._room[number] = room
        self._status = extended(self._status, room + 2)
        if self._detail is not None and self._runs is not None:
            self._detail = Detail(*(extended(column, room + 2) for column in self._detail))
            self._runs = self._runs._replace(
                length=extended(self._runs.length, room + 2), of_length=extended(self._runs.of_length, room + 2)
            )

    def _pool_changed(self, event: Event, pool: int) -> None:
        number = event.fields["pool"]
        known = self.pools.get(number)
        if known is None:
            self._note_here(FaultKind.UNKNOWN_POOL, number)
            return
        capacity = int(event.fields["capacity_units"])
        used = int(self._pools.counts[number, :4].sum())
        if capacity < used:
            self._note_here(FaultKind.CAPACITY_BELOW_USE, number, value=used - capacity)
        if _sound(number, {"capacity_units": capacity}):
            self._resize(number, capacity)

    def _resize(self, number: int, capacity: int) -> None:
        old_base, old_capacity = int(self._pools.base[number]), int(self._pools.capacity[number])
        status = self._status[old_base + 1 : old_base + 1 + min(old_capacity, capacity)].copy()
        self._attach(number, {**self.pools[number].info, "capacity_units": capacity})
        self._refill(number, status)

    def _refill(self, number: int, status: Array) -> None:
        """A resized pool keeps the status of the units it still has; owners are known again after the next sweep."""
        self._misc[Misc.CONVERGED] = 0
        audit_slice(
            status,
            0,
            len(status),
            1,
            False,
            number,
            self._misc,
            self._status,
            self._pools,
            self._detail,
            self._runs,
            self._faults,
        )

    def _audit_sweep(self, event: Event, pool: int) -> None:
        if not event.fields["ended"]:
            self._sweeping = True
            self._misc[Misc.SWEEP] += 1
            self._misc[Misc.STRANGE_POOL] = 0
        elif self._sweeping and self.pools and not self._misc[Misc.STRANGE_POOL]:
            if (
                not self.converged
                and self._detail is not None
                and self._requests is not None
                and self._nodes is not None
            ):
                forget_unstated(self._status, self._misc, self._pools, self._detail, self._requests, self._nodes)
                waiting = (self._requests.id != 0) & (self._requests.starved > 0)
                if self._watch is not None:
                    self._watch.used[STARVED] = np.count_nonzero(waiting)
            self._sweeping, self._unbroken = False, True
            self._misc[Misc.CONVERGED] = 1
            if self.converged_from is None:
                self.converged_from = int(self._misc[Misc.FRAME])

    def _gap(self, event: Event, pool: int) -> None:
        self.lost_records += int(event.fields["lost"])
        self._note_here(FaultKind.RECORDS_LOST, pool, value=int(event.fields["lost"]))
        self.gap(records=max(int(event.fields["lost"]), 1))

    def _claims(self, event: Event, pool: int) -> None:
        fields = event.fields
        usage = fields["usage"]
        self.claims[pool] = claims = Claims(
            self.time_ns,
            fields["available"],
            fields["evictable"],
            fields["protected"],
            fields["in_flight"],
            None if usage is None else usage / 1_000_000,
        )
        known = self.pools.get(pool)
        if known is None or not self.converged:
            self.drift.pop(pool, None)
            return
        drift = self.drift[pool] = known.drift(claims)
        if drift:
            self._note_here(FaultKind.CLAIMS_DRIFT, pool, value=drift)
        residual = claims.residual(known.capacity_units)
        if self._curves is not None:
            self._curves.claimed(pool, residual, drift)
        self._watch_claims(pool, known, claims, drift, residual)
        if residual:
            self._note_here(FaultKind.RESIDUAL, pool, value=residual)

    def _watch_claims(
        self, pool: int, known: PoolState, claims: Claims, drift: int | None, residual: int | None
    ) -> None:
        """The extremes of what the claims of this window say against the fold."""
        if self._watch is None:
            return
        now = self._watch.open[pool]
        now[W.CLAIMS] += 1
        if residual is not None:
            now[W.LEAST_RESIDUAL] = min(int(now[W.LEAST_RESIDUAL]), residual)
            now[W.MOST_RESIDUAL] = max(int(now[W.MOST_RESIDUAL]), residual)
        if drift is not None:
            now[W.LEAST_DRIFT] = min(int(now[W.LEAST_DRIFT]), abs(drift))
        if claims.usage is not None:
            off = round(abs(claims.usage - known.used / known.capacity_units) * 1_000_000)
            now[W.LEAST_GAUGE] = min(int(now[W.LEAST_GAUGE]), off)

    def _engine_error(self, event: Event, pool: int) -> None:
        self.errors = [*self.errors[-99:], event]
        if self._watch is not None:
            note_error(self._watch, event.fields, self.fresh_device_samples(), self.time_ns)

    def _device_sample(self, event: Event, pool: int) -> None:
        self.device_samples[event.fields["device"]] = DeviceSample.of(event.fields, self.time_ns)

    def _note_here(self, kind: FaultKind, pool: int, value: int | None = None) -> None:
        misc = self._misc
        word = int(misc[Misc.AT] - misc[Misc.FRAME_START])
        self._note(kind, int(misc[Misc.FRAME]), word, self.time_ns, pool=pool, value=value)

    def _note(
        self, kind: FaultKind, frame: int, word: int, time_ns: int, *, pool: int = 1, value: int | None = None
    ) -> None:
        if len(self._extra_faults) < _KEPT_FAULTS:
            self._extra_faults.append(Fault(kind, frame, word, time_ns, pool, value=value))


def _sound(number: int, info: dict[str, Any]) -> bool:
    """Whether a pool is possible, whatever somebody wrote of it."""
    numbers = [info.get(name, 1) for name in ("unit_tokens", "unit_bytes", "groups")]
    capacity = info.get("capacity_units", 0)
    whole = all(isinstance(number, int) for number in (capacity, *numbers))
    return whole and 1 <= number <= MAX_POOLS and 0 < capacity < _LARGEST_POOL


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


_HANDLERS = {
    Kind.ENGINE_CONFIG: StreamState._engine_config,
    Kind.POOL_ATTACHED: StreamState._pool_attached,
    Kind.POOL_CHANGED: StreamState._pool_changed,
    Kind.AUDIT_SWEEP: StreamState._audit_sweep,
    Kind.GAP: StreamState._gap,
    Kind.CLAIMS: StreamState._claims,
    Kind.ENGINE_ERROR: StreamState._engine_error,
    Kind.DEVICE_SAMPLE: StreamState._device_sample,
}
# What a timeline is told of.
_TOLD = (Kind.POOL_ATTACHED, Kind.POOL_CHANGED, Kind.AUDIT_SWEEP, Kind.ENGINE_ERROR)
