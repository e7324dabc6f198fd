"""The tables of a Parquet export: every column with its type, its unit and what it means.

One description for the files, for their metadata and for docs/export.md. A version is never changed: columns may be
added to it, none changes its meaning. Nothing here imports pyarrow; `columns.py` makes Arrow types of these.

    word    text of few different values, dictionary-encoded      int, float, bool   64 bits, nullable
    text    any text                                              time               ns since 1970, UTC
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvmon.replay.timeline_model import POOL_CURVES, STREAM_CURVES

__all__ = ["EVENTS", "FAILURES", "HOLDERS", "REQUESTS", "SCHEMA_VERSION", "STATES", "STREAMS", "TABLES", "Column"]

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Column:
    """`unit` is empty for what counts nothing."""

    name: str
    type: Literal["word", "text", "int", "small", "float", "bool", "time"]
    unit: str
    meaning: str


def _columns(text: str) -> tuple[Column, ...]:
    """A line a column: name, type, unit (- for none), what its name does not say."""
    columns = []
    for line in text.strip().splitlines():
        name, type_, unit, *meaning = line.split(None, 3)
        columns.append(Column(name, type_, "" if unit == "-" else unit, "".join(meaning)))  # type: ignore[arg-type]
    return tuple(columns)


_WHOSE = _columns(
    """
    capture       word  -        name of the capture file without its ending, or of the recording directory
    engine        word  -        name of the engine
    rank          small -        data-parallel rank
    life          word  -        one life of one rank: `<engine>-<rank>`, with `#2` behind it for the second one
    """
)
_WHEN = _columns(
    """
    time_ns       int   ns       the engine's monotonic clock, end of the frame (step) in which it happened
    time          time  -        the same on the wall clock; absent where the capture has none
    """
)

EVENTS = (
    *_WHOSE,
    *_WHEN,
    *_columns(
        """
    frame         int   -        number of the frame; with `word` it orders the events of a life
    word          int   words    place of the record in its frame
    kind          word  -        what happened: see docs/export.md
    pool          small -        number of the pool that it is about
    request       int   -        number of the request that it is about
    unit          int   -        first unit of the run; unit numbers count from 1
    units         int   units    how many neighbouring units the run has; a record of several runs is several rows
    class         int   -        class of a request that arrived
    reason        word  -        why an allocation was refused, or how a request ended
    outcome       word  -        what the engine did about a refused allocation
    contiguity    word  -        whether the refused block had to be in one piece
    need          int   units    that had to be free at once; of a step: what the head of the queue waits for
    free          int   units    that were free at a refused allocation, as the engine said
    evictable     int   units    that were evictable then
    largest_free  int   units    of the largest block that could be granted then
    arrived_ns    int   ns       when the request arrived
    prompt_tokens int   tokens   of the request
    token_limit   int   tokens   that it may generate
    intended_tokens int tokens   that it was going to generate, where whoever made the traffic said so
    output_tokens int   tokens   that it has generated
    computed_tokens int tokens   whose keys and values are written
    decoding      bool  -        every later step adds a token without a word
    reserved_tokens int tokens   slots set aside for the request
    lookup_tokens int   tokens   that were looked up in the prefix cache
    hit_tokens    int   tokens   that were found there
    lost_tokens   int   tokens   to be computed again after a preemption
    follows       int   -        request whose end this one waited for
    pause_ns      int   ns       behind that end
    patience_ns   int   ns       for which its client waits
    page_tokens   int   tokens   that a name of a page stands for
    first_page    int   pages    before the first named one
    pages         int   pages    that are named; the names themselves are not exported
    layer_group   int   -        group of layers that the units are for
    start_ns      int   ns       when the step began
    duration_ns   int   ns       of the step
    prefill_tokens int  tokens   that the step computed of prompts
    decode_tokens int   tokens   that it generated
    context_tokens int  tokens   of keys and values that it read
    running       int   requests at the end of the step
    waiting       int   requests at the end of the step
    capacity      int   units    of a pool that was attached or changed its size
    from_unit     int   -        first unit of the block that was moved
    from_units    int   units    of it
    copied_tokens int   tokens   that moving it copied
    other_pool    small -        pool that units came from or went to
    claimed_available int units  that the engine says it has
    claimed_evictable int units  as above
    claimed_protected int units  as above
    claimed_in_flight int units  as above
    claimed_usage float ratio    the engine's own gauge
    asked_bytes   int   bytes    that an allocation of the engine's framework asked for in vain
    lost_records  int   records  that the probe could not write
    detail        text  -        JSON: what the engine says of itself, or of a pool
    """
    ),
)

_EXTREMES = ("least", "most", "mean")
_NO_EXTREMES = ("capacity", "residual", "drift")


def _of_curves(curves: dict[str, str], meanings: dict[str, str]) -> tuple[Column, ...]:
    columns = []
    for name, unit in curves.items():
        type_: Literal["int", "float"] = "float" if unit in ("ratio", "s") else "int"
        columns.append(Column(name, type_, unit, meanings[name]))
        if name not in _NO_EXTREMES:
            columns += [
                Column(f"{name}_{part}", "float" if part == "mean" else type_, unit, f"{words} within the interval")
                for part, words in zip(_EXTREMES, ("the least", "the most", "mean by time"), strict=True)
            ]
    return tuple(columns)


_POOL_MEANINGS = {
    "capacity": "of the pool",
    "active": "with a reference, at the end of the interval, as every number without another word",
    "cached": "reusable prefix content that may be evicted",
    "pinned": "cached and protected",
    "deferred": "freed by their request, still held for a transfer",
    "free": "hold nothing; active to free sum to the capacity",
    "available": "free and cached",
    "largest_free": "of the largest block that could be granted",
    "largest_after_eviction": "of the largest block once everything evictable is evicted",
    "free_runs": "of neighbouring free units",
    "external_fragmentation": "1 - longest free run / free units",
    "lost_at_head": "share of the blocks of the head's size that would fit but do not, while the head waits",
    "written": "that hold keys and values",
    "tail": "the unfilled rest of last pages",
    "reserved": "set aside for tokens to come",
    "page_utilization": "written slots of those of active units",
    "unowned": "active units that no live request names",
    "residual": "sum of the engine's claims less the capacity: negative = leak",
    "drift": "the engine's claim less the fold",
}
_STREAM_MEANINGS = {
    "running": "as the last step said; the numbers of the stream stand in the row of each pool",
    "waiting": "as the last step said",
    "preempted": "lost their memory and do not run again yet",
    "waiting_for_memory": "have a refused allocation that they have not got over",
    "head_need": "that the head of the queue waits for; 0 = nobody waits for memory",
    "step_seconds": "duration of the last step in the interval; the mean is over steps",
}

STATES = (
    *_WHOSE,
    *_columns(
        """
    begin_ns      int   ns       begin of the interval on the engine's monotonic clock
    time_ns       int   ns       end of the interval: one frame, or what --every says
    time          time  -        the same on the wall clock; absent where the capture has none
    known         float ratio    share of the interval of which the whole past is known; what is not known is absent
    pool          small -        number of the pool
    pool_name     word  -        its name
    tier          word  -        gpu, cpu, disk or remote
    layout        word  -        paged, contiguous, token or arena
    unit_bytes    int   bytes    of a unit, absent where not known
    unit_tokens   int   tokens   of a unit
    """
    ),
    *_of_curves(POOL_CURVES, _POOL_MEANINGS),
    *_columns(
        """
    allocated     int   units    handed out within the interval
    released      int   units    whose last reference went
    evicted       int   units    whose content was forgotten to make room
    refused       int   -        allocations that were refused
    """
    ),
    *_of_curves(STREAM_CURVES, _STREAM_MEANINGS),
    *_columns(
        """
    steps         int   -        that ended within the interval, as all that follows
    prefill_tokens int  tokens   computed of prompts
    decode_tokens int   tokens   generated
    arrived       int   requests
    finished      int   requests
    preemptions   int   -
    recomputed_tokens int tokens to be computed again
    lookup_tokens int   tokens   looked up in the prefix cache
    hit_tokens    int   tokens   found there
    errors        int   -        of another allocator of the engine
    memory_wait_s float s        request-seconds spent waiting for memory
    """
    ),
)

REQUESTS = (
    *_WHOSE,
    *_columns(
        """
    request       int   -        number of the request in its life
    class         int   -        by the operator's rule; absent where its arrival was not seen and nobody restated it
    arrived_ns    int   ns       on the engine's monotonic clock, as all that ends in _ns and is no duration
    arrived       time  -        on the wall clock; absent where the capture has none
    admitted_ns   int   ns       first admission; absent where there was none, or it is not known any more
    first_token_ns int  ns       end of the step that gave the first token
    finished_ns   int   ns       end; absent where it has not ended
    finish_reason word  -        stop, length, abort, error, refused, unknown; unknown without an end: that is in a gap
    queued_ns     int   ns       duration: arrival to first admission
    ttft_ns       int   ns       duration: arrival to first token
    memory_wait_ns int  ns       duration: waits for KV memory, from a refused allocation until it was got over
    prompt_tokens int   tokens
    token_limit   int   tokens   that it may generate
    intended_tokens int tokens   that it was going to generate, where whoever made the traffic said so
    output_tokens int   tokens   that it has generated when it ended
    lookup_tokens int   tokens   looked up in the prefix cache before its first preemption
    hit_tokens    int   tokens   found there
    refused       int   -        allocations that were refused
    preemptions   int   -
    lost_tokens   int   tokens   to be computed again after preemptions
    from_before   bool  -        it was there when the export begins: of what came before, only the state is known
    incomplete    bool  -        something is missing of its life: counts and waits are at least these
    """
    ),
)

FAILURES = (
    *_WHOSE,
    *_WHEN,
    *_columns(
        """
    number        int   -        its place among the refused allocations of its life: `kvmon replay --at failure:N`
    frame         int   -        number of the frame
    word          int   words    place of the record in its frame
    pool          small -        number of the pool
    pool_name     word  -        its name
    request       int   -        that was refused memory
    class         int   -        of that request
    reason        word  -        as the engine said
    cause         word  -        the verdict: what explains it, `kvmon explain CAUSE` says more
    outcome       word  -        what the engine did about it
    contiguity    word  -        whether the block had to be in one piece
    mid_stream    bool  -        the request was running
    waited_ns     int   ns       duration of the wait that it began; absent where it began none, or it had not ended
    waits         bool  -        it began a wait
    known         bool  -        the numbers below rest on the whole past
    need          int   units    that had to be free at once
    free          int   units
    evictable     int   units    cached, that may be evicted
    largest_free  int   units    of the largest block that could be granted
    capacity      int   units    of the pool
    active        int   units    with a reference
    pinned        int   units
    deferred      int   units
    unowned       int   units    active without a live owner
    tail          int   slots    the unfilled rest of last pages
    reserved      int   slots    set aside for tokens to come
    running       int   requests
    waiting       int   requests
    unit_bytes    int   bytes    of a unit, absent where not known
    unit_tokens   int   tokens   of a unit
    """
    ),
)

HOLDERS = (
    *_WHOSE,
    *_WHEN,
    *_columns(
        """
    frame         int   -        number of the frame, as in failures
    pool          small -        number of the pool
    class         int   -        of the requests
    state         word  -        of the requests: waiting, running or preempted
    requests      int   requests of this class and state that hold units
    units         int   units    that they hold; one that several requests share counts for each
    unit_bytes    int   bytes    of a unit, absent where not known
    """
    ),
)

STREAMS = (
    *_WHOSE,
    *_columns(
        """
    adapter       word  -        what recorded it
    engine_version word -        as the adapter said
    fidelity      word  -        what the adapter sees: exact, sampled, counts or cache_only
    begin_ns      int   ns       first frame of the export on the engine's monotonic clock
    end_ns        int   ns       last frame
    begin         time  -        on the wall clock; absent where the capture has none
    end           time  -        on the wall clock
    steps         int   -        within the export
    refused       int   -        allocations that were refused
    verdict       word  -        what explains most, or healthy, as `kvmon replay` says of the same time
    summary       text  -        that verdict in words with numbers
    pools         small -        how many it has
    gaps          int   -        places in which something is missing
    lost_records  int   records  that the probe could not write
    missing_frames int  frames
    damaged       int   frames   that were there and are not sound
    damage        text  -        what could not be read, in words
    config        text  -        JSON: what the engine says of itself
    """
    ),
)

TABLES: dict[str, tuple[Column, ...]] = {
    "events": EVENTS,
    "states": STATES,
    "requests": REQUESTS,
    "failures": FAILURES,
    "holders": HOLDERS,
    "streams": STREAMS,
}
"""Columns by table."""
