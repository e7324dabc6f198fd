"""Every kind of event, with its permanent number and the fields it carries.

The vocabulary that everything else is a fold over. A number is never reused and a field never changes its meaning;
new fields are appended and old readers skip what they do not know (the length of a record is in its header). Nothing
here touches bytes: `kvmon.events.wire` does.

Field types, in words of 32 bits (`wire.py` draws them):

    count       0 .. 2**32 - 3, one word                     wide        0 .. 2**62 - 1, two words
    maybe       a count that may be absent, one word         maybe_wide  a wide that may be absent, two words
    id          a request id >= 1, one word
    units       the rest: unit numbers >= 1                  status      the rest: one status word a unit
    hashes      the rest: 64-bit page hashes                 text        UTF-8 behind its length
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

__all__ = [
    "FAILURE_REASONS",
    "FIELDS",
    "FIRST_FIELDS",
    "UNIT_KINDS",
    "Contiguity",
    "FailureOutcome",
    "FailureReason",
    "Field",
    "FinishReason",
    "Kind",
    "RequestState",
]


class Kind(IntEnum):
    """What can happen. 1 to 9 act on units and have short forms on the wire; the rest carry the fields of `FIELDS`."""

    ALLOC = (
        1  # units leave the free list (a cached unit loses its content: that is the lazy eviction), one reference each
    )
    FREE = 2  # units return to the free list; the engine says nobody refers to them any more
    SHARE = 3  # one more reference each
    UNSHARE = 4  # one reference less each; at none left the unit is cached when it has content, else free
    CACHE_INSERT = 5  # the content of these units can be found again
    EVICT = 6  # the content of these units is forgotten
    PIN = 7  # cached units protected from eviction
    UNPIN = 8
    DEFER = 9  # unreferenced, but held for a transfer until FREE

    STEP = 32  # closes a frame: one engine step
    TICK = 33  # closes a frame outside of a step
    ENGINE_CONFIG = 34
    POOL_ATTACHED = 35
    POOL_CHANGED = 36
    POOL_RESET = 37  # every content of the pool forgotten (prefix cache reset)

    REQUEST_ARRIVED = 40
    REQUEST_HASHES = 41  # keyed hashes of full pages, in the order of the prompt, then of what was generated
    REQUEST_ADMITTED = 42
    FIRST_TOKEN = 43
    REQUEST_PROGRESS = 44
    REQUEST_FINISHED = 45

    ASSIGN = 50  # units join a request's block table
    ASSIGN_RUN = 51  # the same for a run of units
    RESERVE = 52
    COMMIT = 53
    TRUNCATE = 54
    CACHE_HIT = 55

    ALLOC_FAILED = 60  # once per wait, not once per retry
    PREEMPTED = 61
    OFFLOADED = 62
    ONBOARDED = 63
    MIGRATED = 64  # a sequence moved to another block of the same pool (relocation); an ASSIGN names the new units
    COMPACTED = 65

    CLAIMS = 70
    ENGINE_ERROR = 71
    DEVICE_SAMPLE = 80

    AUDIT_SLICE = 90
    AUDIT_RUN = 91
    AUDIT_REQUEST = 92
    AUDIT_SWEEP = 93
    GAP = 94
    CHECKPOINT = 95


UNIT_KINDS = tuple(kind for kind in Kind if kind <= 9)
"""The kinds whose only payload is units."""


class FailureReason(IntEnum):
    """Why an allocation was refused; an adapter that cannot see it says UNKNOWN."""

    UNKNOWN = 0
    EXHAUSTED = 1
    NO_CONTIGUOUS_RUN = 2
    EVICTABLE_NOT_RECLAIMED = 3
    ALL_PINNED = 4
    NEVER_FITS = 5
    POOL_STARVED = 6
    PARTITION_FULL = 7
    WATERMARK = 8
    ACCOUNTING_ERROR = 9


FAILURE_REASONS = tuple(reason.name.lower() for reason in FailureReason)
"""Label values of the failure reasons, by number."""


class FailureOutcome(IntEnum):
    """What the engine did about a refused allocation."""

    UNKNOWN = 0
    WAITS = 1
    PREEMPTED_ANOTHER = 2
    REFUSED = 3
    PREEMPTED_ITSELF = 4
    ABORTED = 5


class Contiguity(IntEnum):
    """What a request needs of the addresses of its units."""

    NONE = 0
    PREFERRED = 1
    REQUIRED = 2


class FinishReason(IntEnum):
    """How a request ended."""

    UNKNOWN = 0
    STOP = 1
    LENGTH = 2
    ABORT = 3
    ERROR = 4
    REFUSED = 5


class RequestState(IntEnum):
    """Where a request is in its life."""

    UNKNOWN = 0
    WAITING = 1
    RUNNING = 2
    PREEMPTED = 3
    FINISHED = 4


class Field(NamedTuple):
    """One field of a record: its name and its type (see the module's docstring)."""

    name: str
    type: str


def _fields(text: str, appended: str = "") -> tuple[tuple[Field, ...], int]:
    """The fields, and how many of them every record has: the appended ones are newer than some recordings."""
    first, later = (tuple(Field(*part.split(":")) for part in part_of.split()) for part_of in (text, appended))
    return (*first, *later), len(first)


_LAYOUT: dict[Kind, tuple[tuple[Field, ...], int]] = {
    **{kind: _fields("units:units") for kind in UNIT_KINDS},
    # start and duration in ns; context = tokens of KV read; head_need = units the request at the head of the
    # queue waits for
    Kind.STEP: _fields(
        "seq:count words:count time:wide start:wide duration:wide prefill:count decode:count context:wide "
        "running:count waiting:count head_need:maybe checksum:sum"
    ),
    Kind.TICK: _fields("seq:count words:count time:wide checksum:sum"),
    Kind.ENGINE_CONFIG: _fields("text:text"),
    Kind.POOL_ATTACHED: _fields("pool:count restated:count text:text"),
    Kind.POOL_CHANGED: _fields("pool:count capacity_units:count"),
    Kind.POOL_RESET: _fields(""),
    # at = arrival in ns on the monotonic clock; what only whoever makes the traffic knows: the request whose end it
    # waited for, the pause behind that end, and how long its client waits (ns)
    Kind.REQUEST_ARRIVED: _fields(
        "request:id at:wide class_id:count prompt:count limit:maybe intended:maybe",
        "follows:maybe pause:maybe_wide patience:maybe_wide",
    ),
    # hash_tokens = tokens a page hash stands for
    Kind.REQUEST_HASHES: _fields("request:id hash_tokens:count first_page:count hashes:hashes"),
    Kind.REQUEST_ADMITTED: _fields("request:id"),
    Kind.FIRST_TOKEN: _fields("request:id"),
    # computed = tokens whose keys and values are written; decoding = 1 when every later step adds one without a word
    Kind.REQUEST_PROGRESS: _fields("request:id computed:count decoding:count"),
    Kind.REQUEST_FINISHED: _fields("request:id reason:count output:count intended:maybe"),
    Kind.ASSIGN: _fields("request:id group:count units:units"),
    Kind.ASSIGN_RUN: _fields("request:id group:count start:id units:id"),
    Kind.RESERVE: _fields("request:id tokens:count"),
    Kind.COMMIT: _fields("request:id tokens:count"),
    Kind.TRUNCATE: _fields("request:id tokens:count units:units"),
    Kind.CACHE_HIT: _fields("request:id hit_tokens:count lookup_tokens:count"),
    # need = all units that must be free at once; largest = G in units, absent where the adapter cannot know it
    Kind.ALLOC_FAILED: _fields(
        "request:maybe need:count contiguity:count free:count evictable:count largest:maybe reason:count outcome:count"
    ),
    Kind.PREEMPTED: _fields("request:id lost_tokens:count"),
    Kind.OFFLOADED: _fields("request:maybe to_pool:count units:units"),
    Kind.ONBOARDED: _fields("request:maybe from_pool:count units:units"),
    Kind.MIGRATED: _fields("request:id old_start:id old_units:count new_start:id new_units:count copied_tokens:count"),
    Kind.COMPACTED: _fields("moved_units:count"),
    # what the engine itself says it has, in units; usage = its own gauge in millionths
    Kind.CLAIMS: _fields("available:maybe evictable:maybe protected:maybe in_flight:maybe usage:maybe"),
    # bytes of the device, 0 where not known; reserved = held by the framework's allocator and given to nobody
    Kind.ENGINE_ERROR: _fields("error:count asked:wide free:wide reserved:wide"),
    # bytes of the device as its driver sees it (total 0 = not known), then of the framework's allocator in this process
    # (reserved 0 = not known): inactive = free in pieces between what is allocated, largest_free = the largest block
    # that is free in it; kv_pool and weights are parts of allocated; uuid as NVML spells it, empty where not known
    Kind.DEVICE_SAMPLE: _fields(
        "device:count used:wide free:wide total:wide reserved:wide allocated:wide inactive:wide",
        "largest_free:maybe_wide kv_pool:maybe_wide weights:maybe_wide retries:maybe ooms:maybe uuid:text",
    ),
    Kind.AUDIT_SLICE: _fields("start:id status:status"),
    Kind.AUDIT_RUN: _fields("start:id units:id status:status"),
    # restates a live request; its ASSIGN records follow and replace its block table
    Kind.AUDIT_REQUEST: _fields(
        "request:id state:count class_id:count at:wide prompt:count limit:maybe computed:count decoding:count "
        "reserved:maybe"
    ),
    Kind.AUDIT_SWEEP: _fields("sweep:count ended:count live:count"),
    Kind.GAP: _fields("lost:wide reason:count"),
    Kind.CHECKPOINT: _fields("version:count"),
}

FIELDS: dict[Kind, tuple[Field, ...]] = {kind: fields for kind, (fields, _) in _LAYOUT.items()}
"""Fields of each kind, in wire order."""
FIRST_FIELDS: dict[Kind, tuple[Field, ...]] = {kind: fields[:count] for kind, (fields, count) in _LAYOUT.items()}
"""Those that every record of a kind has. A record of an earlier kvmon may end behind them, or within the others."""
