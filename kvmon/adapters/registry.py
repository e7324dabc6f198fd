"""Every adapter of a foreign engine, and the two calls that users make: `kvmon.attach` and `kvmon.detach`.

    recording = kvmon.attach(engine, directory="/run/kvmon")     an engine object, recorded from now on
    kvmon.attach("vllm", directory="/run/kvmon")                 engines of this kind that are built from now on
    kvmon.detach()                                               everything that was attached, methods restored

Adapters are imported when one is named; listing them imports none of their engines.

Invariant: nothing here keeps an engine, nor what hangs on it. An attachment lives as long as what it patched.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from kvmon.adapters.base import Adapter, Attachment
from kvmon.adapters.settings import Settings
from kvmon.errors import ConfigError

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["ADAPTERS", "adapter", "adapters", "attach", "attached", "detach"]

ADAPTERS = {
    "vllm": "kvmon.adapters.vllm:ADAPTER",
    "transformers": "kvmon.adapters.transformers:ADAPTER",
}
"""Name of an engine -> where its adapter is, in the order of the docs."""


class _Options(TypedDict, total=False):
    """Fields of `Settings` that `attach` takes under their own names."""

    budget: int
    group_readable: bool
    class_by: str
    trust_untested: bool


_attached: list[tuple[Callable[[], object], weakref.ref[Attachment]]] = []
"""What was given to `attach`, a name or an engine as long as it lives; and what became of it, until that has ended."""


def adapter(name: str) -> Adapter:
    """The adapter of this name. Raises ConfigError for one that is not there."""
    if name not in ADAPTERS:
        raise ConfigError(f"no adapter is called '{name}': there are {', '.join(ADAPTERS)}")
    module, _, attribute = ADAPTERS[name].partition(":")
    found: Adapter = getattr(import_module(module), attribute)
    return found


def adapters() -> Iterator[Adapter]:
    """All of them."""
    return map(adapter, ADAPTERS)


def attach(
    engine: object,
    directory: str | os.PathLike[str] | None = None,
    name: str | None = None,
    **settings: Unpack[_Options],
) -> Attachment:
    """Record an engine, or (given the name of one, such as "vllm") every engine of that kind built from now on.

    `directory` defaults to KVMON_DIR, `name` is the engine's in metrics and reports; the other settings are the fields
    of `Settings`. Returns what can be detached again, also a context manager. Raises ConfigError for an engine that no
    adapter knows or that is attached already, InputError where its version or shape is refused.
    """
    chosen = _settings(directory, name, settings)
    if isinstance(engine, str):
        made = adapter(engine).arm(chosen)
    else:
        found = next((one for one in adapters() if one.recognises(engine)), None)
        if found is None:
            known = "; ".join(one.declaration.attaches for one in adapters())
            raise ConfigError(f"a {type(engine).__name__} is nothing that can be recorded: give one of: {known}")
        made = found.attach(engine, chosen)
    _attached[:] = [pair for pair in _attached if any(one() is not None for one in pair)]
    _attached.append((_weakly(engine), weakref.ref(made)))
    return made


def detach(engine: object = None) -> list[str]:
    """Restore every method that was patched for `engine` (everything without one) and end its recording in order.

    Returns the names of methods that somebody else patched on top of: those stay, switched off. Raises ConfigError
    where `engine` is not attached.
    """
    chosen = [pair for pair in _attached if engine is None or _is(engine, *pair)]
    if engine is not None and not chosen:
        raise ConfigError(f"this {type(engine).__name__} is not attached")
    left: list[str] = []
    for pair in reversed(chosen):
        _attached.remove(pair)
        made = pair[1]()
        left += made.detach() if made is not None else []
    return left


def attached() -> list[Attachment]:
    """What is attached in this process."""
    return [found for _, made in _attached if (found := made()) is not None]


def _weakly(engine: object) -> Callable[[], object]:
    """Gives it as long as somebody else keeps it; a name always."""
    return (lambda: engine) if isinstance(engine, str) else weakref.ref(engine)


def _is(asked: object, given: Callable[[], object], made: weakref.ref[Attachment]) -> bool:
    engine = given()
    return asked is made() or asked is engine or (isinstance(asked, str) and asked == engine)


def _settings(directory: str | os.PathLike[str] | None, name: str | None, options: _Options) -> Settings:
    unknown = sorted(set(options) - set(_Options.__annotations__))
    if unknown:
        raise ConfigError(f"attach() knows no setting '{unknown[0]}'")
    base = Settings.from_environment(os.environ)
    if directory is not None:
        base = replace(base or Settings(Path()), directory=Path(directory).absolute())
    if base is None:
        raise ConfigError("no directory to record into: give attach() a directory, or set KVMON_DIR")
    if name is not None:
        base = replace(base, engine=name)
    return replace(base, **options)
