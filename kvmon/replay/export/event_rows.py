"""Rows of the table `events`: what each field of each kind of record is called there.

Invariant: a row says what its record says, in the record's own numbers; nothing is derived but the wall clock.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from kvmon.events import FAILURE_REASONS, Contiguity, FailureOutcome, FinishReason, Kind
from kvmon.replay.export.columns import floats, integers, times, words
from kvmon.replay.export.records import Records

__all__ = ["FINISH_REASONS", "event_columns"]

Ints = npt.NDArray[np.int64]

_KINDS = [kind.name.lower() for kind in Kind]
_KIND_PLACES = np.full(256, -1, np.int32)
_KIND_PLACES[list(Kind)] = np.arange(len(_KINDS))
FINISH_REASONS = tuple(reason.name.lower() for reason in FinishReason)
_REASONS = list(dict.fromkeys((*FAILURE_REASONS, *FINISH_REASONS)))
_END_PLACES = np.array([_REASONS.index(reason) for reason in FINISH_REASONS], np.int64)

_FIELDS: dict[str, dict[Kind, str]] = {
    "class": {Kind.REQUEST_ARRIVED: "class_id", Kind.AUDIT_REQUEST: "class_id"},
    "need": {Kind.ALLOC_FAILED: "need", Kind.STEP: "head_need"},
    "free": {Kind.ALLOC_FAILED: "free"},
    "evictable": {Kind.ALLOC_FAILED: "evictable"},
    "largest_free": {Kind.ALLOC_FAILED: "largest"},
    "arrived_ns": {Kind.REQUEST_ARRIVED: "at", Kind.AUDIT_REQUEST: "at"},
    "prompt_tokens": {Kind.REQUEST_ARRIVED: "prompt", Kind.AUDIT_REQUEST: "prompt"},
    "token_limit": {Kind.REQUEST_ARRIVED: "limit", Kind.AUDIT_REQUEST: "limit"},
    "intended_tokens": {Kind.REQUEST_ARRIVED: "intended", Kind.REQUEST_FINISHED: "intended"},
    "output_tokens": {Kind.REQUEST_FINISHED: "output"},
    "computed_tokens": {
        Kind.REQUEST_PROGRESS: "computed",
        Kind.COMMIT: "tokens",
        Kind.TRUNCATE: "tokens",
        Kind.AUDIT_REQUEST: "computed",
    },
    "reserved_tokens": {Kind.RESERVE: "tokens", Kind.AUDIT_REQUEST: "reserved"},
    "lookup_tokens": {Kind.CACHE_HIT: "lookup_tokens"},
    "hit_tokens": {Kind.CACHE_HIT: "hit_tokens"},
    "lost_tokens": {Kind.PREEMPTED: "lost_tokens"},
    "follows": {Kind.REQUEST_ARRIVED: "follows"},
    "pause_ns": {Kind.REQUEST_ARRIVED: "pause"},
    "patience_ns": {Kind.REQUEST_ARRIVED: "patience"},
    "page_tokens": {Kind.REQUEST_HASHES: "hash_tokens"},
    "first_page": {Kind.REQUEST_HASHES: "first_page"},
    "layer_group": {Kind.ASSIGN: "group", Kind.ASSIGN_RUN: "group"},
    "start_ns": {Kind.STEP: "start"},
    "duration_ns": {Kind.STEP: "duration"},
    "prefill_tokens": {Kind.STEP: "prefill"},
    "decode_tokens": {Kind.STEP: "decode"},
    "context_tokens": {Kind.STEP: "context"},
    "running": {Kind.STEP: "running"},
    "waiting": {Kind.STEP: "waiting"},
    "capacity": {Kind.POOL_CHANGED: "capacity_units"},
    "from_unit": {Kind.MIGRATED: "old_start"},
    "from_units": {Kind.MIGRATED: "old_units"},
    "copied_tokens": {Kind.MIGRATED: "copied_tokens"},
    "other_pool": {Kind.OFFLOADED: "to_pool", Kind.ONBOARDED: "from_pool"},
    "claimed_available": {Kind.CLAIMS: "available"},
    "claimed_evictable": {Kind.CLAIMS: "evictable"},
    "claimed_protected": {Kind.CLAIMS: "protected"},
    "claimed_in_flight": {Kind.CLAIMS: "in_flight"},
    "asked_bytes": {Kind.ENGINE_ERROR: "asked"},
    "lost_records": {Kind.GAP: "lost"},
}
_SMALL = ("other_pool",)
_NO_ROWS = np.zeros(0, np.int64)
_WITH_TEXT = (Kind.ENGINE_CONFIG, Kind.POOL_ATTACHED)


def event_columns(pa: Any, records: Records, wall_offset_ns: int | None) -> dict[str, Any]:
    """The columns of these rows, but for whose they are; `wall_offset_ns` = wall clock less the engine's, if known."""
    here = np.flatnonzero(np.bincount(records.kind, minlength=256))
    rows = {Kind(kind): np.flatnonzero(records.kind == kind) for kind in here.tolist()}
    time_ns = records.time_ns
    units = records.units
    if Kind.COMPACTED in rows:
        units = units.copy()
        units[rows[Kind.COMPACTED]] = records.field(Kind.COMPACTED, "moved_units", rows[Kind.COMPACTED])
    columns = {
        "time_ns": pa.array(time_ns),
        "time": times(pa, time_ns + (wall_offset_ns or 0), wall_offset_ns is not None),
        "frame": pa.array(records.number),
        "word": pa.array(records.word),
        "kind": words(pa, _KIND_PLACES[records.kind], _KINDS),
        "pool": integers(pa, records.pool, pa.int32()),
        "request": integers(pa, records.request),
        "unit": integers(pa, records.unit),
        "units": integers(pa, units),
    }
    for name, fields in _FIELDS.items():
        values = _values(records, rows, fields)
        if values is not None:
            columns[name] = integers(pa, values, pa.int32() if name in _SMALL else None)
    reason = _reasons(records, rows)
    if reason is not None:
        columns["reason"] = words(pa, reason, _REASONS)
    for name, names in (("outcome", FailureOutcome), ("contiguity", Contiguity)):
        codes = _values(records, rows, {Kind.ALLOC_FAILED: name})
        if codes is not None:
            columns[name] = words(pa, codes, [word.name.lower() for word in names])
    decoding = _values(records, rows, {Kind.REQUEST_PROGRESS: "decoding", Kind.AUDIT_REQUEST: "decoding"})
    if decoding is not None:
        columns["decoding"] = pa.array(decoding > 0, pa.bool_(), mask=decoding < 0)
    usage = _values(records, rows, {Kind.CLAIMS: "usage"})
    if usage is not None:
        columns["claimed_usage"] = floats(pa, np.where(usage < 0, np.nan, usage / 1_000_000))
    if Kind.REQUEST_HASHES in rows:
        pages = np.full(len(records), -1, np.int64)
        pages[rows[Kind.REQUEST_HASHES]] = records.pages(rows[Kind.REQUEST_HASHES])
        columns["pages"] = integers(pa, pages)
    _add_texts(pa, records, rows, columns)
    return columns


