"""A chat into the text that the model continues: the model's own template, or a plain one.

The plain one, for models that bring none, is a line `ROLE: CONTENT` for each message and `assistant:` at the end.
Templates are strangers' code: they run in jinja's sandbox, which reaches neither Python's inside nor what it is given.
"""

from __future__ import annotations

import datetime
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from kvmon.engine.server.api_error import ApiError
from kvmon.engine.server.fields import readable
from kvmon.engine.server.protocol import Message
from kvmon.engine.tokenizer import Tokenizer, read_json
from kvmon.errors import ConfigError, InputError

__all__ = ["ChatTemplate", "load_chat_template", "plain_chat"]

_MOST_SECONDS = 2.0  # to render a chat

ChatTemplate = Callable[[Sequence[Message]], str]
"""Messages into the text to tokenise, special tokens written out; raises ApiError where they cannot be rendered."""


def plain_chat(messages: Sequence[Message]) -> str:
    """The template of models that bring none."""
    return "".join(f"{one.role}: {one.content}\n" for one in messages) + "assistant:"


def load_chat_template(directory: Path | None, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The template of a model directory: `chat_template.jinja`, or the one in `tokenizer_config.json`; None without.

    Raises InputError where it is no template, ConfigError where jinja is not installed.
    """
    if directory is None:
        return None
    path = directory / "chat_template.jinja"
    try:
        source: object = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        path = directory / "tokenizer_config.json"
        source = _default(read_json(path).get("chat_template"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}): fetch it again or remove it") from None
    if source is None:
        return None
    if not isinstance(source, str):
        raise InputError(f"{path} has a chat_template that is no text: fetch it again")
    return _compiled(source, path, tokenizer)


def _default(entry: object) -> object:
    """Where a model has several templates by name, the one called default."""
    if isinstance(entry, list):
        named = (one.get("template") for one in entry if isinstance(one, dict) and one.get("name") == "default")
        return next(named, None)
    return entry


def _compiled(source: str, path: Path, tokenizer: Tokenizer) -> ChatTemplate:
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise ConfigError("a chat template needs jinja2: pip install 'kvmon[engine]'") from None

    def refuse(message: object) -> NoReturn:
        raise TemplateError(str(message))

    # As the templates that models bring expect it.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        template = environment.from_string(source)
    except Exception as error:  # jinja's own, and those of Python's compiler behind it
        raise InputError(f"the chat template in {path} cannot be read ({str(error)[:120]}): fetch it again") from None

    def render(messages: Sequence[Message]) -> str:
        try:
            with _time_limit(_MOST_SECONDS):
                text = template.render(
                    messages=[{"role": one.role, "content": one.content} for one in messages],
                    add_generation_prompt=True,
                    bos_token=tokenizer.bos_text,
                    eos_token=tokenizer.eos_text,
                    tools=None,
                    documents=None,
                )
            return readable(text, "messages")
        except Exception as error:  # whatever a stranger's template does
            reason = str(error)[:200] or type(error).__name__
            raise ApiError(f"the model's chat template refuses these messages: {reason}", param="messages") from None

    return render


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError inside the block when it takes longer.

    A thread cannot be stopped from outside, so Python's own tracing looks at the clock with each line of the template.
    """
    until = time.monotonic() + seconds
    before = sys.gettrace()

    def look(frame: FrameType, event: str, argument: object) -> Any:
        if time.monotonic() > until:
            raise TimeoutError(f"it takes longer than {seconds:g} s")
        return look

    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)


def _tojson(value: object, indent: int | None = None, **_: Any) -> str:
    # jinja's own escapes for HTML.
    return json.dumps(value, ensure_ascii=False, indent=indent)
