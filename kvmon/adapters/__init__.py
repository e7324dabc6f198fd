"""From engines to events: one file an engine, each translating what its allocator does into the calls of a probe."""

from __future__ import annotations
