"""Parameters of OpenAI's interface, and of engines that extend it, that this server has no use for.

Purpose: clients send them with the value that changes nothing, which is fine. Invariant: any other value is refused by
the parameter's name; nothing that would have changed the answer is ever ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvmon.engine.server.api_error import ApiError, quoted
from kvmon.engine.server.fields import Fields

__all__ = ["refuse_the_rest"]


def _one_of(*values: object) -> Callable[[Any], bool]:
    # 0 and False are equal to Python, not to JSON.
    return lambda given: any(given == value and type(given) is type(value) for value in values)


def _number(*values: float) -> Callable[[Any], bool]:
    return lambda given: not isinstance(given, bool) and given in values


_NOTHING = _one_of(False, [], {}, "")
_NEUTRAL: dict[str, Callable[[Any], bool]] = {
    "audio": _NOTHING,
    "best_of": _number(1),
    "frequency_penalty": _number(0),
    "function_call": _one_of("none", "auto"),
    "functions": _one_of([]),
    "guided_json": _NOTHING,
    "include_stop_str_in_output": _one_of(False),
    "length_penalty": _number(1),
    "logit_bias": _one_of({}),
    "logprobs": _one_of(False),
    "metadata": lambda given: isinstance(given, dict),
    "min_p": _number(0),
    "min_tokens": _number(0),
    "modalities": _one_of(["text"]),
    "parallel_tool_calls": _one_of(False, True),
    "prediction": _NOTHING,
    "presence_penalty": _number(0),
    "priority": _number(0),
    "reasoning_effort": _one_of("none"),
    "repetition_penalty": _number(1),
    "response_format": _one_of({"type": "text"}),
    "safety_identifier": lambda given: isinstance(given, str),
    "prompt_cache_key": lambda given: isinstance(given, str),
    "service_tier": _one_of("auto", "default"),
    "skip_special_tokens": _one_of(True),
    "spaces_between_special_tokens": _one_of(True, False),
    "store": _one_of(False),
    "suffix": _one_of(""),
    "tool_choice": _one_of("none", "auto"),
    "tools": _one_of([]),
    "top_k": _number(0, -1),
    "top_logprobs": _number(0),
    "use_beam_search": _one_of(False),
    "verbosity": _one_of("medium"),
    "web_search_options": _NOTHING,
}


def refuse_the_rest(fields: Fields, *, choices: int, ignore_eos: bool) -> None:
    """Raise ApiError for the first parameter that is left and would change the answer.

    `choices`: how many answers a prompt gets, which `best_of` may repeat. `ignore_eos`: then every answer is as long as
    it may be, and `min_tokens` adds nothing.
    """
    for name, value in fields.left.items():
        neutral = _NEUTRAL.get(name)
        if neutral is None:
            raise ApiError(f"{quoted(name)} is no parameter here: leave it out", param=name, code="unknown_parameter")
        if neutral(value) or (name == "best_of" and value == choices):
            continue
        if name == "min_tokens" and ignore_eos and type(value) is int:
            continue
        raise ApiError(
            f"{name} of {quoted(value)} is not supported: leave it out", param=name, code="unsupported_parameter"
        )
