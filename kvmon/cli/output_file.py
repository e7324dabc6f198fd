"""The option that names a file to write, the same in every verb."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from kvmon.errors import ConfigError

__all__ = ["not_the_input", "output_option"]


def output_option(*names: str, help: str, required: bool = False) -> Callable[[Any], Any]:
    """An option that takes the path of a file. "-" is refused: results go to standard output by themselves."""
    path = click.Path(path_type=Path, readable=False)
    return click.option(*names, type=path, required=required, callback=_named, help=help)


def not_the_input(output: Path | None, source: Path) -> None:
    """Raise ConfigError where the file to write is the one that is read."""
    if output is not None and output.exists() and source.exists() and output.samefile(source):
        raise ConfigError(f"{output} is what is read: give another name to write")


def _named(_context: click.Context, _parameter: click.Parameter, path: Path | None) -> Path | None:
    if path is not None and str(path) == "-":
        raise click.BadParameter("'-' is no file: give the name of one.")
    return path
