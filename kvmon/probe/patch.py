"""Reversible patching: put hooks around an engine's own functions, and take them off again without a trace.

Invariant: with every hook switched off the engine behaves as if nobody had been here: a hook forwards the caller's
arguments unchanged, returns what the original returned and raises what it raised. A hook body that fails is switched
off and counted, alone; it is never asked twice. Nothing here knows any engine.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

__all__ = ["Patches"]

Function = Callable[..., Any]

_ABSENT = object()


class _Hook:
    """The switch of one pair of bodies."""

    __slots__ = ("on",)

    def __init__(self) -> None:
        self.on = True


class Patches:
    """All patches of one adapter. `count_failure` is called once for each hook body that fails, with its name."""

    def __init__(self, count_failure: Callable[[str], None] | None = None) -> None:
        self._count_failure = count_failure
        self._applied: list[tuple[Any, str, object, object]] = []
        self._hooks: list[_Hook] = []
        self.failed: list[str] = []

    def wrap(self, owner: Any, name: str, make: Callable[[Function], Function]) -> None:
        """Replace `owner.name` (a class, an instance or a module) with `make(original)`.

        `make` gets the plain function, for a static or class method the one inside, and what it returns is put in the
        same wrapping. For hooks that must be as fast as they can; `hook` is safer. Raises AttributeError where there
        is no such name.
        """
        own, replacement = _of_class(owner, name, make) if _has_methods(owner) else _of_instance(owner, name, make)
        setattr(owner, name, replacement)
        self._applied.append((owner, name, own, _present(owner, name)))

    def hook(self, owner: Any, name: str, *, before: Function | None = None, after: Function | None = None) -> None:
        """Call `before(*args, **kwargs)` ahead of the original and `after(result, *args, **kwargs)` when it returned.

        Arguments are what the caller gave, `self` included. What the bodies return is not looked at; a body that
        raises is switched off with its pair. When the original raises, `after` is not called.
        """
        hook, label = _Hook(), f"{getattr(owner, '__name__', type(owner).__name__)}.{name}"

        def make(original: Function) -> Function:
            @wraps(original)
            def hooked(*args: Any, **kwargs: Any) -> Any:
                if before is not None and hook.on:
                    try:
                        before(*args, **kwargs)
                    except Exception:  # a guest: whatever the body met, the engine goes on
                        self._fail(hook, label)
                result = original(*args, **kwargs)
                if after is not None and hook.on:
                    try:
                        after(result, *args, **kwargs)
                    except Exception:  # a guest, as above
                        self._fail(hook, label)
                return result

            return hooked

        self.wrap(owner, name, make)
        self._hooks.append(hook)

    def undo(self) -> list[str]:
        """Take every patch off, last one first; the names of those that stay because somebody patched on top of them.

        Those are switched off, so that what stays only forwards.
        """
        for hook in self._hooks:
            hook.on = False
        left = []
        while self._applied:
            owner, name, own, installed = self._applied.pop()
            if _present(owner, name) is not installed:
                left.append(f"{getattr(owner, '__name__', type(owner).__name__)}.{name}")
            elif own is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, own)
        self._hooks.clear()
        return left

    def _fail(self, hook: _Hook, label: str) -> None:
        hook.on = False
        self.failed.append(label)
        if self._count_failure is not None:
            self._count_failure(label)


def _has_methods(owner: Any) -> bool:
    return isinstance(owner, type | ModuleType)


def _present(owner: Any, name: str) -> object:
    """What stands under this name now; `vars` of an instance is never asked for, see `_of_instance`."""
    return vars(owner).get(name, _ABSENT) if _has_methods(owner) else getattr(owner, name, _ABSENT)


def _of_class(owner: Any, name: str, make: Callable[[Function], Function]) -> tuple[object, object]:
    """What a class or module had of its own under this name, and what takes its place."""
    raw = inspect.getattr_static(owner, name)
    own = vars(owner).get(name, _ABSENT)
    if isinstance(raw, staticmethod | classmethod):
        return own, type(raw)(make(raw.__func__))
    return own, make(raw)


def _of_instance(owner: Any, name: str, make: Callable[[Function], Function]) -> tuple[object, object]:
    """The same of an instance; the original is what a caller would get, bound.

    Its `__dict__` stays unasked for: CPython 3.11 and 3.12 keep attributes beside the object until somebody asks, and
    every later look at any of them is slower from then on (5 % of a vLLM scheduler's time).
    """
    current = getattr(owner, name)
    inherited = getattr(type(owner), name, _ABSENT)
    is_own = current is not inherited and getattr(current, "__func__", _ABSENT) not in (
        inherited,
        getattr(inherited, "__func__", inherited),
    )
    return current if is_own else _ABSENT, make(current)
