"""What the parameters of all generators have in common: their checks.

Invariant: a parameter that cannot work raises ConfigError with one line that says what would; NaN never passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from difflib import get_close_matches

from kvmon.errors import ConfigError

__all__ = ["known", "seconds", "share", "within"]

_LONGEST_S = 1e8


def known(name: str, names: Iterable[str], label: str) -> None:
    """Raise ConfigError unless `name` is one of `names`; it suggests the nearest ones."""
    choices = list(names)
    if name not in choices:
        near = get_close_matches(name, choices, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"choose {', '.join(choices)}"
        raise ConfigError(f"'{name}' is no {label}: {hint}")


def within(value: float, label: str, least: float, most: float) -> None:
    """Raise ConfigError unless `least <= value <= most`."""
    if not least <= value <= most:
        raise ConfigError(f"{label} is {value:g}: a number from {least:g} to {most:g} is needed")


def share(value: float, label: str) -> None:
    """Raise ConfigError unless `value` is a share from 0 to 1."""
    if not 0.0 <= value <= 1.0:
        raise ConfigError(f"{label} is {value:g}: a share from 0 to 1 is needed")


def seconds(value: float, label: str, *, zero: bool = True) -> None:
    """Raise ConfigError unless `value` is a time in seconds, three years at most."""
    if not (math.isfinite(value) and 0.0 <= value <= _LONGEST_S) or (value == 0.0 and not zero):
        least = "0 or more" if zero else "more than 0"
        raise ConfigError(f"{label} is {value:g} s: {least} is needed, and at most {_LONGEST_S:g}")
