"""The log of a process: one line an event on standard error, in logfmt or JSON, from whichever library it comes.

    ts=2026-11-26T03:55:01.120Z level=info msg="an engine is followed" logger=kvmon.exporter.news engine=vllm rank=0
    {"ts": "2026-11-26T03:55:01.120Z", "level": "info", "msg": "an engine is followed", ...}

`extra` of a logging call becomes fields. Invariant: an event is exactly one line, whatever is in it: a traceback is a
field, and what would break a line or move a terminal's cursor is escaped. Nothing is dropped but what lies below the
level; libraries that chat at that level are heard only when they warn.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from typing import Any, TextIO

__all__ = ["FORMATS", "LEVELS", "JsonFormatter", "LogfmtFormatter", "configure"]

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("logfmt", "json")

# What every record has; the rest of its attributes are the fields that the caller gave.
_USUAL = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "color_message"}
_OURS = "kvmon"
_SERVER = ("uvicorn", "asyncio")
_LOG = logging.getLogger(__name__)


class _Formatter(logging.Formatter):
    """Makes fields of a record; a subclass writes them as one line."""

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """Time, level, message and logger, then what the caller gave, then the exception."""
        fields: dict[str, Any] = {
            "ts": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "msg": _message(record),
            "logger": record.name,
        }
        for name, value in record.__dict__.items():
            if name not in _USUAL:
                fields.setdefault(name, value)
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            fields["error"] = f"{type(error).__name__}: {error}"
            fields["traceback"] = self.formatException(record.exc_info)
        if record.stack_info:
            fields["stack"] = self.formatStack(record.stack_info)
        return fields


class LogfmtFormatter(_Formatter):
    """`key=value` pairs; a value with anything but plain characters is quoted, with the escapes of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, without its end."""
        return " ".join(f"{_key(name)}={_value(value)}" for name, value in self.fields(record).items())


class JsonFormatter(_Formatter):
    """One JSON object in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, without its end."""
        return json.dumps(self.fields(record), default=str)


def configure(level: str, format: str, stream: TextIO | None = None) -> None:
    """Send what is logged from now on to `stream`, standard error where not given, and what would print a traceback.

    `level` is one of LEVELS, `format` one of FORMATS. What was configured before is replaced.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else LogfmtFormatter())
    number = getattr(logging, level.upper())
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[handler], force=True)
    logging.getLogger(_OURS).setLevel(number)
    for name in _SERVER:
        logging.getLogger(name).setLevel(number if level == "debug" else max(number, logging.WARNING))
    logging.captureWarnings(True)
    threading.excepthook = _a_thread_ended


def _a_thread_ended(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_value is not None and not isinstance(arguments.exc_value, SystemExit):
        name = arguments.thread.name if arguments.thread else ""
        _LOG.error("a thread ended with an error", exc_info=arguments.exc_value, extra={"thread_name": name})


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # arguments that do not fit: what somebody meant to say is worth more than a traceback about it
        return f"{record.msg} {record.args}"


def _key(name: str) -> str:
    return "".join(character if character.isalnum() or character in "_.-" else "_" for character in name)


def _value(value: object) -> str:
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    text = str(value)
    if text and text.isprintable() and not any(character in ' "=\\' for character in text):
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(character if character.isprintable() else json.dumps(character)[1:-1] for character in quoted)
