"""An observer that loses what it should have recorded, as a probe does on a full disk or a stuck thread.

Invariant: whole steps are lost or kept; the step records themselves stay, so that time goes on, and a LOST entry stands
in the place of what each of them lacks. The engine does not notice, and neither does its adapter: what follows a loss
is said as if nothing had been lost.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from kvmon.allocators.journal import ENTRY_FIELDS, LOST, STEP, WITH_UNITS

__all__ = ["LossySink", "Sink"]

_SPACE_FULL = 2


class Sink(Protocol):
    """What takes a journal piece by piece."""

    def __call__(self, journal: npt.NDArray[np.int64], /) -> None:
        """Write these entries."""

    def overlook(self, journal: npt.NDArray[np.int64], /) -> None:
        """Take note of entries that the engine's adapter saw and that are not written."""


class LossySink:
    """Hands a journal on to `sink` without the entries of steps that begin in `from_ns` to `until_ns` (simulated)."""

    def __init__(self, sink: Sink, from_ns: int, until_ns: int) -> None:
        self._sink = sink
        self._from, self._until = from_ns, until_ns
        self._waiting: list[npt.NDArray[np.int64]] = []
        self._entries = 0  # in it

    def __call__(self, journal: npt.NDArray[np.int64]) -> None:
        """Take a piece of the journal; what follows its last step waits for the next one."""
        at = begin = 0
        while at < len(journal):
            code = int(journal[at])
            length = 3 + int(journal[at + 2]) if code in WITH_UNITS else 1 + ENTRY_FIELDS[code]
            if code == STEP:
                self._waiting.append(journal[begin:at])
                self._close_step(journal[at : at + length])
                begin = at + length
            else:
                self._entries += 1
            at += length
        self._waiting.append(journal[begin:].copy())

    def close(self) -> None:
        """Hand on what followed the last step."""
        self._sink(np.concatenate([*self._waiting, np.zeros(0, np.int64)]))
        self._forget()

    def _close_step(self, step: npt.NDArray[np.int64]) -> None:
        if self._from <= step[1] < self._until:
            for part in self._waiting:
                self._sink.overlook(part)
            lost = np.array([LOST, self._entries, _SPACE_FULL] if self._entries else [], np.int64)
            self._sink(np.concatenate((lost, step)))
        else:
            self._sink(np.concatenate([*self._waiting, step]))
        self._forget()

    def _forget(self) -> None:
        self._waiting.clear()
        self._entries = 0
