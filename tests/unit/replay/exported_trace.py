"""A trace file against Chrome's "Trace Event Format", as a reader that forgives nothing takes it.

https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU. It knows nothing of the exporter.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

Slice = tuple[int, int, str, int, int, dict[str, Any]]

REQUIRED = {
    "B": {"name": str, "ts": float, "pid": int, "tid": int},
    "E": {"ts": float, "pid": int, "tid": int},
    "X": {"name": str, "ts": float, "dur": float, "pid": int, "tid": int},
    "i": {"name": str, "ts": float, "pid": int, "tid": int, "s": str},
    "C": {"name": str, "ts": float, "pid": int, "args": dict},
    "M": {"name": str, "pid": int, "args": dict},
}
ALLOWED = {"ph", "name", "cat", "ts", "dur", "pid", "tid", "s", "args"}
OF_A_PROCESS = {"process_name": str, "process_sort_index": int}
OF_A_TRACK = {"thread_name": str, "thread_sort_index": int}


def check_trace(path: Path) -> None:
    """Fails where anything in the file is against the format, or would be drawn as what it is not."""
    trace = _read(path)
    assert trace.keys() <= {"traceEvents", "displayTimeUnit", "otherData"} and trace["displayTimeUnit"] in ("ms", "ns")
    events = trace["traceEvents"]
    assert events
    for event in events:
        _check_fields(event)
    _check_names(events)
    _check_order(events)
    slices_of(in_ns(events))


def events_of(path: Path) -> list[dict[str, Any]]:
    """The events of a trace file, times in ns."""
    return in_ns(_read(path)["traceEvents"])


def in_ns(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Times in ns, whole."""
    return [event | {name: round(event[name] * 1000) for name in ("ts", "dur") if name in event} for event in events]


def slices_of(events: list[dict[str, Any]]) -> list[Slice]:
    """(pid, tid, name, begin, end, args) of every slice, by their begins.

    Fails where one is not closed, is closed before it begins, or crosses another one of its track.
    """
    found: list[Slice] = []
    opened: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event["ph"] == "B":
            opened[event["pid"], event["tid"]].append(event)
        elif event["ph"] == "E":
            assert opened[event["pid"], event["tid"]], "an end without a begin"
            begun = opened[event["pid"], event["tid"]].pop()
            args = {**begun.get("args", {}), **event.get("args", {})}
            found.append((event["pid"], event["tid"], begun["name"], begun["ts"], event["ts"], args))
        elif event["ph"] == "X":
            until = event["ts"] + event["dur"]
            found.append((event["pid"], event["tid"], event["name"], event["ts"], until, event.get("args", {})))
    assert not any(opened.values()), "a slice is never closed"
    found.sort(key=lambda one: (one[3], -one[4]))
    _check_nesting(found)
    return found


def _check_nesting(slices: list[Slice]) -> None:
    around: dict[tuple[int, int], list[int]] = defaultdict(list)  # ends of those that are open, the innermost last
    for pid, tid, name, begin, end, _ in slices:
        assert begin <= end, f"{name} ends before it begins"
        ends = around[pid, tid]
        while ends and ends[-1] <= begin:
            ends.pop()
        assert not ends or end <= ends[-1], f"{name} crosses another slice of its track"
        ends.append(end)


def _check_fields(event: dict[str, Any]) -> None:
    required = REQUIRED[event["ph"]]
    assert required.keys() <= event.keys() <= ALLOWED, event
    for name, type_ in required.items():
        assert _is(event[name], type_), (name, event)
    assert event.get("ts", 0) >= 0 and event.get("dur", 0) >= 0, event
    assert isinstance(event.get("args", {}), dict)
    if event["ph"] == "i":
        assert event["s"] in ("g", "p", "t")
    if event["ph"] == "C":
        assert event["args"] and all(_is(value, float) for value in event["args"].values()), event


def _check_names(events: list[dict[str, Any]]) -> None:
    """Each process and track that is used has a name and a place, once; none is named that is not a track."""
    said: dict[tuple[Any, ...], Any] = {}
    for event in events:
        if event["ph"] != "M":
            continue
        of_track = event["name"] in OF_A_TRACK
        key = (event["name"], event["pid"], event["tid"]) if of_track else (event["name"], event["pid"])
        assert ("tid" in event) == of_track and key not in said, event
        ((what, value),) = event["args"].items()
        type_ = (OF_A_TRACK if of_track else OF_A_PROCESS)[event["name"]]
        assert what == ("name" if type_ is str else "sort_index") and _is(value, type_) and value != "", event
        said[key] = value
    for event in events:
        assert all((name, event["pid"]) in said for name in OF_A_PROCESS), event
        if "tid" in event:
            assert all((name, event["pid"], event["tid"]) in said for name in OF_A_TRACK), event


def _check_order(events: list[dict[str, Any]]) -> None:
    """Those of a process are in the order of their times, so that B and E find each other; a counter has one value at
    a time."""
    last: dict[int, float] = defaultdict(float)
    counted = set()
    for event in events:
        if "ts" in event:
            assert event["ts"] >= last[event["pid"]], event
            last[event["pid"]] = event["ts"]
        if event["ph"] == "C":
            key = event["pid"], event["name"], event["ts"]
            assert key not in counted, event
            counted.add(key)


def _is(value: Any, type_: type) -> bool:
    """Of this type of JSON; a number may be whole."""
    types = (int, float) if type_ is float else (type_,)
    return isinstance(value, types) and not isinstance(value, bool)


def _read(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.name.endswith(".gz") else data).decode("utf-8")
    trace: dict[str, Any] = json.loads(text, parse_constant=_no_number)
    return trace


def _no_number(name: str) -> None:
    raise AssertionError(f"{name} is no number of JSON")
