"""What keeps a guest quiet: a method that was given values that make no sense counts them instead of raising.

Not for the hottest calls, which hold their own `try`: a wrapper costs another call. Nothing here knows what a method
records.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from kvmon.probe.emitter import Emitter, Loss

__all__ = ["guarded"]


class _HasEmitter(Protocol):
    @property
    def emitter(self) -> Emitter: ...


S = TypeVar("S", bound=_HasEmitter)
P = ParamSpec("P")


def guarded(method: Callable[Concatenate[S, P], None]) -> Callable[Concatenate[S, P], None]:
    """A method of a probe that never raises: whatever goes wrong in it is one record lost."""

    @wraps(method)
    def quiet(self: S, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception:  # a guest: no value may raise into the engine
            self.emitter.lose(1, Loss.VALUE)

    return quiet
