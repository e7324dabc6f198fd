"""The terms that a report uses, each in a sentence; one place for every report."""

from __future__ import annotations

__all__ = ["GLOSSARY"]

GLOSSARY: tuple[tuple[str, str], ...] = (
    ("pool", "the memory that one allocator of the engine hands out, divided into units"),
    ("unit", "the smallest piece that is handed out: a page, a slot or a granule"),
    ("run", "a maximal stretch of adjacent free units"),
    ("active", "a unit that at least one request refers to"),
    ("reserved", "an active unit set aside for tokens to come, with nothing written in it yet"),
    ("cached", "a unit that no request refers to and that keeps a reusable prefix; it can be evicted"),
    ("pinned", "cached and protected from eviction"),
    ("deferred", "freed by its request and still held, for a transfer for example"),
    ("free", "a unit with nothing in it"),
    ("available", "free and cached together: what can be had by evicting"),
    ("largest free block", "the largest block that the allocator could have granted at that moment, without evicting"),
    (
        "external fragmentation",
        "1 - longest free run / free memory; a trend that is blind to the size of requests. In a pool that needs no "
        "contiguity it blocks nothing",
    ),
    (
        "lost(s)",
        "of the requests of size s that would fit into the free memory were it one block, the share that does not fit "
        "as it lies",
    ),
    ("written, tail, reserved", "slots of active units with a token; the unfilled rest of a last page; set aside"),
    ("refused allocation", "counted once for each wait of a request, not for each time that it was tried again"),
    ("waiting for memory", "a request with a refused allocation that it has not got over"),
    ("preemption", "a running request lost its memory to another one and is computed again later"),
    ("residual", "what the engine says that it has, less the capacity: negative is a leak, positive a double free"),
    ("drift", "units that the events put into another state than the engine's own count: events were missed"),
    ("unowned", "active units that no live request owned when a step closed"),
)
