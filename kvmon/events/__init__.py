"""What can happen in a KV-cache allocator: kinds with permanent numbers, their fields, and the words they travel as."""

from __future__ import annotations

from kvmon.events.kinds import (
    FAILURE_REASONS,
    FIELDS,
    FIRST_FIELDS,
    UNIT_KINDS,
    Contiguity,
    FailureOutcome,
    FailureReason,
    Field,
    FinishReason,
    Kind,
    RequestState,
)
from kvmon.events.wire import FORMAT_VERSION, Event, checksum, decode, encode, field_offsets, record_words, status_word

__all__ = [
    "FAILURE_REASONS",
    "FIELDS",
    "FIRST_FIELDS",
    "FORMAT_VERSION",
    "UNIT_KINDS",
    "Contiguity",
    "Event",
    "FailureOutcome",
    "FailureReason",
    "Field",
    "FinishReason",
    "Kind",
    "RequestState",
    "checksum",
    "decode",
    "encode",
    "field_offsets",
    "record_words",
    "status_word",
]
