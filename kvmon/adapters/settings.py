"""Where and how an engine is recorded: what `attach` is told, or the environment where nobody calls it.

    KVMON_DIR        directory of the recordings; without it a plugin does nothing at all
    KVMON_ENGINE     name of the engine in metrics and reports; one name for each engine that shares a directory
    KVMON_BUDGET     bytes on disk of one rank, such as 256MiB
    KVMON_GROUP      1: readable by the group of the directory too, for a sidecar under another user
    KVMON_CLASS      what a request's class is: none, length, priority, lora or salt
    KVMON_UNTESTED   1: record everything of an engine that is newer than kvmon knows, at your own risk

Standard library alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kvmon.errors import ConfigError
from kvmon.recording.writer import DEFAULT_BUDGET
from kvmon.units import parse_size

__all__ = ["CLASSES", "Settings"]

CLASSES = ("none", "length", "priority", "lora", "salt")
_SMALLEST_BUDGET = 1 << 20
_YES, _NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


@dataclass(frozen=True)
class Settings:
    """How an engine is recorded; `engine` empty stands for the adapter's name."""

    directory: Path
    engine: str = ""
    budget: int = DEFAULT_BUDGET
    group_readable: bool = False
    class_by: str = "none"
    trust_untested: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError for a value that cannot work."""
        if self.class_by not in CLASSES:
            raise ConfigError(f"'{self.class_by}' is no rule for classes: choose one of {', '.join(CLASSES)}")
        if self.budget < _SMALLEST_BUDGET:
            raise ConfigError(f"a budget of {self.budget} bytes is too small: give at least 1MiB")
        if len(self.engine) > 64 or any(not (letter.isalnum() or letter in "._-") for letter in self.engine):
            raise ConfigError(f"'{self.engine[:80]}' is no name for an engine: use letters, digits, '.', '_', '-'")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings | None:
        """What the environment says; None without KVMON_DIR. Raises ConfigError, naming the variable."""
        directory = environment.get("KVMON_DIR", "").strip()
        if not directory:
            return None
        budget = environment.get("KVMON_BUDGET", "").strip()
        try:
            return cls(
                directory=Path(directory).absolute(),
                engine=environment.get("KVMON_ENGINE", "").strip(),
                budget=parse_size(budget) if budget else DEFAULT_BUDGET,
                group_readable=_flag(environment, "KVMON_GROUP"),
                class_by=environment.get("KVMON_CLASS", "").strip().lower() or "none",
                trust_untested=_flag(environment, "KVMON_UNTESTED"),
            )
        except ConfigError as error:
            raise ConfigError(f"KVMON_* in the environment: {error}") from None


def _flag(environment: Mapping[str, str], name: str) -> bool:
    value = environment.get(name, "").strip().lower()
    if value in _YES:
        return True
    if value in _NO:
        return False
    raise ConfigError(f"{name}={value} is neither 1 nor 0")
