"""Follow recordings.

Read what is new, fold it, count it. For everything that looks at running engines; no metrics here.
"""

from __future__ import annotations

from kvmon.exporter.follow.continuation import Continuation, Saved
from kvmon.exporter.follow.directory import DirectoryFollower
from kvmon.exporter.follow.recount import Counts
from kvmon.exporter.follow.stream import DEFAULT_STALL_SECONDS, Life, Progress, StreamFollower, Surveyed

__all__ = [
    "DEFAULT_STALL_SECONDS",
    "Continuation",
    "Counts",
    "DirectoryFollower",
    "Life",
    "Progress",
    "Saved",
    "StreamFollower",
    "Surveyed",
]
