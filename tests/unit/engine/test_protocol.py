"""Requests: what is accepted, what is refused by name, and texts that stop where they should."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmon.engine.server.api_error import ApiError
from kvmon.engine.server.fields import parse_json
from kvmon.engine.server.protocol import Message, Request, parse_chat, parse_completion
from kvmon.engine.server.service import Limits, Service
from kvmon.engine.server.text import AnswerText
from kvmon.engine.tokenizer import ByteTokenizer

USER = {"role": "user", "content": "hi"}
LIMITS = Limits(vocabulary=258, max_model_len=100, capacity_tokens=64)
SERVICE = Service("the-model", ByteTokenizer(), None)


def refusal(body: dict[str, Any]) -> ApiError:
    """The error of a body that nobody can answer."""
    with pytest.raises(ApiError) as raised:
        SERVICE.plan(parse_chat(body) if "messages" in body else parse_completion(body), LIMITS)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300
    return raised.value


def test_a_completion_has_openais_defaults() -> None:
    """One answer of 16 tokens at temperature 1, in one piece; null is as good as nothing."""
    body = {"model": "the-model", "prompt": "hi", "stop": None, "max_tokens": None, "tools": None, "seed": None}
    request = parse_completion(body)
    assert request == Request("the-model", prompts=("hi",))
    (plan,) = SERVICE.plan(request, LIMITS)
    assert plan.tokens == (256, 104, 105)
    assert (plan.sampling.max_tokens, plan.sampling.temperature, plan.sampling.n) == (16, 1.0, 1)


def test_a_chat_may_become_as_long_as_model_and_pool_allow() -> None:
    """Without a limit of its own, a chat ends where the smaller of the two does."""
    (plan,) = SERVICE.plan(parse_chat({"messages": [USER]}), LIMITS)
    assert len(plan.tokens) + plan.sampling.max_tokens == 64


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ("a",)),
        (["a", ""], ("a", "")),
        ([1, 2], ((1, 2),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
    ],
)
def test_a_prompt_is_text_or_tokens_or_several(prompt: Any, prompts: tuple[Any, ...]) -> None:
    """Each of OpenAI's four forms."""
    assert parse_completion({"prompt": prompt}).prompts == prompts


def test_messages_are_texts_or_text_parts() -> None:
    """Parts are joined; what a message may have beside role and content is accepted."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = {"messages": [{"role": "system", "content": "x", "name": "n"}, {"role": "user", "content": parts}]}
    assert parse_chat(body).messages == (Message("system", "x"), Message("user", "ab"))


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [258]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"prompt": ["a"] * 513}, "prompt"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [USER, {"role": "robot", "content": "x"}]}, "messages[1]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{**USER, "tool_calls": [{}]}]}, "messages[0]"),
        ({"messages": [USER], "max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"messages": [USER], "echo": True}, "echo"),
        ({"prompt": "a", "max_completion_tokens": 4}, "max_completion_tokens"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "max_tokens": "4"}, "max_tokens"),
        ({"prompt": "a", "max_tokens": 4.0}, "max_tokens"),
        ({"prompt": "a", "max_tokens": True}, "max_tokens"),
        ({"prompt": "a", "temperature": -0.1}, "temperature"),
        ({"prompt": "a", "temperature": 2.1}, "temperature"),
        ({"prompt": "a", "temperature": "hot"}, "temperature"),
        ({"prompt": "a", "temperature": float("inf")}, "temperature"),
        ({"prompt": "a", "top_p": 1.5}, "top_p"),
        ({"prompt": "a", "n": 0}, "n"),
        ({"prompt": "a", "n": 129}, "n"),
        ({"prompt": ["a"] * 300, "n": 2}, "n"),
        ({"prompt": "a", "seed": 2**63}, "seed"),
        ({"prompt": "a", "stop": ""}, "stop"),
        ({"prompt": "a", "stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"prompt": "a", "stop": [1]}, "stop"),
        ({"prompt": "a", "stop": "x" * 1001}, "stop"),
        ({"prompt": "a", "stop_token_ids": [258]}, "stop_token_ids"),
        ({"prompt": "a", "stop_token_ids": 3}, "stop_token_ids"),
        ({"prompt": "a", "stream": "yes"}, "stream"),
        ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options"),
        ({"prompt": "a", "stream": True, "stream_options": {"colour": True}}, "stream_options"),
        ({"prompt": "a", "stream": True, "stream_options": {"include_usage": 1}}, "include_usage"),
        ({"prompt": "a", "user": 7}, "user"),
        ({"prompt": "a", "ignore_eos": "no"}, "ignore_eos"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "logprobs": 0}, "logprobs"),
        ({"prompt": "a", "presence_penalty": 0.5}, "presence_penalty"),
        ({"prompt": "a", "logit_bias": {"5": 100}}, "logit_bias"),
        ({"prompt": "a", "min_tokens": 3}, "min_tokens"),
        ({"prompt": "a", "top_k": 5}, "top_k"),
        ({"messages": [USER], "tools": [{"type": "function"}]}, "tools"),
        ({"messages": [USER], "response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": [USER], "logprobs": True}, "logprobs"),
        ({"prompt": "a", "frobnicate": 1}, "frobnicate"),
    ],
)
def test_what_cannot_be_is_refused_by_name(given: dict[str, Any], param: str) -> None:
    """Status 400, the parameter named, one line."""
    error = refusal(given)
    assert (error.status, error.param) == (400, param)
    assert error.body()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "neutral",
    [
        {"best_of": 1},
        {"n": 3, "best_of": 3},
        {"frequency_penalty": 0},
        {"presence_penalty": 0.0},
        {"logit_bias": {}},
        {"logprobs": False},
        {"response_format": {"type": "text"}},
        {"tools": [], "tool_choice": "none", "parallel_tool_calls": True},
        {"repetition_penalty": 1.0, "top_k": -1, "min_p": 0, "min_tokens": 0},
        {"ignore_eos": True, "min_tokens": 30},
        {"user": "somebody", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
    ],
)
def test_what_changes_nothing_is_accepted(neutral: dict[str, Any]) -> None:
    """Clients that send every parameter with its usual value are served."""
    assert parse_chat({"messages": [USER], **neutral}).messages
    assert parse_completion({"prompt": "a", **neutral}).prompts == ("a",)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"prompt": "x" * 100}, "101 tokens, and the model takes 100"),
        ({"prompt": "x" * 63}, "64 tokens, and the pool holds 64"),
        ({"prompt": "x" * 49, "max_tokens": 51}, "50 tokens of prompt and 51 of answer are 101"),
        ({"prompt": "x" * 30, "max_tokens": 40}, "are 71, and the pool holds 64"),
        ({"messages": [{"role": "user", "content": "x" * 100}]}, "the model takes 100"),
    ],
)
def test_what_can_never_fit_says_so_with_numbers(body: dict[str, Any], says: str) -> None:
    """OpenAI's code for it, the tokens that are needed and what there is."""
    error = refusal(body)
    assert (error.status, error.code) == (400, "context_length_exceeded")
    assert says in str(error)


