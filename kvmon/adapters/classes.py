"""The class of a request by the operator's rule; see `settings`.

Of lengths the class is the number of bits of the prompt's length: class k has prompts below 2**k tokens. Whatever else
an engine's requests have (priorities, LoRA adapters, salts) is numbered from 1 as it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

__all__ = ["MOST_CLASSES", "class_rule"]

MOST_CLASSES = 63  # that are told apart; later ones are class 0


def class_rule(rule: str, values: Mapping[str, Callable[[Any], Hashable]]) -> Callable[[Any], int]:
    """Gives a request's class. `values` says for each rule but `none` what a request has of it: the tokens of its
    prompt for `length`, None where it has nothing. Under a rule that is not there all of them are class 0.
    """
    value_of = values.get(rule)
    if value_of is None:
        return lambda request: 0
    if rule == "length":
        length_of: Callable[[Any], Any] = value_of
        return lambda request: int(length_of(request)).bit_length()
    seen: dict[Hashable, int] = {}

    def class_of(request: Any) -> int:
        value = value_of(request)
        if value is None:
            return 0
        if value not in seen and len(seen) < MOST_CLASSES:
            seen[value] = len(seen) + 1
        return seen.get(value, 0)

    return class_of
