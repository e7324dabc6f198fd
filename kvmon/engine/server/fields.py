"""Take the parameters out of a request's body one by one, each checked for its type and range.

Invariant: a value is either what its parameter may be or an ApiError that names the parameter. `null` is the same as
nothing given. What nobody took is left over for the caller to judge.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from kvmon.engine.server.api_error import ApiError, quoted

__all__ = ["Fields", "parse_json", "readable"]


def parse_json(body: bytes) -> dict[str, Any]:
    """The object that a body holds. Raises ApiError for everything else."""

    def no_number(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON number")

    def finite(digits: str) -> float:
        return float(digits) if math.isfinite(float(digits)) else no_number(digits[:20])

    try:
        value = json.loads(body, parse_constant=no_number, parse_float=finite)
    except (ValueError, RecursionError) as error:
        # The decoder's own words quote nothing of the body; those of the codec would.
        reason = "it is no UTF-8" if isinstance(error, UnicodeDecodeError) else str(error) or "it is nested too deeply"
        raise ApiError(f"the body is no JSON object ({reason[:80]}): send one", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError("the body is JSON but no object: send an object with the parameters", code="invalid_json")
    return value


def readable(text: str, param: str) -> str:
    """The text itself. Raises ApiError for half a surrogate pair, which JSON can spell and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ApiError(f"{param} has half a surrogate pair: send whole characters", param=param) from None
    return text


class Fields:
    """The parameters of one body; each method takes one of them, or its default where it is not given."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._left = {name: value for name, value in body.items() if value is not None}

    @property
    def left(self) -> dict[str, Any]:
        """What was given and not taken."""
        return self._left

    def has(self, name: str) -> bool:
        """Whether the parameter was given and not taken yet."""
        return name in self._left

    def take(self, name: str) -> Any:
        """The value as it came; None where it was not given."""
        return self._left.pop(name, None)

    def whole(self, name: str, least: int, most: int) -> int | None:
        """A whole number from `least` to `most`."""
        value = self.take(name)
        if value is None:
            return None
        if type(value) is not int:
            raise _wrong(name, value, "a whole number")
        if not least <= value <= most:
            raise ApiError(f"{name} is {quoted(value)}: give {least} to {most}", param=name, code="out_of_range")
        return value

    def number(self, name: str, least: float, most: float, default: float) -> float:
        """A number from `least` to `most`."""
        value = self.take(name)
        if value is None:
            return default
        if type(value) not in (int, float):
            raise _wrong(name, value, "a number")
        if not least <= value <= most or not math.isfinite(value):
            raise ApiError(f"{name} is {quoted(value)}: give {least:g} to {most:g}", param=name, code="out_of_range")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """true or false."""
        value = self.take(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise _wrong(name, value, "true or false")
        return value

    def text(self, name: str) -> str | None:
        """A string."""
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise _wrong(name, value, "a string")
        return readable(value, name)

    def nested(self, name: str) -> Fields | None:
        """The parameters of an object within the body."""
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise _wrong(name, value, "an object")
        return Fields(value)


def _wrong(name: str, value: object, wanted: str) -> ApiError:
    return ApiError(f"{name} is {quoted(value)}: give {wanted}", param=name, code="invalid_type")
