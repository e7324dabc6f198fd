"""The thresholds of the rules: read from `thresholds.yml`, with a user's own values over them, and checked.

Invariant: a `Thresholds` has every key of the shipped file, each value within the range that stands beside it, and
critical never before its warning. Whatever is wrong is a ConfigError of one line with the file and the key; nothing is
guessed and no key is silently ignored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from kvmon.errors import ConfigError

__all__ = ["Threshold", "Thresholds", "duration_text", "load_thresholds", "seconds_of"]

SHIPPED = "thresholds.yml"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d{1,7})([smhd])")
_COMMON = {"value", "unit", "because", "why"}
_LARGEST_FILE = 1 << 20
# A critical alert never comes before its warning, a window holds at least two looks.
_ORDERED = (
    ("lost_share_warning", "lost_share_critical"),
    ("slow_share_warning", "slow_share_critical"),
    ("verdict_step", "verdict_window"),
)

Value = str | int | float


@dataclass(frozen=True, slots=True)
class Threshold:
    """One threshold: `value` in `unit` (a duration is Prometheus' text, such as 5m), what it may be, and why."""

    name: str
    value: Value
    unit: str
    because: str
    why: str
    least: Value | None = None
    most: Value | None = None
    choices: tuple[Value, ...] = ()

    def accept(self, value: object, file: str) -> Value:
        """`value` as this threshold's. Raises ConfigError where it has another type or is out of range."""
        where = f"{file}: {self.name}"
        if isinstance(value, Mapping):
            raise ConfigError(
                f"{where} has entries of its own: give the value alone, as in '{self.name}: {self.value}'"
            )
        if self.unit == "duration":
            if not isinstance(value, str) or _DURATION.fullmatch(value) is None:
                raise ConfigError(f"{where} is {_shown(value)}: give a duration such as 30s, 5m, 1h or 1d")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigError(f"{where} is {_shown(value)}: give a number of {self.unit}")
        elif isinstance(self.value, int) and not isinstance(value, int):
            raise ConfigError(f"{where} is {_shown(value)}: give a whole number of {self.unit}")
        if self.choices and value not in self.choices:
            allowed = ", ".join(map(str, self.choices))
            raise ConfigError(f"{where} is {_shown(value)}: give one of {allowed} ({self.because})")
        if self.least is not None and self.most is not None and not _in_order(self.least, value, self.most):
            raise ConfigError(f"{where} is {_shown(value)}: give {self.least} to {self.most}, because {self.because}")
        return value


class Thresholds(Mapping[str, Value]):
    """Values by key, as they go into expressions; `described` has the entries they come from."""

    def __init__(self, described: Mapping[str, Threshold], values: Mapping[str, Value], file: str = SHIPPED) -> None:
        """`file` is named in messages. Raises ConfigError where values contradict each other."""
        self.described = dict(described)
        self._values = {name: values.get(name, entry.value) for name, entry in described.items()}
        self._file = file
        for first, second in _ORDERED:
            if first in self._values and second in self._values and not _in_order(self[first], self[second]):
                raise ConfigError(
                    f"{file}: {second} is {self[second]} and {first} is {self[first]}: give {second} the larger value"
                )

    def __getitem__(self, name: str) -> Value:
        """The value of a key. Raises ConfigError where the file lacks it."""
        try:
            return self._values[name]
        except KeyError:
            raise ConfigError(f"{self._file}: {name} is missing: the rules need it") from None

    def __iter__(self) -> Any:
        """The keys, in the order of the file."""
        return iter(self._values)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._values)

    def duration(self, name: str) -> str:
        """A duration as Prometheus writes it."""
        return str(self[name])

    def seconds(self, name: str) -> int:
        """A duration in seconds."""
        return seconds_of(self.duration(name))


def load_thresholds(overrides: Path | None = None) -> Thresholds:
    """The shipped thresholds, with the values of the file `overrides` over them.

    Raises ConfigError for what is wrong in a file: unknown, missing or repeated key, wrong type, out of range.
    """
    described = _shipped()
    if overrides is None:
        return Thresholds(described, {})
    name = str(overrides)
    values: dict[str, Value] = {}
    for key, value in _mapping(_text_of(overrides), name).items():
        entry = described.get(str(key))
        if entry is None:
            raise ConfigError(f"{name}: {_shown(key)} is no threshold: 'kvmon alerts --json' lists them")
        values[entry.name] = entry.accept(value, name)
    return Thresholds(described, values, name)


def seconds_of(duration: str) -> int:
    """Seconds of a duration such as 5m."""
    return int(duration[:-1]) * _UNITS[duration[-1]]


def duration_text(duration: str) -> str:
    """A duration in words: `5 minutes`, `1 hour`."""
    count, unit = int(duration[:-1]), {"s": "second", "m": "minute", "h": "hour", "d": "day"}[duration[-1]]
    return f"{count} {unit}" if count == 1 else f"{count} {unit}s"


@lru_cache(maxsize=1)
def _shipped() -> dict[str, Threshold]:
    return _described(files("kvmon.alerts").joinpath(SHIPPED).read_text(encoding="utf-8"), SHIPPED)


def _described(text: str, file: str) -> dict[str, Threshold]:
    described = {}
    for name, fields in _mapping(text, file).items():
        if not isinstance(fields, Mapping):
            raise ConfigError(f"{file}: {name} has no entries: give value, unit, why, because, and least and most")
        wanted = _COMMON | ({"choices"} if "choices" in fields else {"least", "most"})
        for key in sorted(map(str, set(fields) ^ wanted)):
            raise ConfigError(f"{file}: {name}: {key} is {'missing' if key in wanted else 'unknown'}")
        entry = Threshold(str(name), **{**fields, "choices": tuple(fields.get("choices", ()))})
        entry.accept(entry.value, file)
        described[entry.name] = entry
    return described


def _text_of(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no text: give a file of lines such as 'verdict_for: 5m'") from None
    if len(text) > _LARGEST_FILE:
        raise ConfigError(f"{path} is larger than {_LARGEST_FILE} bytes: give a file of thresholds")
    return text


class _Loader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, and an alias is one too."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="an alias")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _mapping(text: str, file: str) -> dict[str, Any]:
    try:
        content = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" line {error.problem_mark.line + 1}:"
        raise ConfigError(f"{file}:{line} {error.problem or 'no YAML'}: give lines such as 'verdict_for: 5m'") from None
    except (yaml.YAMLError, RecursionError, ValueError):
        raise ConfigError(f"{file} is no YAML: give lines such as 'verdict_for: 5m'") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{file} is no mapping: give lines such as 'verdict_for: 5m'")
    return content


def _in_order(*values: Value) -> bool:
    numbers = [float(seconds_of(value)) if isinstance(value, str) else float(value) for value in values]
    return numbers == sorted(numbers)


def _shown(value: object) -> str:
    text = "empty" if value is None else " ".join((repr(value) if isinstance(value, str) else str(value)).split())
    return text if len(text) <= 60 else f"{text[:60]}..."
