"""One line an event, whatever is in it, in two formats that their own parsers read."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmon.exporter.logs import JsonFormatter, LogfmtFormatter

# Lines as others cut them: str.splitlines knows eleven ends of a line, and a terminal is moved by other characters.
TEXTS = st.text(st.characters(), max_size=40)
FIELDS = st.dictionaries(
    st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True).filter(lambda name: not hasattr(record(""), name)),
    st.one_of(TEXTS, st.integers(), st.booleans(), st.none()),
    max_size=4,
)
_PAIR = re.compile(r'([^\s="]+)=("(?:[^"\\]|\\.)*"|[^\s"]*)(?: |$)')


def record(message: str, **fields: object) -> logging.LogRecord:
    """A record as `logging` makes it."""
    made = logging.LogRecord("kvmon.test", logging.INFO, __file__, 1, message, None, None)
    made.created, made.msecs = 1_764_129_301.12, 120.0
    made.__dict__.update(fields)
    return made


def parse_logfmt(line: str) -> dict[str, str]:
    """Pairs as a parser of logfmt reads them; fails where the line is none."""
    pairs, at = {}, 0
    while at < len(line):
        found = _PAIR.match(line, at)
        assert found, line[at:]
        name, value = found.groups()
        pairs[name] = json.loads(value) if value.startswith('"') else value
        at = found.end()
    return pairs


def test_what_a_line_looks_like() -> None:
    """Time in UTC, level, message, logger, then the fields."""
    event = record("an engine is followed", engine="vllm", rank=0, directory="/run/kv mon")
    assert LogfmtFormatter().format(event) == (
        'ts=2025-11-26T03:55:01.120Z level=info msg="an engine is followed" logger=kvmon.test '
        'engine=vllm rank=0 directory="/run/kv mon"'
    )
    assert json.loads(JsonFormatter().format(event)) == {
        "ts": "2025-11-26T03:55:01.120Z",
        "level": "info",
        "msg": "an engine is followed",
        "logger": "kvmon.test",
        "engine": "vllm",
        "rank": 0,
        "directory": "/run/kv mon",
    }


@given(message=TEXTS, fields=FIELDS)
def test_whatever_is_logged_is_one_line_that_reads_back(message: str, fields: dict[str, object]) -> None:
    """Quotes, ends of lines, escapes of terminals, lone surrogates: nothing breaks a line, and nothing is lost."""
    event = record("%s", **fields)
    event.args = (message,)
    for line in (LogfmtFormatter().format(event), JsonFormatter().format(event)):
        assert line.isprintable() and len(line.splitlines()) == 1
    read = json.loads(JsonFormatter().format(event))
    assert (read["msg"], {name: read[name] for name in fields}) == (message, fields)
    pairs = parse_logfmt(LogfmtFormatter().format(event))
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
    assert (pairs["msg"], {name: pairs[name] for name in fields}) == (message, texts)


@pytest.mark.parametrize("formatter", [LogfmtFormatter(), JsonFormatter()])
def test_an_exception_is_a_field(formatter: logging.Formatter) -> None:
    """The traceback stands in the line, whole."""
    event = record("it failed")
    try:
        raise KeyError("pool\nof two lines")
    except KeyError as error:
        event.exc_info = (type(error), error, error.__traceback__)
    line = formatter.format(event)
    read = json.loads(line) if isinstance(formatter, JsonFormatter) else parse_logfmt(line)
    assert line.isprintable()
    assert read["error"] == "KeyError: 'pool\\nof two lines'"
    assert read["traceback"].startswith("Traceback (most recent call last):\n") and "test_logs.py" in read["traceback"]


def test_what_the_caller_calls_like_ours_does_not_hide_ours() -> None:
    """A field of another library named `level` or `ts` leaves time and level as they are."""
    read = json.loads(JsonFormatter().format(record("x", level="none", ts=1, logger="other")))
    assert (read["level"], read["logger"], read["ts"]) == ("info", "kvmon.test", "2025-11-26T03:55:01.120Z")


def test_arguments_that_do_not_fit_are_shown() -> None:
    """A mistake in a call is a line too, and not a traceback beside the log."""
    event = record("%d of %d")
    event.args = ("one",)
    assert parse_logfmt(LogfmtFormatter().format(event))["msg"] == "%d of %d ('one',)"


SCRIPT = """
import logging, threading, warnings
from kvmon.exporter.logs import configure
configure({level!r}, {format!r})
for name in ("kvmon.exporter", "uvicorn.error", "asyncio", "numba.core"):
    for level in (10, 20, 30, 40):
        logging.getLogger(name).log(level, "said", extra={{"number": level}})
warnings.warn("old thing")
thread = threading.Thread(target=lambda: 1 / 0, name="worker")
thread.start()
thread.join()
"""


@pytest.mark.parametrize(
    ("level", "kvmon", "server", "others"),
    [("debug", 10, 10, 30), ("info", 20, 30, 30), ("warning", 30, 30, 30), ("error", 40, 40, 40)],
)
def test_every_library_goes_the_same_way(level: str, kvmon: int, server: int, others: int) -> None:
    """Records of kvmon, the server and others, warnings, threads that die: all in the format, above the level."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(level=level, format="json")], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    events = [json.loads(line) for line in done.stderr.splitlines()]
    for name, least in (
        ("kvmon.exporter", kvmon),
        ("uvicorn.error", server),
        ("asyncio", server),
        ("numba.core", others),
    ):
        said = [event["number"] for event in events if event["logger"] == name]
        assert said == [number for number in (10, 20, 30, 40) if number >= least], name
    assert any(event["logger"] == "py.warnings" and "old thing" in event["msg"] for event in events) == (
        level != "error"
    )
    (dead,) = [event for event in events if event["msg"] == "a thread ended with an error"]
    assert dead["error"] == "ZeroDivisionError: division by zero" and dead["thread_name"] == "worker"
