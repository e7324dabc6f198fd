"""What every adapter of a foreign engine is: what it declares, how it attaches, and what it leaves behind.

An adapter watches an engine that other people wrote, from inside its process. Its module imports without that engine,
with the standard library alone; the engine is imported when one is attached.

Invariant: an engine that is watched behaves as one that is not. What an adapter cannot see it does not report, and an
engine of an unknown version or of another shape is refused or reduced, with one line that says so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Protocol

from kvmon.adapters.settings import Settings

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SIGHTS", "Adapter", "Attachment", "Declaration", "Sight", "Support", "Version", "parse_version"]

Version = tuple[int, ...]

SIGHTS = {
    "allocations": "units that leave the free list",
    "frees": "units that go back, and references that are dropped",
    "sharing": "units with several references, each reference",
    "cache": "units that enter the prefix cache",
    "evictions": "units that leave it, for room or on command",
    "resets": "the whole prefix cache dropped",
    "owners": "which request holds which unit, when a step closes",
    "deferred": "units that wait for a transfer after their request ended",
    "arrivals": "requests, their prompt, limit and class",
    "page names": "keyed hashes of full prompt pages",
    "hits": "prefix cache lookups and hits of admitted requests",
    "failures": "refused allocations, once a wait, with need and reason",
    "preemptions": "requests that lost their memory",
    "endings": "requests that ended, with the reason",
    "tokens": "tokens computed by each request",
    "steps": "every step: duration, tokens, running, waiting",
    "claims": "the engine's own count of its memory",
    "audit": "the engine's own state of every unit, a slice a step",
    "geometry": "bytes and tokens of a unit, shards",
    "offload": "memory that moves to another tier",
}
"""What there is to see in an engine, in the order of the docs."""


def parse_version(text: str) -> Version:
    """The leading numbers of a version: `0.32.0+cpu` is (0, 32, 0), `5.24.0.dev0` (5, 24, 0); empty where there are
    none.
    """
    numbers: list[int] = []
    for part in text.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if digits:
            numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers)


@dataclass(frozen=True)
class Sight:
    """How one of `SIGHTS` is seen: `exact`, `sampled` (now and then), `partly`, or `absent`; `note` says how or why."""

    how: str
    note: str = ""


@dataclass(frozen=True)
class Support:
    """What an adapter makes of an engine's version: `exact`, `reduced` or `refused`, and why where it is not exact."""

    grade: str
    why: str = ""


@dataclass(frozen=True)
class Declaration:
    """What an adapter says of itself; nothing of it needs the engine.

    `distributions` are the names under which the engine is installed, `module` what it is imported as; `first` and
    `last` the oldest and the newest version that it was tested with, compared in as many numbers as they have.
    """

    name: str
    title: str
    distributions: tuple[str, ...]
    module: str
    first: Version
    last: Version
    attaches: str
    sees: Mapping[str, Sight]
    tested: tuple[str, ...] = ()
    by_itself: str = ""
    fidelity: str = "exact"
    not_run: Mapping[str, str] = field(default_factory=dict)

    def installed(self) -> str | None:
        """The version of the engine in this environment; None where it is not installed."""
        for name in self.distributions:
            try:
                return metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
        return None

    def support(self, version: str, *, trust_untested: bool = False) -> Support:
        """What can be done with this version of the engine."""
        found = parse_version(version)
        range_ = f"{_dotted(self.first)} to {_dotted(self.last)}"
        if not found:
            return Support("refused", f"'{version}' is no version that can be compared: kvmon knows {range_}")
        if found[: len(self.first)] < self.first:
            return Support("refused", f"{self.title} {version} is older than kvmon knows ({range_}): update it")
        if found[: len(self.last)] > self.last and not trust_untested:
            return Support(
                "reduced",
                f"{self.title} {version} is newer than kvmon knows ({range_}): update kvmon, or set KVMON_UNTESTED=1 "
                "to record everything all the same",
            )
        return Support("exact")


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


class Attachment(ABC):
    """One engine that is being recorded, or engines that will be; a context manager that detaches at its end."""

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Detach."""
        self.detach()

    @property
    @abstractmethod
    def grade(self) -> str:
        """`exact` or `reduced`, for what will be attached later `armed`."""

    @property
    @abstractmethod
    def why(self) -> str:
        """What is missing, in a line; empty where nothing is."""

    @abstractmethod
    def detach(self) -> list[str]:
        """Restore every patched method and end the recording in order; nothing the second time.

        Names of methods that somebody else patched on top of: those stay, switched off.
        """


class Adapter(Protocol):
    """One engine's adapter; see `registry` for where they are listed."""

    declaration: Declaration

    def recognises(self, engine: object) -> bool:
        """Whether `engine` is something that this adapter attaches to; never imports the engine."""

    def attach(self, engine: object, settings: Settings) -> Attachment:
        """Record this engine from now on.

        Raises ConfigError where it is attached already, InputError where its version or shape is refused.
        """

    def arm(self, settings: Settings) -> Attachment:
        """Record every engine that this process builds from now on.

        Raises InputError where the engine is not installed or its version is refused.
        """
