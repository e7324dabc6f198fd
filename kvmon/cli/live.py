"""A live screen in the terminal: drawn in place, left with q or Ctrl-C, gone without a trace when it ends.

Invariant: however it ends (q, Ctrl-C, an error), the terminal is as it was before; `signals_interrupt` makes SIGTERM
and SIGHUP one of these ways. What is drawn comes from the caller.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live

__all__ = ["LiveScreen", "ascii_only", "signals_interrupt"]

_TICK = 0.1


def ascii_only(console: Console) -> bool:
    """Whether the terminal may not have more than ASCII."""
    return not console.encoding.startswith("utf")


class LiveScreen:
    """The alternate screen of a terminal while it lasts; `with LiveScreen(console) as screen: ...`."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.left = False
        self._live = Live(console=console, screen=True, auto_refresh=False, transient=True)
        self._keys: int | None = None
        self._before: list[Any] = []

    def __enter__(self) -> LiveScreen:
        if sys.stdin is not None and sys.stdin.isatty():
            self._keys = sys.stdin.fileno()
            self._before = termios.tcgetattr(self._keys)
            tty.setcbreak(self._keys)
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
        if self._keys is not None:
            termios.tcsetattr(self._keys, termios.TCSADRAIN, self._before)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines there are now."""
        return self.console.size.width, self.console.size.height

    def draw(self, content: RenderableType) -> None:
        """Show `content` instead of what was there."""
        self._live.update(content, refresh=True)

    def wait(self, seconds: float) -> bool:
        """Wait, or return early when the window changes its size; False when somebody asked to leave."""
        until, size = time.monotonic() + seconds, self.size
        while not self.left and size == self.size:
            remaining = until - time.monotonic()
            if remaining <= 0:
                break
            self._read_keys(min(_TICK, remaining))
        return not self.left

    def _read_keys(self, seconds: float) -> None:
        if self._keys is None:
            time.sleep(seconds)
            return
        readable, _, _ = select.select([self._keys], [], [], seconds)
        if readable:
            typed = os.read(self._keys, 64)
            # An empty read is the end of the terminal; \x03 arrives where Ctrl-C raises no signal.
            if not typed or typed[:1] in (b"q", b"Q", b"\x03"):
                self.left = True


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt in the block, so that what has to be put away is put away."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