def test_another_model_is_not_found() -> None:
    """Status 404, and the name of the one that is there."""
    error = refusal({"prompt": "a", "model": "gpt-9"})
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")
    assert "the-model" in str(error)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b"\xff", b'{"n": NaN}', b"[" * 100_000, b"1" * 10_000])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    """Status 400, whatever is wrong with it."""
    with pytest.raises(ApiError) as raised:
        parse_json(body)
    assert (raised.value.status, raised.value.code) == (400, "invalid_json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
PARAMETERS = ["prompt", "messages", "n", "stop", "seed", "top_p", "logprobs", "stream_options", "stop_token_ids", "x"]


@given(body=st.dictionaries(st.sampled_from(PARAMETERS), JSON, max_size=4))
def test_any_body_is_a_request_or_a_refusal(body: dict[str, Any]) -> None:
    """Nothing but ApiError, and its body can be sent."""
    for parse in (parse_completion, parse_chat):
        try:
            SERVICE.plan(parse(body), LIMITS)
        except ApiError as error:
            assert json.dumps(error.body()).isascii()


def stopped_text(text: str, stops: list[str]) -> tuple[list[str], bool]:
    """The pieces that are given of a text that comes byte by byte, and whether it was stopped."""
    answer = AnswerText(ByteTokenizer().decoder(), stops)
    parts = [answer.push(byte) for byte in text.encode()]
    return [*parts, answer.finish()], answer.stopped


@pytest.mark.parametrize(
    ("text", "stops", "given"),
    [
        ("hello world", ["o w"], "hell"),
        ("hello", ["x"], "hello"),
        ("aab", ["ab"], "a"),
        ("ababac", ["abac"], "ab"),
        ("xabcd", ["abcd", "bc"], "xa"),
        ("xabc", ["c", "abc"], "x"),
        ("hell", ["hello"], "hell"),
        ("a€b", ["€"], "a"),
        ("stop", ["stop"], ""),
    ],
)
def test_a_stop_text_is_cut_exactly(text: str, stops: list[str], given: str) -> None:
    """Neither the stop text nor anything after it; the beginning of one that does not complete is given."""
    parts, stopped = stopped_text(text, stops)
    assert "".join(parts) == given
    assert stopped == (given != text)


LETTERS = st.text("ab€", max_size=20)


@given(text=LETTERS, stops=st.lists(LETTERS.filter(bool), max_size=3))
def test_nothing_of_a_stop_text_is_ever_given(text: str, stops: list[str]) -> None:
    """At every moment what was given is a beginning of the answer, which ends before the first stop text."""
    ends = [at + len(stop) for stop in stops if (at := text.find(stop)) >= 0]
    expected = text
    if ends:
        expected = min((text[: min(ends)].removesuffix(s) for s in stops if text[: min(ends)].endswith(s)), key=len)
    parts, stopped = stopped_text(text, stops)
    assert "".join(parts) == expected
    assert stopped == bool(ends)
