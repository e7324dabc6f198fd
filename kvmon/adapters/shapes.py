"""Looking at an engine's objects before anything is patched: whether they are what the hooks were written for.

Invariant: nothing here changes an engine or imports one.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator

__all__ = ["absent", "can_patch", "is_a", "other_shape", "parameters"]


def is_a(engine: object, name: str, module: str) -> bool:
    """Whether this is of the class `name` of a module that begins so, or of a class derived from it."""
    return any(kind.__name__ == name and kind.__module__.startswith(module) for kind in type(engine).__mro__)


def absent(label: str, owner: object, names: Iterable[str]) -> Iterator[str]:
    """Those of `names` that `owner` does not have."""
    return (f"{label}.{name}" for name in names if not hasattr(owner, name))


def parameters(owner: object, name: str) -> tuple[str, ...] | None:
    """Names of what a method takes; None where there is no such method, or nobody can tell."""
    try:
        return tuple(inspect.signature(getattr(owner, name)).parameters)
    except (AttributeError, TypeError, ValueError):
        return None


def can_patch(owner: object) -> bool:
    """Whether the object can have attributes of its own, so that a hook can stand before a method of its class."""
    return type(owner).__dictoffset__ != 0


def other_shape(missing: list[str]) -> str:
    """What is said of an engine that lacks these."""
    return f"has another shape than kvmon knows (no {', '.join(missing[:4])})"
