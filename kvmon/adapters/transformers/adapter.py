"""Attaching: to one manager or processor, or to every manager that generates from now on.

A manager makes its processor, or takes up the old one, when its generation loop begins: that call is hooked, and what
it returns is recorded until that loop ends. Only the driver of a tensor-parallel group records: the others hold the
same blocks.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import replace
from importlib import import_module
from itertools import count
from typing import Any

from kvmon.adapters.base import Attachment, Support
from kvmon.adapters.settings import Settings
from kvmon.adapters.shapes import other_shape
from kvmon.adapters.transformers.declaration import DECLARATION, HOME
from kvmon.adapters.transformers.describe import running_version
from kvmon.adapters.transformers.hooks import Hooks
from kvmon.adapters.transformers.live import CLASSED_BY
from kvmon.adapters.transformers.recorder import Recorder, say
from kvmon.adapters.transformers.shape import (
    is_manager,
    is_processor,
    missing_for_counts,
    missing_for_units,
    missing_in_manager,
)
from kvmon.errors import ConfigError, InputError

__all__ = ["ADAPTER", "Recording", "TransformersAdapter"]

_CREATE = "_create_batch_processor"

_attached: weakref.WeakSet[Any] = weakref.WeakSet()
"""Managers and processors that were handed to `attach`, and processors that are recorded."""
_armed: list[Recording] = []


class Recording(Attachment):
    """What is recorded by one call of `attach` or `arm`; see `Attachment`."""

    def __init__(self, settings: Settings, version: str, support: Support) -> None:
        self._settings, self._version = settings, version
        self._reduced = self._why = support.why
        self._hooks = Hooks(self._broken)
        self._lock = threading.RLock()
        self._recorders: list[Recorder] = []
        self._manager: Any = None
        if support.grade != "exact":
            say(f"steps and counts only, {support.why}")

    @property
    def grade(self) -> str:
        """See `Attachment`."""
        if self.why:
            return "reduced"
        return "armed" if self in _armed else "exact"

    @property
    def why(self) -> str:
        """See `Attachment`."""
        return self._why or next((recorder.why for recorder in self._recorders if recorder.why), "")

    def watch_manager(self, manager: Any) -> None:
        """Record a manager: what it runs already, and what it will run."""
        self._manager = manager
        _attached.add(manager)
        self._hooks.hook(manager, _CREATE, after=self._created)
        processor = getattr(manager, "batch_processor", None)
        if processor is not None:
            self.watch(processor)

    def watch_every_manager(self, kind: type) -> None:
        """Record whatever a manager of this class runs from now on."""
        self._hooks.hook(kind, _CREATE, after=self._created)
        _armed.append(self)

    def _created(self, processor: Any, *args: Any, **kwargs: Any) -> None:
        self.watch(processor)

    def watch(self, processor: Any, *, until_loop_ends: bool = True) -> None:
        """Record a processor, unless it is recorded already or somebody else does it for its group."""
        with self._lock:
            if processor in _attached:
                return
            helper = getattr(processor, "distributed_helper", None)
            if not getattr(helper, "is_tp_driver", True):
                self._why = self._why or "this tensor-parallel rank is recorded by the driver of its group"
                return
            _attached.add(processor)
            first, apart = int(getattr(helper, "dp_rank", 0)), max(int(getattr(helper, "dp_size", 1)), 1)
            taken = {recorder.rank for recorder in self._recorders}
            recorder = Recorder(
                processor,
                self._settings,
                next(rank for rank in count(first, apart) if rank not in taken),
                self._version,
                reduced=self._reduced,
                until_loop_ends=until_loop_ends,
                ended=self._over,
            )
            self._recorders.append(recorder)

    def _over(self, recorder: Recorder, processor: Any) -> None:
        with self._lock:
            _attached.discard(processor)
            self._recorders.remove(recorder)
            self._why = self._why or recorder.why

    def detach(self) -> list[str]:
        """See `Attachment`."""
        left = self._hooks.undo()
        for recorder in list(self._recorders):
            left += recorder.stop()
        if self._manager is not None:
            _attached.discard(self._manager)
            self._manager = None
        if self in _armed:
            _armed.remove(self)
        return left

    def _broken(self, label: str) -> None:
        self._why = self._why or f"the hook of {label} failed and is off: what is run next is not recorded"
        say(self._why)


class TransformersAdapter:
    """See `kvmon.adapters.base.Adapter`."""

    declaration = DECLARATION

    def recognises(self, engine: object) -> bool:
        """A manager, or the processor that one runs."""
        return is_manager(engine) or is_processor(engine)

    def attach(self, engine: Any, settings: Settings) -> Recording:
        """Record this manager or processor."""
        if engine in _attached:
            raise ConfigError(f"this {type(engine).__name__} is attached already: detach it first")
        version = running_version()
        support, settings = _checked(version, settings)
        managed = is_manager(engine)
        missing = missing_in_manager(engine) if managed else []
        processor = getattr(engine, "batch_processor", None) if managed else engine
        if not missing and processor is not None:
            missing = missing_for_counts(processor)
        if missing:
            raise InputError(f"transformers {version} {other_shape(missing)}: update kvmon")
        if support.grade == "exact" and processor is not None and (missing := missing_for_units(processor)):
            support = Support("reduced", f"it {other_shape(missing)}")
        recording = Recording(settings, version, support)
        if managed:
            recording.watch_manager(engine)
        else:
            recording.watch(engine, until_loop_ends=False)
        return recording

    def arm(self, settings: Settings) -> Recording:
        """Record every manager that generates from now on; imports transformers."""
        if _armed:
            raise ConfigError("transformers is armed already: detach it first")
        if DECLARATION.installed() is None:
            raise InputError("transformers is not installed here: pip install transformers")
        try:
            kind = import_module(f"{HOME}.continuous_api").ContinuousBatchingManager
        except (ImportError, AttributeError):
            raise InputError("this transformers has no continuous batching: update it") from None
        version = running_version()
        support, settings = _checked(version, settings)
        if missing := missing_in_manager(kind):
            raise InputError(f"transformers {version} {other_shape(missing)}: update kvmon")
        recording = Recording(settings, version, support)
        recording.watch_every_manager(kind)
        return recording


def _checked(version: str, settings: Settings) -> tuple[Support, Settings]:
    """What can be done with this version, and the settings as far as requests have what they ask for."""
    support = DECLARATION.support(version, trust_untested=settings.trust_untested)
    if support.grade == "refused":
        raise InputError(support.why)
    if settings.class_by not in ("none", *CLASSED_BY):
        say(f"requests have no {settings.class_by} to be classed by: all of them are of class 0")
        settings = replace(settings, class_by="none")
    return support, settings


ADAPTER = TransformersAdapter()
