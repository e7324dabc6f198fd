"""The adapter of transformers' continuous batching: exact, every block of every group of layers.

    recording = kvmon.attach(manager, directory="/run/kvmon")          a ContinuousBatchingManager, started or not
    kvmon.attach("transformers", directory="/run/kvmon")               every manager that generates from now on

Importing this imports neither transformers nor torch.
"""

from __future__ import annotations

from kvmon.adapters.transformers.adapter import ADAPTER
from kvmon.adapters.transformers.declaration import DECLARATION

__all__ = ["ADAPTER", "DECLARATION"]
