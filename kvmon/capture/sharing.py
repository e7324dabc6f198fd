"""What of a capture may be seen by anybody: the same events, without what could name a person, a machine or a text.

    taken out   names of engines (they become engine1, engine2, ...), process numbers, boot and recording ids, the wall
                clock, UUIDs of devices, names of pages (replaced, see `share_words`), whatever an engine said of itself
                beyond what `share_said` knows, records and fields that this kvmon does not know
    kept        every event with its time on the engine's clock, requests by their numbers, classes by theirs, lengths,
                sizes, versions

Lives stay on one time line: each one's clock is set so that the wall clock begins at 0 with the first of them.
Invariant: a diagnosis of what is shared finds what a diagnosis of the original finds; `Shared` lists all that was taken
out.
"""

from __future__ import annotations

import json
import secrets
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from kvmon.capture.pieces import Frames, Hole, Piece, StreamFacts, Tail
from kvmon.capture.share_said import shared_config, shared_pool, shared_reason
from kvmon.capture.share_words import PageNames, clean_frames, clean_records, count_kinds
from kvmon.events import FIELDS, Event, Kind
from kvmon.state import StreamState
from kvmon.state.frames import whole_records
from kvmon.state.pool import PoolState

__all__ = ["Shared", "SharedStream", "Sharer"]

Words = npt.NDArray[np.uint32]

_NOWHERE = bytes(16)
_KINDS = frozenset(Kind)


@dataclass
class SharedStream:
    """What one stream of a bundle says of itself.

    was     the name that its engine has in the source: for the maker's eyes, and not in the bundle
    said    each description of the engine that stands in it, once; `pools` the same by the number of the pool
    """

    name: str
    was: str
    said: list[dict[str, Any]] = field(default_factory=list)
    pools: dict[int, list[dict[str, Any]]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        pools = {str(number): said for number, said in sorted(self.pools.items())}
        return {"name": self.name, "was": self.was, "said": self.said, "pools": pools}


@dataclass
class Shared:
    """What a bundle contains, and what was taken out.

    streams     in the order of the file
    records     how many records there are of each kind beside those of units
    removed     what was taken out or replaced, in words, and how often
    engine_keys keys of what engines said of themselves that are left out or cut; `pool_keys` of pools
    """

    streams: list[SharedStream] = field(default_factory=list)
    records: Counter[str] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)
    engine_keys: Counter[str] = field(default_factory=Counter)
    pool_keys: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "streams": [stream.as_json() for stream in self.streams],
            "records": dict(sorted(self.records.items())),
            "removed": {what: count for what, count in sorted(self.removed.items()) if count},
            "removed_of_engines": dict(sorted(self.engine_keys.items())),
            "removed_of_pools": dict(sorted(self.pool_keys.items())),
        }


