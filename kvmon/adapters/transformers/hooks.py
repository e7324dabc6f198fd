"""Hooks with a switch each: what is put around a method of an engine, and taken off again.

Beside `Patches.hook` there are bodies for hooks that are written by hand, because they are hot or must also run when
the original raises. A body that fails is switched off, alone, and named; the engine goes on as if it were not there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvmon.probe import Patches

__all__ = ["Body", "Hooks"]

Function = Callable[..., Any]


class Body:
    """Something that is called inside a hook and never raises; off, it does nothing."""

    __slots__ = ("_broken", "_label", "_run", "on")

    def __init__(self, label: str, run: Function, broken: Callable[[str], None]) -> None:
        self.on = True
        self._run, self._label, self._broken = run, label, broken

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Run it, unless it failed before."""
        if self.on:
            try:
                self._run(*args, **kwargs)
            except Exception:  # a guest: whatever the body met, the engine goes on
                self.on = False
                self._broken(self._label)


class Hooks:
    """All hooks of one engine. `broken` is called once with the name of each whose body failed."""

    def __init__(self, broken: Callable[[str], None]) -> None:
        self._broken = broken
        self._patches = Patches(broken)
        self._bodies: list[Body] = []

    def around(self, owner: Any, name: str, *, before: Function | None = None, after: Function | None = None) -> None:
        """See `Patches.hook`."""
        self._patches.hook(owner, name, before=before, after=after)

    def wrap(self, owner: Any, name: str, make: Callable[[Function], Function]) -> None:
        """See `Patches.wrap`; `make` uses bodies made here."""
        self._patches.wrap(owner, name, make)

    def body(self, label: str, run: Function) -> Body:
        """A body for a wrapper written by hand."""
        body = Body(label, run, self._broken)
        self._bodies.append(body)
        return body

    def undo(self) -> list[str]:
        """Restore everything and switch off what stays; see `Patches.undo`."""
        for body in self._bodies:
            body.on = False
        self._bodies.clear()
        return self._patches.undo()
