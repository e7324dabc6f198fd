"""Hooks that are written by hand, because they are hot or must also run when the original raises: their bodies.

A body that fails is switched off, alone, and named; the engine goes on as if it were not there.
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


class Hooks(Patches):
    """All patches of one engine. `broken` is called once with the name of each hook whose body failed."""

    def __init__(self, broken: Callable[[str], None]) -> None:
        super().__init__(broken)
        self._broken = broken
        self._bodies: list[Body] = []

    def body(self, label: str, run: Function) -> Body:
        """A body for a wrapper that `wrap` puts on."""
        body = Body(label, run, self._broken)
        self._bodies.append(body)
        return body

    def undo(self) -> list[str]:
        """Restore everything and switch off what stays; see `Patches.undo`."""
        for body in self._bodies:
            body.on = False
        self._bodies.clear()
        return super().undo()
