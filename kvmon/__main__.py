"""`python -m kvmon` is the command line; it holds nothing of its own."""

from __future__ import annotations

from kvmon.cli.main import entry_point

if __name__ == "__main__":
    entry_point()
