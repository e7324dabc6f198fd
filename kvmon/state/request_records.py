"""Kernels for the records about one request: where it is in its life, what it holds, what it was refused.

When a wait for memory is over is seen in `kvmon.state.watch_kernels`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kvmon.events import Kind, RequestState, field_offsets
from kvmon.jit import kernel
from kvmon.state.arrays import Misc
from kvmon.state.faults import FaultKind
from kvmon.state.requests import (
    add_to_table,
    drop_table,
    find_row,
    forget_request,
    leave_table,
    new_row,
)
from kvmon.state.units import note

__all__ = ["arrival", "failure", "maybe", "of_request", "restated", "wide"]

_ADMITTED, _FIRST_TOKEN, _PROGRESS, _FINISHED = (
    int(Kind.REQUEST_ADMITTED),
    int(Kind.FIRST_TOKEN),
    int(Kind.REQUEST_PROGRESS),
    int(Kind.REQUEST_FINISHED),
)
_ASSIGN, _ASSIGN_RUN, _RESERVE = int(Kind.ASSIGN), int(Kind.ASSIGN_RUN), int(Kind.RESERVE)
_COMMIT, _TRUNCATE, _PREEMPTED, _MIGRATED = (
    int(Kind.COMMIT),
    int(Kind.TRUNCATE),
    int(Kind.PREEMPTED),
    int(Kind.MIGRATED),
)
_RUNNING, _WAS_PREEMPTED = int(RequestState.RUNNING), int(RequestState.PREEMPTED)
_ABSENT = 0xFFFFFFFF

_A = field_offsets(Kind.REQUEST_ARRIVED)
_A_AT, _A_CLASS, _A_PROMPT, _A_LIMIT = _A["at"], _A["class_id"], _A["prompt"], _A["limit"]
_R = field_offsets(Kind.AUDIT_REQUEST)
_R_STATE, _R_CLASS, _R_AT, _R_PROMPT, _R_LIMIT, _R_COMPUTED, _R_DECODING, _R_RESERVED = (
    _R[name] for name in ("state", "class_id", "at", "prompt", "limit", "computed", "decoding", "reserved")
)
_F = field_offsets(Kind.ALLOC_FAILED)
_F_REQUEST, _F_NEED = _F["request"], _F["need"]

_UNKNOWN_REQUEST, _REQUEST_TWICE = int(FaultKind.UNKNOWN_REQUEST), int(FaultKind.REQUEST_TWICE)
_ADMIT_NOT_WAITING, _PREEMPT_NOT_RUNNING = int(FaultKind.ADMIT_NOT_WAITING), int(FaultKind.PREEMPT_NOT_RUNNING)
_OVERLAP = int(FaultKind.RELOCATION_OVERLAP)

_TIME, _STEPS, _NAMES_OWNERS, _NODES_LEFT = Misc.TIME, Misc.STEPS, Misc.NAMES_OWNERS, Misc.NODES_LEFT
_FAILURES, _LAST_FAILURE, _SWEEP = Misc.FAILURES, Misc.LAST_FAILURE, Misc.SWEEP


@kernel
def wide(words: Any, at: Any) -> Any:
    """A field of two words."""
    return (np.int64(words[at]) - 1) | (np.int64(words[at + 1]) - 1) << 31


@kernel
def maybe(words: Any, at: Any, absent: Any) -> Any:
    """A field that may be absent, then `absent`."""
    word = np.int64(words[at])
    return absent if word == _ABSENT else word - 1


@kernel
def arrival(words: Any, at: Any, request: Any, misc: Any, requests: Any, faults: Any) -> Any:
    """A request came; the caller made sure of a free row."""
    row = find_row(requests, request)
    if row >= 0:
        note(faults, misc, np.int64(_REQUEST_TWICE), np.int64(-1), request, np.int64(-1))
        return
    row = new_row(requests, misc, request)
    requests.arrived[row] = wide(words, at + _A_AT)
    requests.class_id[row] = np.int64(words[at + _A_CLASS]) - 1
    requests.prompt[row] = np.int64(words[at + _A_PROMPT]) - 1
    requests.limit[row] = maybe(words, at + _A_LIMIT, -1)


@kernel
def restated(
    words: Any, at: Any, request: Any, misc: Any, status: Any, pools: Any, detail: Any, requests: Any, nodes: Any
) -> Any:
    """An audit says what a live request is; its table follows and replaces what was folded."""
    row = find_row(requests, request)
    if row < 0:
        row = new_row(requests, misc, request)
    else:
        drop_table(row, np.int64(0), status, misc, pools, detail, requests, nodes)
    requests.state[row] = np.int64(words[at + _R_STATE]) - 1
    requests.class_id[row] = np.int64(words[at + _R_CLASS]) - 1
    requests.arrived[row] = wide(words, at + _R_AT)
    requests.prompt[row] = np.int64(words[at + _R_PROMPT]) - 1
    requests.limit[row] = maybe(words, at + _R_LIMIT, -1)
    requests.computed[row] = np.int64(words[at + _R_COMPUTED]) - 1
    requests.decoding[row] = misc[_STEPS] + 1 if words[at + _R_DECODING] > 1 else -1
    requests.reserved[row] = maybe(words, at + _R_RESERVED, 0)
    requests.stated[row] = misc[_SWEEP]


@kernel
def failure(words: Any, at: Any, pool: Any, misc: Any, pools: Any, requests: Any, faults: Any) -> Any:
    """A refused allocation: the last one of its pool, and since when its request waits for memory."""
    misc[_FAILURES] += 1
    misc[_LAST_FAILURE] = at
    request = maybe(words, at + _F_REQUEST, 0)
    last = pools.last_failure
    last[pool, 0] = misc[_TIME]
    last[pool, 1] = request
    for k in range(7):
        last[pool, 2 + k] = maybe(words, at + _F_NEED + k, -1)
    if request > 0:
        row = find_row(requests, request)
        if row >= 0 and requests.starved[row] == 0:
            requests.starved[row] = misc[_TIME]
        elif row < 0:
            note(faults, misc, np.int64(_UNKNOWN_REQUEST), np.int64(-1), request, np.int64(-1))


@kernel
def of_request(
    words: Any,
    at: Any,
    kind: Any,
    n: Any,
    pool: Any,
    misc: Any,
    status: Any,
    pools: Any,
    detail: Any,
    requests: Any,
    nodes: Any,
    faults: Any,
) -> Any:
    """A record about one live request; False where there is no room for its nodes."""
    request = np.int64(words[at + 1])
    row = find_row(requests, request)
    if row < 0:
        note(faults, misc, np.int64(_UNKNOWN_REQUEST), np.int64(-1), request, np.int64(-1))
        return True
    if kind in (_ASSIGN, _ASSIGN_RUN):
        first = np.int64(words[at + 3]) if kind == _ASSIGN_RUN else 0
        count = min(np.int64(words[at + 4]), pools.capacity[pool]) if kind == _ASSIGN_RUN else n - 2
        if misc[_NODES_LEFT] < count:
            return False
        misc[_NAMES_OWNERS] = 1
        group = np.int64(words[at + 2]) - 1
        add_to_table(
            words, at + 3, count, first, row, pool, group, status, misc, pools, detail, requests, nodes, faults
        )
    elif kind == _PROGRESS:
        requests.computed[row] = np.int64(words[at + 2]) - 1
        # what is said within a frame holds at its end: the closing STEP of this frame adds nothing to it
        requests.decoding[row] = misc[_STEPS] + 1 if words[at + 3] > 1 else -1
    elif kind == _ADMITTED:
        if requests.state[row] == _RUNNING:
            note(faults, misc, np.int64(_ADMIT_NOT_WAITING), np.int64(-1), request, np.int64(-1))
        requests.state[row] = _RUNNING
        requests.admitted[row] = misc[_TIME]
    elif kind == _FIRST_TOKEN:
        requests.first_token[row] = misc[_TIME]
    elif kind in (_COMMIT, _TRUNCATE):
        requests.computed[row] = np.int64(words[at + 2]) - 1
        if requests.decoding[row] >= 0:
            requests.decoding[row] = misc[_STEPS] + 1
        if kind == _TRUNCATE:
            for k in range(n - 2):
                leave_table(np.int64(words[at + 3 + k]), row, pool, status, misc, pools, detail, requests, nodes)
    elif kind == _RESERVE:
        requests.reserved[row] = np.int64(words[at + 2]) - 1
    elif kind == _PREEMPTED:
        if requests.state[row] != _RUNNING:
            note(faults, misc, np.int64(_PREEMPT_NOT_RUNNING), np.int64(-1), request, np.int64(-1))
        requests.state[row] = _WAS_PREEMPTED
        requests.preemptions[row] += 1
        requests.computed[row] = 0
        requests.decoding[row] = -1
        requests.reserved[row] = 0
        drop_table(row, np.int64(0), status, misc, pools, detail, requests, nodes)
    elif kind == _FINISHED:
        drop_table(row, np.int64(0), status, misc, pools, detail, requests, nodes)
        forget_request(requests, misc, row)
    elif kind == _MIGRATED:
        old, old_n = np.int64(words[at + 2]), np.int64(words[at + 3]) - 1
        new, new_n = np.int64(words[at + 4]), np.int64(words[at + 5]) - 1
        if new < old + old_n and old < new + new_n:
            note(faults, misc, np.int64(_OVERLAP), new, request, np.int64(-1))
        # An ASSIGN names the new units; what the request holds in other pools did not move.
        drop_table(row, pool, status, misc, pools, detail, requests, nodes)
    return True
