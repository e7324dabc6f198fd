"""The console that verbs print to."""

from __future__ import annotations

from typing import Any

from rich.console import Console

__all__ = ["QuietPipe"]


class QuietPipe(Console):
    """A console whose reader may go away: that is the error of a pipe, as with plain output, and no failed check."""

    def on_broken_pipe(self) -> Any:
        """Raise BrokenPipeError, which `kvmon.cli.main` knows how to end with."""
        raise BrokenPipeError
