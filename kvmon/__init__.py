"""kvmon watches the KV-cache allocator of an LLM inference engine, live or after a crash.

Invariant: importing this package costs milliseconds and brings in the standard library alone, because the probe lives
in somebody else's process. Public names are therefore resolved on first use; nothing here imports a subpackage eagerly.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvmon.adapters.registry import attach, detach
    from kvmon.errors import KvmonError

__all__ = ["KvmonError", "__version__", "attach", "detach"]

__version__ = "0.1.0"

# Public name -> the module that defines it.
_LAZY = {
    "KvmonError": "kvmon.errors",
    "attach": "kvmon.adapters.registry",
    "detach": "kvmon.adapters.registry",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use; AttributeError for anything else."""
    if name not in _LAZY:
        raise AttributeError(f"module 'kvmon' has no attribute '{name}'")
    value: object = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, resolved or not."""
    return sorted(__all__)
