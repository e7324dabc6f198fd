"""`kvmon engine run`: the requests of a file through the reference engine, offline.

Wiring only: lines in, lines out. Nothing heavy is imported before the verb runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import click

from kvmon.cli.engine_options import BUILDING, SECTIONS, build_options, engine_options
from kvmon.cli.output_file import not_the_input, output_option
from kvmon.cli.sections import SectionedCommand
from kvmon.errors import ConfigError, InputError

__all__ = ["command"]


@click.command("run", cls=SectionedCommand, sections={"Files": ("output", "force"), **SECTIONS})
@click.argument("source", metavar="INPUT", type=click.Path(path_type=Path, readable=False))
@output_option("-o", "--output", help="The file to write.  [default: standard output]")
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@engine_options
def command(source: Path, output: Path | None, force: bool, **engine: Any) -> None:
    """Answer the requests of INPUT, a JSON object a line: the body of a completion, or of a chat where it has messages.

    INPUT - is standard input. Every line that is not blank gets a line, in the same order, with its custom_id or id
    where it has one; a request that cannot be answered gets an error object in its place, and the exit code is 1.
    """
    if force and output is None:
        raise ConfigError("--force replaces a file: it goes with -o")
    not_the_input(output, source)
    options = build_options(engine)
    lines = _lines(source)

    from kvmon.cli.engine_build import build_engine
    from kvmon.cli.live import signals_interrupt
    from kvmon.cli.patience import patience
    from kvmon.engine.server.api_error import to_json
    from kvmon.engine.server.assembly import engine_builder, load_service
    from kvmon.engine.server.batch import run_batch
    from kvmon.files import NewFile

    service = load_service(options["model"])
    # Opened before the work, so that a name that is taken costs nothing but a message.
    file = None if output is None else NewFile(output, "the answers", force=force)
    try:
        with signals_interrupt(), ExitStack() as stack:
            build = engine_builder(build_engine, service, options, engine["threads"])
            with patience(BUILDING):
                built = stack.enter_context(closing(build()))
            advance = stack.enter_context(_progress(len(lines)))
            results = run_batch(built, service, lines, advance)
        text = b"".join(to_json(result) + b"\n" for result in results)
        if file is None:
            click.echo(text, nl=False)
        else:
            file.write(text)
            file.close()
    finally:
        if file is not None:
            file.abort()
    failed = sum("error" in result for result in results)
    if failed:
        click.echo(f"kvmon: {failed} of {len(results)} requests failed: see their error objects", err=True)
        raise click.exceptions.Exit(1)


def _lines(source: Path) -> list[bytes]:
    """The lines that are not blank."""
    if str(source) == "-" and sys.stdin is None:
        raise InputError("standard input is closed: give a file with a JSON object a line")
    try:
        content = sys.stdin.buffer.read() if str(source) == "-" else source.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {source}: {error.strerror}: give a file with a JSON object a line") from None
    return [line for line in content.splitlines() if line.strip()]


@contextmanager
def _progress(length: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda lines: None
        return
    with click.progressbar(length=max(length, 1), label="answering", file=sys.stderr) as bar:
        yield bar.update