class Sharer:
    """Makes streams fit to be shown to anybody.

    begin_ns        the wall clock when the first life began: from there the shared ones count
    keep_names      names of engines stay; `keep_time`: the wall clock stays
    secret          of the new names of pages; drawn, used and forgotten
    """

    def __init__(
        self, begin_ns: int, *, keep_names: bool = False, keep_time: bool = False, secret: bytes | None = None
    ) -> None:
        self.shared = Shared()
        self._begin = begin_ns
        self._keep_names = keep_names
        self._keep_time = keep_time
        self._names = PageNames(secrets.token_bytes(32) if secret is None else secret)
        self._new_names: dict[str, str] = {}
        self._stream = SharedStream("", "")
        self._texts: dict[tuple[int, str], str] = {}

    def facts(self, facts: StreamFacts) -> StreamFacts:
        """The next stream begins; what may be known of it."""
        removed = self.shared.removed
        engine = facts.engine if self._keep_names else self._new_name(facts.engine)
        removed["name of an engine"] += engine != facts.engine
        removed["process number, boot id and id of the recording"] += bool(
            facts.pid or any(facts.boot_id) or any(facts.epoch)
        )
        wall, mono = facts.wall_ns, facts.mono_ns
        if wall and not self._keep_time:
            removed["wall clock: when it was recorded"] += 1
            wall, mono = 0, mono - wall + self._begin
        shared = replace(facts, engine=engine, epoch=_NOWHERE, boot_id=_NOWHERE, pid=0, wall_ns=wall, mono_ns=mono)
        self._stream = SharedStream(shared.name, facts.name)
        self.shared.streams.append(self._stream)
        self._texts.clear()
        return shared

    def piece(self, piece: Piece) -> Piece | None:
        """The next piece of the stream; None where nothing of it is left."""
        if isinstance(piece, Hole):
            return replace(piece, reason=shared_reason(piece.reason), frame=_whole(piece.frame))
        if isinstance(piece, Tail):
            words = piece.words[: whole_records(piece.words)]
            self._unknown(words)
            words, renamed = clean_records(words, self._names, self._rewrite)
            self._count(words, renamed)
            return Tail(words) if len(words) else None
        self._unknown(piece.words)
        words, table, renamed = clean_frames(piece.words, piece.table, self._names, self._rewrite)
        self._count(words, renamed)
        return Frames(words, table)

    def state(self, state: StreamState) -> StreamState:
        """What came before the first frame of the stream."""
        state.config = json.loads(self._config(json.dumps(state.config))) if state.config else {}
        for number, pool in list(state.pools.items()):
            state.pools[number] = PoolState(number, json.loads(self._pool(number, json.dumps(pool.info))), state)
        for device, sample in list(state.device_samples.items()):
            self._device(sample.uuid)
            state.device_samples[device] = replace(sample, uuid="")
        errors = [event for event in state.errors if event.kind is Kind.ENGINE_ERROR]
        known = [known.name for known in FIELDS[Kind.ENGINE_ERROR]]
        state.errors = [replace(event, fields={name: event.fields[name] for name in known}) for event in errors]
        return state

    # -- inside --

    def _new_name(self, engine: str) -> str:
        return self._new_names.setdefault(engine, f"engine{len(self._new_names) + 1}")

    def _count(self, words: Words, renamed: int) -> None:
        counts = count_kinds(words)
        for kind in np.flatnonzero(counts).tolist():
            self.shared.records[Kind(kind).name.lower()] += int(counts[kind])
        if renamed:
            self.shared.removed["names of pages: others that mean nothing, equal ones stay equal"] += renamed

    def _unknown(self, words: Words) -> None:
        counts = count_kinds(words)
        strange = sum(int(counts[kind]) for kind in np.flatnonzero(counts).tolist() if kind not in _KINDS)
        if strange:
            self.shared.removed["records of kinds that this kvmon does not know"] += strange

    def _rewrite(self, event: Event) -> Event:
        if event.kind is Kind.ENGINE_CONFIG:
            return _with(event, text=self._text(0, event.fields["text"]))
        if event.kind is Kind.POOL_ATTACHED:
            return _with(event, text=self._text(event.fields["pool"], event.fields["text"]))
        uuid = event.fields.get("uuid") or ""
        self._device(uuid)
        return _with(event, uuid="") if uuid else event

    def _text(self, number: int, text: str) -> str:
        """The text of the engine (0) or of a pool; the same again where it is restated."""
        if (number, text) not in self._texts:
            self._texts[number, text] = self._pool(number, text) if number else self._config(text)
        return self._texts[number, text]

    def _config(self, text: str) -> str:
        kept, removed = shared_config(_object(text))
        if kept not in self._stream.said:
            self._stream.said.append(kept)
        self.shared.engine_keys.update(removed)
        return json.dumps(kept, separators=(",", ":"))

    def _pool(self, number: int, text: str) -> str:
        kept, removed = shared_pool(number, _object(text))
        said = self._stream.pools.setdefault(number, [])
        if kept not in said:
            said.append(kept)
        self.shared.pool_keys.update(removed)
        return json.dumps(kept, separators=(",", ":"))

    def _device(self, uuid: str) -> None:
        if uuid:
            self.shared.removed["UUID of a device"] += 1


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _with(event: Event, **values: Any) -> Event:
    if all(event.fields.get(name) == value for name, value in values.items()):
        return event
    return replace(event, fields={**event.fields, **values})


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
