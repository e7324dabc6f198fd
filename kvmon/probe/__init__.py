"""Inside the engine: record what the allocator does, at about a microsecond, without ever hurting the engine.

Standard library only. `StreamProbe` records one rank into a directory; see its methods for what can be said.
"""

from __future__ import annotations

from kvmon.probe.audit import AuditSource, RequestPicture
from kvmon.probe.emitter import Emitter, Loss
from kvmon.probe.hashing import PageHasher
from kvmon.probe.patch import Patches
from kvmon.probe.pool import PoolProbe
from kvmon.probe.stream import PoolInfo, StreamProbe

__all__ = [
    "AuditSource",
    "Emitter",
    "Loss",
    "PageHasher",
    "Patches",
    "PoolInfo",
    "PoolProbe",
    "RequestPicture",
    "StreamProbe",
]
