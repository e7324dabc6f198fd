"""Requests of `/v1/completions` and `/v1/chat/completions`: a body into what is asked for.

Invariant: a request that exists is valid as far as that can be said without a model: types, ranges, combinations. It
tokenises nothing and knows no HTTP. Defaults are OpenAI's, temperature 1 among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvmon.engine.server.api_error import ApiError, quoted
from kvmon.engine.server.fields import Fields, readable
from kvmon.engine.server.neutral import refuse_the_rest

__all__ = ["MOST_SEQUENCES", "Message", "Prompt", "Request", "parse_chat", "parse_completion"]

MOST_SEQUENCES = 512
"""Answers that one request may ask for: prompts times `n`."""

_MOST_TOKENS = 2**30
_MOST_CHOICES = 128
_MOST_STOPS = 4
_MOST_STOP_TOKENS = 64
_LONGEST_STOP = 1000
_ROLES = ("system", "developer", "user", "assistant")

Prompt = str | tuple[int, ...]
"""A text, or token ids."""


@dataclass(frozen=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True)
class Request:
    """What a client asks for. `prompts` of a completion, or `messages` of a chat; the other is empty.

    max_tokens      most tokens of each answer; None: not said
    stop            texts that end an answer, which does not contain them
    usage_at_end, usage_always      a stream's last chunk, or each of them, says how many tokens there were
    """

    model: str | None
    prompts: tuple[Prompt, ...] = ()
    messages: tuple[Message, ...] = ()
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    n: int = 1
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    ignore_eos: bool = False
    stream: bool = False
    usage_at_end: bool = False
    usage_always: bool = False
    echo: bool = False

    @property
    def chat(self) -> bool:
        """Whether it is a chat."""
        return bool(self.messages)

    @property
    def prompt_param(self) -> str:
        """The parameter that holds the prompt."""
        return "messages" if self.chat else "prompt"


def parse_completion(body: Mapping[str, Any]) -> Request:
    """The request that a body of `/v1/completions` is. Raises ApiError."""
    fields = Fields(body)
    prompts = _prompts(fields.take("prompt"))
    limit = fields.whole("max_tokens", 1, _MOST_TOKENS)
    echo = fields.flag("echo")
    common = _common(fields, len(prompts))
    return Request(prompts=prompts, max_tokens=limit, echo=echo, **common)


def parse_chat(body: Mapping[str, Any]) -> Request:
    """The request that a body of `/v1/chat/completions` is. Raises ApiError."""
    fields = Fields(body)
    messages = _messages(fields.take("messages"))
    old, limit = fields.whole("max_tokens", 1, _MOST_TOKENS), fields.whole("max_completion_tokens", 1, _MOST_TOKENS)
    if old is not None and limit is not None and old != limit:
        raise ApiError("max_tokens and max_completion_tokens differ: give one of them", param="max_tokens")
    return Request(messages=messages, max_tokens=old if limit is None else limit, **_common(fields, 1))


def _common(fields: Fields, prompts: int) -> dict[str, Any]:
    """What both kinds of requests have. Whatever is left after it is refused, unless it changes nothing."""
    n = fields.whole("n", 1, _MOST_CHOICES) or 1
    if prompts * n > MOST_SEQUENCES:
        raise ApiError(
            f"{prompts * n} answers are more than the {MOST_SEQUENCES} of one request: ask in parts", param="n"
        )
    ignore_eos = fields.flag("ignore_eos")
    stream = fields.flag("stream")
    options = fields.nested("stream_options")
    if options is not None and not stream:
        raise ApiError("stream_options belong to a stream: leave them out or set stream", param="stream_options")
    at_end = always = False
    if options is not None:
        at_end = options.flag("include_usage")
        always = options.flag("continuous_usage_stats")
        options.flag("include_obfuscation")
        for name in options.left:
            raise ApiError(f"stream_options has no {quoted(name)}: leave it out", param="stream_options")
    model = fields.text("model")
    fields.text("user")
    common = {
        "model": model,
        "temperature": fields.number("temperature", 0.0, 2.0, 1.0),
        "top_p": fields.number("top_p", 0.0, 1.0, 1.0),
        "n": n,
        "seed": fields.whole("seed", -(2**63), 2**63 - 1),
        "stop": _stops(fields.take("stop")),
        "stop_tokens": _stop_tokens(fields.take("stop_token_ids")),
        "ignore_eos": ignore_eos,
        "stream": stream,
        "usage_at_end": at_end,
        "usage_always": always and at_end,
    }
    refuse_the_rest(fields, choices=n, ignore_eos=ignore_eos)
    return common


def _prompts(given: object) -> tuple[Prompt, ...]:
    """A string, several, token ids, or several lists of them."""
    if isinstance(given, str):
        return (readable(given, "prompt"),)
    if given is None:
        raise ApiError("the prompt is missing: give a text or token ids", param="prompt", code="missing_parameter")
    if isinstance(given, list) and given:
        if len(given) > MOST_SEQUENCES and type(given[0]) is not int:
            raise ApiError(f"{len(given)} prompts are more than {MOST_SEQUENCES}: ask in parts", param="prompt")
        if all(isinstance(one, str) for one in given):
            return tuple(readable(one, "prompt") for one in given)
        if all(type(one) is int for one in given):
            return (tuple(given),)
        if all(isinstance(one, list) and one and all(type(token) is int for token in one) for one in given):
            return tuple(tuple(one) for one in given)
    raise ApiError(
        f"prompt is {quoted(given)}: give a text, a list of texts, token ids, or a list of lists of token ids",
        param="prompt",
        code="invalid_type",
    )


def _messages(given: object) -> tuple[Message, ...]:
    if given is None:
        raise ApiError("messages are missing: give at least one", param="messages", code="missing_parameter")
    if not isinstance(given, list) or not given:
        raise ApiError(
            f"messages is {quoted(given)}: give a list of at least one", param="messages", code="invalid_type"
        )
    return tuple(_message(one, f"messages[{index}]") for index, one in enumerate(given))


def _message(given: object, where: str) -> Message:
    if not isinstance(given, dict):
        raise ApiError(f"{where} is {quoted(given)}: give an object with role and content", param=where)
    role = given.get("role")
    if role not in _ROLES:
        raise ApiError(f"{where} has role {quoted(role)}: give {', '.join(_ROLES[:-1])} or {_ROLES[-1]}", param=where)
    for name, value in given.items():
        if name not in ("role", "content", "name") and value not in (None, [], {}):
            raise ApiError(f"{where} has {quoted(name)}, which is not supported: leave it out", param=where)
    return Message(role, _content(given.get("content"), f"{where}.content"))


def _content(given: object, where: str) -> str:
    """A text, or the texts of a list of parts in one."""
    if isinstance(given, str):
        return readable(given, where)
    if not isinstance(given, list) or not given:
        raise ApiError(f"{where} is {quoted(given)}: give a text or a list of text parts", param=where)
    texts = []
    for part in given:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            what = quoted(part if kind is None or kind == "text" else kind)
            raise ApiError(f"{where} has a part {what}: only parts of type text are supported", param=where)
        texts.append(readable(part["text"], where))
    return "".join(texts)


def _stops(given: object) -> tuple[str, ...]:
    stops = [given] if isinstance(given, str) else [] if given is None else given
    if not isinstance(stops, list) or not all(isinstance(one, str) and one for one in stops):
        raise ApiError(f"stop is {quoted(given)}: give a text or a list of texts, none empty", param="stop")
    if len(stops) > _MOST_STOPS:
        raise ApiError(f"{len(stops)} stops are more than {_MOST_STOPS}: give fewer", param="stop")
    if any(len(one) > _LONGEST_STOP for one in stops):
        raise ApiError(f"a stop is longer than {_LONGEST_STOP} characters: give a shorter one", param="stop")
    return tuple(readable(one, "stop") for one in stops)


def _stop_tokens(given: object) -> tuple[int, ...]:
    tokens = [] if given is None else given
    if not isinstance(tokens, list) or not all(type(one) is int and one >= 0 for one in tokens):
        raise ApiError(f"stop_token_ids is {quoted(given)}: give a list of token ids", param="stop_token_ids")
    if len(tokens) > _MOST_STOP_TOKENS:
        raise ApiError(f"{len(tokens)} stop tokens are more than {_MOST_STOP_TOKENS}", param="stop_token_ids")
    return tuple(tokens)