def _values(records: Records, rows: dict[Kind, Ints], fields: dict[Kind, str]) -> Ints | None:
    """A column of what these fields say, -1 elsewhere; None where no row has one."""
    mine = [kind for kind in fields if kind in rows]
    if not mine:
        return None
    values = np.full(len(records), -1, np.int64)
    for kind in mine:
        values[rows[kind]] = records.field(kind, fields[kind], rows[kind])
    return values


def _reasons(records: Records, rows: dict[Kind, Ints]) -> Ints | None:
    """Places in the list of reasons, of refusals and of ends; a reason that is newer than this kvmon is not known."""
    refused = _values(records, rows, {Kind.ALLOC_FAILED: "reason"})
    ended = _values(records, rows, {Kind.REQUEST_FINISHED: "reason"})
    if ended is not None:
        there = ended >= 0
        ended[there] = _END_PLACES[np.where(ended[there] < len(_END_PLACES), ended[there], 0)]
    if refused is None:
        return ended
    refused[refused >= len(FAILURE_REASONS)] = 0
    return refused if ended is None else np.maximum(refused, ended)


def _add_texts(pa: Any, records: Records, rows: dict[Kind, Ints], columns: dict[str, Any]) -> None:
    """What an engine and its pools say of themselves; the size of a pool stands there too."""
    said = {row: records.text(row) for kind in _WITH_TEXT for row in rows.get(kind, _NO_ROWS).tolist()}
    if not said:
        return
    capacity = _values(records, rows, _FIELDS["capacity"])
    capacity = np.full(len(records), -1, np.int64) if capacity is None else capacity
    for row in rows.get(Kind.POOL_ATTACHED, _NO_ROWS).tolist():
        with suppress(ValueError, TypeError, KeyError):  # of another adapter: the text says what it says
            capacity[row] = int(json.loads(said[row])["capacity_units"])
    columns["capacity"] = integers(pa, capacity)
    columns["detail"] = pa.array([said.get(row) for row in range(len(records))], pa.string())
