"""The kernels that write the two short logs of `state.watch` while the fold reads.

Invariant: a kernel here reads the state of the fold and changes nothing of it but `starved` and `waits` of the
requests, which are about waits for memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kvmon.events import Kind, RequestState, field_offsets
from kvmon.jit import kernel
from kvmon.state.arrays import ACTIVE, CACHED, DEFERRED, FREE, PINNED, UNOWNED, Misc, Tally
from kvmon.state.requests import computed_tokens, end_of_table, find_row, observe_wait, recount, slots_of_table
from kvmon.state.watch import BEGUN, NAMING, OPEN_END, REFUSALS, SEEN_BITS, SEQ, STARVED, WINDOW_NS, WINDOWS, R, W

__all__ = [
    "begin_window",
    "close_window",
    "ends_wait",
    "log_refusal",
    "next_window",
    "saw_hashes",
    "saw_hit",
    "saw_step",
]

_SAMPLED_TOKENS = 64  # one page name in so many tokens of a prompt is remembered,
_OFTEN_UNTIL, _SELDOM = 1024, 4  # behind the first so many tokens only each fourth of those
_SEEN_SHIFT = 64 - SEEN_BITS
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # names in a recording are hashes, those of a simulator are not
_FAR_LESS = 4  # a request that would fit while the head waits counts where it needs so many times less
_LARGEST = np.iinfo(np.int64).max

_REFUSALS, _WINDOWS, _OPEN_END, _SEQ, _BEGUN = REFUSALS, WINDOWS, OPEN_END, SEQ, BEGUN
_STARVED_NOW, _NAMING = STARVED, NAMING
_REFUSED, _ENDED = R.REFUSED, R.ENDED
_RUNNING, _WAITING = int(RequestState.RUNNING), int(RequestState.WAITING)
_NEED_AT = field_offsets(Kind.ALLOC_FAILED)["need"]
_H = field_offsets(Kind.REQUEST_HASHES)
_H_TOKENS, _H_FIRST = _H["hash_tokens"], _H["first_page"]
_HEAD_WORDS = _H_FIRST + 1
_ABSENT = 0xFFFFFFFF
_K_ASSIGN, _K_ASSIGN_RUN = int(Kind.ASSIGN), int(Kind.ASSIGN_RUN)
_K_ADMITTED, _K_FINISHED, _K_RESTATED = (
    int(Kind.REQUEST_ADMITTED),
    int(Kind.REQUEST_FINISHED),
    int(Kind.AUDIT_REQUEST),
)
_TALLIES, _TALLY_EVICTED = Tally.WIDTH, Tally.EVICTED
(
    _TIME,
    _FRAME,
    _AT,
    _FRAME_START,
    _CONVERGED,
    _POOLS,
    _STALE,
    _STEP_COUNT,
    _LAST_STEP,
    _RUNNING_NOW,
    _WAITING_NOW,
    _HEAD_NOW,
    _PREFILL_NOW,
    _DECODE_NOW,
    _DOUBLES_SO_FAR,
    _SLOTS_LEFT,
) = (
    Misc.TIME,
    Misc.FRAME,
    Misc.AT,
    Misc.FRAME_START,
    Misc.CONVERGED,
    Misc.POOLS,
    Misc.STALE_TABLES,
    Misc.STEPS,
    Misc.LAST_STEP_TIME,
    Misc.RUNNING,
    Misc.WAITING,
    Misc.HEAD_NEED,
    Misc.PREFILL,
    Misc.DECODE,
    Misc.DOUBLES,
    Misc.SLOTS_LEFT,
)
(
    _END,
    _POOL,
    _KNOWN,
    _W_FRAME,
    _STEPS,
    _PROGRESS,
    _STUCK_NS,
    _PREFILL,
    _FINISHED,
    _PREEMPTIONS,
    _LOST,
    _LOOKUP,
    _HIT,
    _FORGOTTEN,
    _ERRORS,
    _GAPS,
    _W_RUNNING,
    _W_WAITING,
    _CAPACITY,
    _UNIT_TOKENS,
    _ACTIVE,
    _CACHED,
    _PINNED,
    _DEFERRED,
    _FREE,
    _UNOWNED,
    _STARVED,
    _FITTING,
    _EVICTED,
    _LEAST_DEFERRED,
    _LEAST_UNOWNED,
    _DOUBLES,
    _CLAIMS,
    _LEAST_RESIDUAL,
    _MOST_RESIDUAL,
    _LEAST_DRIFT,
    _LEAST_GAUGE,
    _BEGIN,
) = range(W.BEGIN + 1)
(
    _R_TIME,
    _R_KIND,
    _R_FRAME,
    _R_WORD,
    _R_SEQ,
    _R_POOL,
    _R_REQUEST,
    _R_CLASS,
    _R_NEED,
    _R_CONTIGUITY,
    _R_FREE,
    _R_EVICTABLE,
    _R_LARGEST,
    _R_REASON,
    _R_OUTCOME,
    _R_CAPACITY,
    _R_UNIT_TOKENS,
    _R_ACTIVE,
    _R_PINNED,
    _R_DEFERRED,
    _R_UNOWNED,
    _R_TAIL,
    _R_RESERVED,
    _R_KNOWN,
    _R_RUNNING,
    _R_WAITING,
    _R_MID_STREAM,
    _R_SINCE,
) = range(R.WIDTH)
_FIRST_OF_STREAM, _AFTER_STREAM = W.STREAM
_FIRST_OF_ERROR, _AFTER_ERROR = W.ERROR
_COLUMNS = W.WIDTH


@kernel
def begin_window(misc: Any, pools: Any, watch: Any) -> Any:
    """Nothing happened yet."""
    watch.open[:, :] = 0
    for pool in range(len(watch.open)):
        watch.open[pool, _KNOWN] = misc[_CONVERGED]
        watch.open[pool, _LEAST_DEFERRED] = _LARGEST
        watch.open[pool, _LEAST_UNOWNED] = _LARGEST
        watch.open[pool, _LEAST_RESIDUAL] = _LARGEST
        watch.open[pool, _MOST_RESIDUAL] = -_LARGEST
        watch.open[pool, _LEAST_DRIFT] = _LARGEST
        watch.open[pool, _LEAST_GAUGE] = _LARGEST
        for column in range(_TALLIES):
            watch.before[pool, column] = pools.tally[pool, column]
    watch.open[0, _DOUBLES] = misc[_DOUBLES_SO_FAR]


@kernel
def _slots_not_written(pool: Any, misc: Any, pools: Any, detail: Any, requests: Any, nodes: Any, out: Any) -> Any:
    """Tail slots of all block tables in a pool, and slots reserved for tokens behind the prompt, into `out[0]` and
    `out[1]`. Slots of a prompt that is being computed are as good as written."""
    out[0] = 0
    out[1] = 0
    tokens = pools.unit_tokens[pool]
    left = len(requests.id) - misc[_SLOTS_LEFT]
    for row in range(len(requests.id)):
        if left == 0:
            break
        if requests.id[row] == 0:
            continue
        left -= 1
        if requests.units[row, pool] == 0:
            continue
        computed = computed_tokens(requests, row, misc[_STEP_COUNT])
        end = end_of_table(row, pool, pools, detail, requests, nodes)
        units = np.int64(requests.units[row, pool]) // pools.groups[pool]
        _, tail, reserved = slots_of_table(units, end, tokens, computed)
        out[0] += tail * pools.groups[pool]
        out[1] += max(reserved - max(requests.prompt[row] - computed, 0), 0) * pools.groups[pool]


@kernel
def close_window(end: Any, misc: Any, pools: Any, detail: Any, requests: Any, nodes: Any, watch: Any) -> Any:
    """Append a row for each pool, of the window that ends at `end`; the caller made sure of room."""
    if misc[_STALE]:
        recount(misc, detail, requests, nodes)
    watch.used[_STARVED_NOW] = 0
    for at in range(len(requests.id)):
        watch.used[_STARVED_NOW] += requests.id[at] != 0 and requests.starved[at] > 0
    for pool in range(1, misc[_POOLS] + 1):
        row = watch.windows[watch.used[_WINDOWS]]
        watch.used[_WINDOWS] += 1
        for column in range(_COLUMNS):
            of_stream = _FIRST_OF_STREAM <= column < _AFTER_STREAM or _FIRST_OF_ERROR <= column < _AFTER_ERROR
            row[column] = watch.open[0 if of_stream else pool, column]
        row[_BEGIN] = watch.used[_BEGUN]
        row[_END] = end
        row[_POOL] = pool
        row[_KNOWN] = misc[_CONVERGED] and watch.open[0, _KNOWN]
        row[_W_FRAME] = misc[_FRAME]
        row[_W_RUNNING] = misc[_RUNNING_NOW]
        row[_W_WAITING] = misc[_WAITING_NOW]
        capacity, counts, tokens = pools.capacity[pool], pools.counts, pools.unit_tokens[pool]
        row[_CAPACITY] = capacity
        row[_UNIT_TOKENS] = tokens
        row[_ACTIVE] = counts[pool, ACTIVE]
        row[_CACHED] = counts[pool, CACHED]
        row[_PINNED] = counts[pool, PINNED]
        row[_DEFERRED] = counts[pool, DEFERRED]
        row[_FREE] = counts[pool, FREE]
        row[_UNOWNED] = counts[pool, UNOWNED]
        if not watch.used[_NAMING] >> pool & 1:
            row[_UNOWNED] = row[_LEAST_UNOWNED] = -1
        row[_EVICTED] = pools.tally[pool, _TALLY_EVICTED] - watch.before[pool, _TALLY_EVICTED]
        row[_DOUBLES] = misc[_DOUBLES_SO_FAR] - watch.open[0, _DOUBLES]
        available = counts[pool, FREE] + counts[pool, CACHED]
        for at in range(len(requests.id)):
            if requests.id[at] == 0:
                continue
            if requests.starved[at] > 0:
                row[_STARVED] += 1
            elif requests.state[at] == _WAITING:
                need = (requests.prompt[at] + tokens) // tokens
                row[_FITTING] += need <= available and need * _FAR_LESS <= misc[_HEAD_NOW]
    begin_window(misc, pools, watch)


@kernel
def next_window(time: Any, misc: Any, pools: Any, detail: Any, requests: Any, nodes: Any, watch: Any) -> Any:
    """A frame at `time` is behind the open window: close that, unless it is the first, and begin the frame's."""
    if watch.used[_OPEN_END] > 0:
        close_window(watch.used[_OPEN_END], misc, pools, detail, requests, nodes, watch)
        watch.used[_BEGUN] = watch.used[_OPEN_END]
    else:
        begin_window(misc, pools, watch)
        watch.used[_BEGUN] = time - 1  # a window holds what is behind its begin, and so this frame
    watch.used[_OPEN_END] = ((time - 1) // WINDOW_NS + 1) * WINDOW_NS


@kernel
def log_refusal(
    words: Any, at: Any, pool: Any, misc: Any, pools: Any, detail: Any, requests: Any, nodes: Any, watch: Any
) -> Any:
    """Append a refused allocation with the state around it; the caller made sure of room."""
    request = np.int64(words[at + 1])
    row = find_row(requests, request - 1) if request != _ABSENT else -1
    out = watch.refusals[watch.used[_REFUSALS]]
    watch.used[_REFUSALS] += 1
    watch.used[_SEQ] += 1
    out[_R_TIME] = misc[_TIME]
    out[_R_KIND] = _REFUSED
    out[_R_FRAME] = misc[_FRAME]
    out[_R_WORD] = at - misc[_FRAME_START]
    # a request that waits already, or that nobody knows, begins no wait
    out[_R_SEQ] = watch.used[_SEQ] if row >= 0 and requests.starved[row] == 0 else 0
    out[_R_POOL] = pool
    out[_R_REQUEST] = requests.id[row] if row >= 0 else 0
    out[_R_CLASS] = requests.class_id[row] if row >= 0 else -1
    for k in range(7):  # need to outcome
        word = np.int64(words[at + _NEED_AT + k])
        out[_R_NEED + k] = -1 if word == _ABSENT else word - 1
    out[_R_CAPACITY] = pools.capacity[pool]
    out[_R_UNIT_TOKENS] = pools.unit_tokens[pool]
    out[_R_ACTIVE] = pools.counts[pool, ACTIVE]
    out[_R_PINNED] = pools.counts[pool, PINNED]
    out[_R_DEFERRED] = pools.counts[pool, DEFERRED]
    out[_R_UNOWNED] = pools.counts[pool, UNOWNED] if watch.used[_NAMING] >> pool & 1 else -1
    _slots_not_written(pool, misc, pools, detail, requests, nodes, out[_R_TAIL : _R_RESERVED + 1])
    out[_R_KNOWN] = misc[_CONVERGED]
    out[_R_RUNNING] = misc[_RUNNING_NOW]
    out[_R_WAITING] = misc[_WAITING_NOW]
    out[_R_MID_STREAM] = row >= 0 and requests.state[row] == _RUNNING
    out[_R_SINCE] = misc[_TIME]
    if out[_R_SEQ]:
        _claim(row, requests, watch)
        watch.of_row[row, 1] = out[_R_SEQ]
        watch.used[_STARVED_NOW] += 1


@kernel
def _claim(row: Any, requests: Any, watch: Any) -> Any:
    """What is remembered of a row is about the request in it now."""
    if watch.of_row[row, 0] != requests.id[row]:
        watch.of_row[row, 0] = requests.id[row]
        watch.of_row[row, 1] = 0
        watch.of_row[row, 2] = 0


@kernel
def ends_wait(words: Any, at: Any, kind: Any, misc: Any, requests: Any, watch: Any) -> Any:
    """A record that ends a wait for memory, before it is applied: the request was let in or given more, or it ended."""
    if kind not in (_K_ASSIGN, _K_ASSIGN_RUN, _K_ADMITTED, _K_FINISHED, _K_RESTATED):
        return
    row = find_row(requests, np.int64(words[at + 1]))
    if row < 0 or requests.starved[row] == 0:
        return
    if kind in (_K_ASSIGN, _K_ASSIGN_RUN, _K_RESTATED) and requests.state[row] != _RUNNING:
        return
    observe_wait(requests, misc[_TIME] - requests.starved[row])
    _claim(row, requests, watch)
    out = watch.refusals[watch.used[_REFUSALS]]
    watch.used[_REFUSALS] += 1
    out[:] = -1
    out[_R_TIME] = misc[_TIME]
    out[_R_KIND] = _ENDED
    out[_R_FRAME] = misc[_FRAME]
    out[_R_SEQ] = watch.of_row[row, 1]
    out[_R_REQUEST] = requests.id[row]
    out[_R_SINCE] = requests.starved[row]
    requests.starved[row] = 0
    watch.used[_STARVED_NOW] = max(watch.used[_STARVED_NOW] - 1, 0)


@kernel
def saw_step(misc: Any, watch: Any) -> Any:
    """A step ended; `misc` still has the time of the one before it in LAST_STEP."""
    now = watch.open[0]
    since = min(misc[_TIME] - misc[_LAST_STEP], np.int64(WINDOW_NS)) if misc[_LAST_STEP] > 0 else 0
    now[_STEPS] += 1
    now[_PREFILL] += misc[_PREFILL_NOW]
    if misc[_PREFILL_NOW] + misc[_DECODE_NOW] > 0:
        now[_PROGRESS] += 1
    elif misc[_WAITING_NOW] > 0:
        now[_STUCK_NS] += since


@kernel
def saw_hashes(words: Any, at: Any, n: Any, row: Any, requests: Any, watch: Any) -> Any:
    """Names of pages of the request in `row` (-1: it has none): which of them were asked for before.

    Pages are sampled: one in _SAMPLED_TOKENS tokens at the begin of a prompt, fewer behind. They are looked up and
    remembered in a table of so many names that the oldest are overwritten; a page stands at the same place in every
    prompt that has it, so sampling by place finds it again.
    """
    size = np.int64(words[at + _H_TOKENS]) - 1
    first = np.int64(words[at + _H_FIRST]) - 1
    stride = max(_SAMPLED_TOKENS // max(size, 1), 1)
    known = np.int64(0)
    k, pages = -first % stride, (n - _HEAD_WORDS + 1) // 2
    while k < pages:
        place = at + _HEAD_WORDS + 2 * k
        name = np.uint64(words[place]) | np.uint64(words[place + 1]) << np.uint64(32)
        slot = np.int64(name * _GOLDEN >> np.uint64(_SEEN_SHIFT))
        if watch.seen[slot] == name:
            known = (first + k + 1) * size
        watch.seen[slot] = name
        k += stride if (first + k) * size < _OFTEN_UNTIL else stride * _SELDOM
    if row >= 0:
        _claim(row, requests, watch)
        watch.of_row[row, 2] = max(watch.of_row[row, 2], known)


@kernel
def saw_hit(hit: Any, lookup: Any, row: Any, unit_tokens: Any, requests: Any, watch: Any) -> Any:
    """A lookup of the prefix cache: what was asked for before and is not there any more was forgotten."""
    now = watch.open[0]
    now[_LOOKUP] += lookup
    now[_HIT] += hit
    if row >= 0 and watch.of_row[row, 0] == requests.id[row]:
        whole = watch.of_row[row, 2] // unit_tokens * unit_tokens  # no more could ever be found
        now[_FORGOTTEN] += max(min(whole, lookup) - hit, 0)
