"""What the server serves: a model by name, with its tokenizer, its chat template and what fits into it.

Purpose: turn a valid request into prompts that an engine takes. Invariant: whatever can be refused without the engine
is refused here, with the numbers. It starts nothing and generates nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvmon.engine import Engine, Sampling
from kvmon.engine.server.api_error import ApiError, quoted, too_long
from kvmon.engine.server.chat import ChatTemplate, plain_chat
from kvmon.engine.server.protocol import Prompt, Request
from kvmon.engine.tokenizer import Tokenizer
from kvmon.errors import ConfigError

__all__ = ["Limits", "Planned", "Service", "enter", "limits_of"]

_LEAST_TOP_P = 1e-9  # OpenAI takes 0 for the most likely token alone; the engine wants a share
_COMPLETION_TOKENS = 16  # OpenAI's, where a completion does not say


@dataclass(frozen=True)
class Limits:
    """What the engine takes: ids below `vocabulary`, and sequences that fit the model and the pool, in tokens."""

    vocabulary: int
    max_model_len: int
    capacity_tokens: int


def limits_of(engine: Engine) -> Limits:
    """What an engine takes."""
    return Limits(engine.vocabulary, engine.max_model_len, engine.capacity_tokens)


@dataclass(frozen=True)
class Planned:
    """One prompt as the engine takes it, and its text where the answer has to repeat it."""

    tokens: tuple[int, ...]
    sampling: Sampling
    echo: str


def enter(engine: Engine, plans: Sequence[Planned], param: str) -> list[int]:
    """Hand all prompts of a request to the engine, or none of them; the engine's numbers of the answers.

    Raises ApiError for one that can never fit; `param` names the parameter with the prompt.
    """
    numbers: list[int] = []
    try:
        for plan in plans:
            numbers += engine.add(plan.tokens, plan.sampling)
    except ConfigError as error:
        for number in numbers:
            engine.abort(number)
        raise too_long(str(error), param) from None
    return numbers


@dataclass(frozen=True)
class Service:
    """One model. `template` None: the plain one."""

    model: str
    tokenizer: Tokenizer
    template: ChatTemplate | None

    def plan(self, request: Request, limits: Limits) -> list[Planned]:
        """The prompts of a request. Raises ApiError for another model and for what can never fit."""
        if request.model not in (None, self.model):
            raise ApiError(
                f"there is no model {quoted(request.model)} here: ask for {self.model}",
                status=404,
                param="model",
                code="model_not_found",
            )
        _check_tokens(request.stop_tokens, limits, "stop_token_ids")
        if request.chat:
            return [_planned(self._chat(request), request, limits, "")]
        return [self._completion(prompt, request, limits) for prompt in request.prompts]

    def _chat(self, request: Request) -> tuple[int, ...]:
        if self.template is None:
            return tuple(self.tokenizer.encode(plain_chat(request.messages)))
        return tuple(self.tokenizer.encode(self.template(request.messages), special=False))

    def _completion(self, prompt: Prompt, request: Request, limits: Limits) -> Planned:
        if isinstance(prompt, str):
            return _planned(tuple(self.tokenizer.encode(prompt)), request, limits, prompt if request.echo else "")
        _check_tokens(prompt, limits, "prompt")
        return _planned(prompt, request, limits, self.tokenizer.decode(prompt) if request.echo else "")


def _check_tokens(tokens: Sequence[int], limits: Limits, param: str) -> None:
    for token in tokens:
        if not 0 <= token < limits.vocabulary:
            raise ApiError(
                f"{param} has token {quoted(token)}: this model's are 0 to {limits.vocabulary - 1}", param=param
            )


def _planned(tokens: tuple[int, ...], request: Request, limits: Limits, echo: str) -> Planned:
    try:
        sampling = Sampling(
            max_tokens=_most(len(tokens), request, limits),
            temperature=request.temperature,
            top_p=request.top_p or _LEAST_TOP_P,
            seed=request.seed,
            stop_tokens=request.stop_tokens,
            ignore_eos=request.ignore_eos,
            n=request.n,
        )
    except ConfigError as error:
        raise ApiError(str(error)) from None
    return Planned(tokens, sampling, echo)


def _most(prompt: int, request: Request, limits: Limits) -> int:
    """Most tokens of an answer to a prompt of so many."""
    param, longest, pool = request.prompt_param, limits.max_model_len, limits.capacity_tokens
    if prompt == 0:
        raise ApiError(f"{param} has no token: give at least one", param=param)
    if prompt >= longest:
        raise too_long(
            f"the prompt has {prompt} tokens, and the model takes {longest} with the answer: shorten it", param
        )
    if request.max_tokens is None:
        if prompt >= pool:
            raise too_long(
                f"the prompt has {prompt} tokens, and the pool holds {pool} with the answer: shorten it", param
            )
        room = min(longest, pool) - prompt
        return room if request.chat else min(room, _COMPLETION_TOKENS)
    needed = prompt + request.max_tokens
    for holder, most in (("model takes", longest), ("pool holds", pool)):
        if needed > most:
            raise too_long(
                f"{prompt} tokens of prompt and {request.max_tokens} of answer are {needed}, and the {holder} {most}: "
                "ask for less",
                param,
            )
    return request.max_tokens
