"""A YAML file of sections and keys, read so that nothing in it is ignored.

An unknown key, a key that is given twice, a list where a word belongs are errors that name the file and the key.

Every scalar is text here, as Go's YAML gives it to a string: a user called 007 or `no` keeps that name. What the keys
mean is said by those who ask for them.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from kvmon.errors import InputError, SystemRefused

__all__ = ["Section", "parse_seconds", "read_file", "read_sections"]

_Value = TypeVar("_Value")
_FLAGS = {"true": True, "false": False}
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ns|us|µs|ms|s|m|h))+")
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ns|us|µs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST_DURATION = 40  # characters
_MOST_BYTES = 1 << 20  # of a configuration, a certificate, or a list of authorities


class Section:
    """Keys and values of a mapping; `where` is its path of keys, empty at the top."""

    def __init__(self, file: Path, where: str, values: Mapping[str, object], known: Collection[str]) -> None:
        """Raises InputError for a key that is not `known`."""
        self.file = file
        self._where = where
        self._values = values
        for key in values:
            if key not in known:
                raise self.error(key, f"there is no such key: give one of {', '.join(known)}")

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def error(self, key: str, message: str) -> InputError:
        """What is wrong with the value of a key."""
        return InputError(f"{self.place(key)}: {message}")

    def place(self, key: str) -> str:
        """File and key, as a message begins."""
        return f"{self.file}: {self._name(key)}"

    def text(self, key: str, *, blank: bool = False) -> str | None:
        """A value that is text, None where the key is missing. Raises InputError for another, or an empty one."""
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.error(key, f"it is a {_kind(value)}: give text")
        if not value.strip() and not blank:
            raise self.error(key, "it has no value: give one, or leave the key out")
        return value

    def texts(self, key: str) -> list[str]:
        """A value that is a list of words, empty where the key is missing. Raises InputError for anything else."""
        value = self._values.get(key)
        if value is None:
            return []
        if not isinstance(value, list) or not value or not all(isinstance(item, str) and item for item in value):
            raise self.error(key, "give a list of words, at least one")
        return value

    def choice(self, key: str, choices: Mapping[str, _Value], default: _Value) -> _Value:
        """What a word stands for. Raises InputError for a word that is not among them."""
        value = self.text(key)
        if value is None:
            return default
        if value not in choices:
            raise self.error(key, f"'{value}' is unknown: give one of {', '.join(choices)}")
        return choices[value]

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        return self.choice(key, _FLAGS, default)

    def section(self, key: str, known: Collection[str] | None) -> Section | None:
        """A mapping below this one, None where the key is missing; `known` None takes any key.

        Raises InputError where it is none, or empty: what was left out by mistake must not open a door.
        """
        if key not in self._values:
            return None
        value = self._values[key]
        if not isinstance(value, dict) or not value:
            raise self.error(key, "it has no keys below it: give some, or leave it out")
        return Section(self.file, self._name(key), value, known if known is not None else value.keys())

    def _name(self, key: str) -> str:
        return f"{self._where}.{key}" if self._where else key


def read_sections(file: Path, known: Collection[str]) -> Section:
    """The top of a file; an empty file has no keys. Raises InputError, or SystemRefused where it must not be read."""
    content = read_file(file, str(file))
    try:
        values = yaml.load(content.decode(), _StrictLoader)
    except UnicodeDecodeError:
        raise InputError(f"{file}: it is no text in UTF-8") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        raise InputError(f"{file}: {place}{error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{file}: {' '.join(str(error).split())}") from None
    if values is None or values == "":
        values = {}
    if not isinstance(values, dict):
        raise InputError(f"{file}: it is a {_kind(values)}: give keys and values, such as 'basic_auth_users:'")
    return Section(file, "", values, known)


def read_file(path: Path, name: str) -> bytes:
    """What is in a file. `name` begins the message. Raises InputError, or SystemRefused where it must not be read."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{name}: {path} is no file")
        if found.st_size > _MOST_BYTES:
            raise InputError(f"{name}: {path} is larger than a megabyte: give another file")
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{name}: there is no file {path}: make it, or give another") from None
    except (NotADirectoryError, ValueError):
        raise InputError(f"{name}: {path} cannot be the name of a file: give another") from None
    except PermissionError:
        raise SystemRefused(f"{name}: no permission to read {path}: let this user or its group read it") from None
    except OSError as error:
        raise SystemRefused(f"{name}: cannot read {path}: {error.strerror or error}") from None


def parse_seconds(text: str) -> float | None:
    """Seconds from a duration as Go writes it, `1s`, `1m30s`, `500ms` or `0`; None where it is none."""
    if text == "0":
        return 0.0
    if len(text) > _LONGEST_DURATION or _DURATION.fullmatch(text) is None:
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))


class _StrictLoader(yaml.BaseLoader):
    """Makes text, lists and mappings of a file and nothing else, whatever tags are in it."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _kind(value: object) -> str:
    return "mapping" if isinstance(value, dict) else "list" if isinstance(value, list) else "word"
