"""Whole numbers from a distribution that a person writes in one word, such as `uniform:20-2000` or `gamma:338,0.87`.

Means and coefficients of variation (standard deviation over mean) are those of the distribution before its values are
rounded; what rounds below 1 becomes 1.

Invariant: a distribution that exists can be drawn from, and gives numbers from 1 to 2**30.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvmon.errors import ConfigError
from kvmon.serving.workloads.parameters import known

__all__ = ["DISTRIBUTIONS", "Distribution", "parse_distribution"]

_MOST = 2**30
_LEAST_CV = 0.001
_MOST_CV = 100.0

_Floats = npt.NDArray[np.float64]
_Draw = Callable[[np.random.Generator, tuple[float, ...], int], _Floats]


def _fixed(random: np.random.Generator, numbers: tuple[float, ...], n: int) -> _Floats:
    return np.full(n, numbers[0])


def _uniform(random: np.random.Generator, numbers: tuple[float, ...], n: int) -> _Floats:
    return random.integers(int(numbers[0]), int(numbers[1]), n, endpoint=True).astype(np.float64)


def _log_uniform(random: np.random.Generator, numbers: tuple[float, ...], n: int) -> _Floats:
    low, high = numbers
    return np.clip(np.exp(random.uniform(math.log(low), math.log(high), n)), low, high)


def _one_of(random: np.random.Generator, numbers: tuple[float, ...], n: int) -> _Floats:
    return random.choice(np.array(numbers), n)


def _lognormal(random: np.random.Generator, numbers: tuple[float, ...], n: int) -> _Floats:
    mean, cv = numbers
    variance = math.log1p(cv * cv)
    return random.lognormal(math.log(mean) - variance / 2, math.sqrt(variance), n)


def _gamma(random: np.random.Generator, numbers: tuple[float, ...], n: int) -> _Floats:
    mean, cv = numbers
    return random.gamma(1 / cv**2, mean * cv**2, n)


def _normal(random: np.random.Generator, numbers: tuple[float, ...], n: int) -> _Floats:
    mean, cv = numbers
    return random.normal(mean, mean * cv, n)


#: How each distribution is written, and what it is.
DISTRIBUTIONS = {
    "fixed": ("fixed:N", "always N"),
    "uniform": ("uniform:LO-HI", "every whole number from LO to HI alike"),
    "log-uniform": ("log-uniform:LO-HI", "every order of magnitude from LO to HI alike"),
    "one-of": ("one-of:A,B,...", "each of these alike"),
    "lognormal": ("lognormal:MEAN,CV", "log-normal: a heavy tail"),
    "gamma": ("gamma:MEAN,CV", "gamma: CV 1 is exponential"),
    "normal": ("normal:MEAN,CV", "normal, nothing below 1"),
}

_DRAW: dict[str, _Draw] = {
    "fixed": _fixed,
    "uniform": _uniform,
    "log-uniform": _log_uniform,
    "one-of": _one_of,
    "lognormal": _lognormal,
    "gamma": _gamma,
    "normal": _normal,
}


@dataclass(frozen=True)
class Distribution:
    """A distribution by name with its numbers; made by `parse_distribution`."""

    name: str
    numbers: tuple[float, ...]

    @property
    def least(self) -> int:
        """No draw is smaller."""
        return int(min(self.numbers)) if self.name in ("fixed", "uniform", "log-uniform", "one-of") else 1

    def draw(self, random: np.random.Generator, n: int) -> npt.NDArray[np.int64]:
        """`n` numbers."""
        drawn = np.rint(_DRAW[self.name](random, self.numbers, n))
        return np.clip(drawn, 1, _MOST).astype(np.int64)


def parse_distribution(text: str) -> Distribution:
    """The distribution that `text` names. Raises ConfigError when none is."""
    name, colon, rest = text.strip().partition(":")
    known(name, DISTRIBUTIONS, "distribution")
    form = DISTRIBUTIONS[name][0]
    try:
        numbers = tuple(float(part) for part in rest.split("-" if "LO-HI" in form else ","))
    except ValueError:
        numbers = ()
    expected = {"fixed": 1, "one-of": len(numbers)}.get(name, 2)
    if not colon or not numbers or len(numbers) != expected:
        raise ConfigError(f"'{text}' lacks its numbers: write {form}")
    if "CV" in form:
        if not (0.0 < numbers[0] <= _MOST and _LEAST_CV <= numbers[1] <= _MOST_CV):
            raise ConfigError(f"'{text}' cannot be drawn: a MEAN above 0 and a CV from {_LEAST_CV:g} to {_MOST_CV:g}")
    elif not all(1 <= number <= _MOST and number == int(number) for number in numbers):
        raise ConfigError(f"'{text}' cannot be drawn: whole numbers from 1 to {_MOST} are needed")
    elif "LO-HI" in form and numbers[0] > numbers[1]:
        raise ConfigError(f"'{text}' ends before it begins: write {form} with the smaller number first")
    return Distribution(name, numbers)
