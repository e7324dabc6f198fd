"""Say why nothing happens yet: the first run of kvmon on a machine compiles its kernels, which takes a while.

A line on standard error after two seconds, nothing when it goes faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer

import click

__all__ = ["patience"]

_AFTER_SECONDS = 2.0
_MESSAGE = "kvmon: compiling kernels (first run only, about a minute) ..."


@contextmanager
def patience(message: str = _MESSAGE, after_seconds: float = _AFTER_SECONDS) -> Iterator[None]:
    """Print `message` to standard error when the block takes longer than `after_seconds`."""
    timer = Timer(after_seconds, click.echo, (message,), {"err": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
