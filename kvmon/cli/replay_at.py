"""`kvmon replay --at`: the state at a moment of a recording or a capture.

Wiring only: `kvmon.replay.moment` finds it, `kvmon.report.moment` draws it.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

__all__ = ["show"]


def show(path: Path, at: str, stream: str | None, json_: bool) -> None:
    """Print the state at the moment that `at` names, of every stream that has it or of one.

    Raises ConfigError for a moment that is none or is not there, InputError where nothing is known of it.
    """
    from kvmon.cli.console import QuietPipe
    from kvmon.cli.live import ascii_only
    from kvmon.cli.streams import damage_told, reading
    from kvmon.replay.lives import open_lives
    from kvmon.replay.moment import moments, until
    from kvmon.replay.when import parse_when
    from kvmon.report.moment import draw_moments, moment_view, moments_json

    when = parse_when(at)
    with (
        open_lives(path) as source,
        damage_told(path, source.damage),
        reading([path]) as advance,
    ):
        found = moments(source.named(stream), when)
        views = [moment_view(moment, until(moment, advance)) for moment in found]
    if json_:
        click.echo(json.dumps(moments_json(str(path), at, views), indent=2))
        return
    console = QuietPipe(soft_wrap=False)
    console.print(draw_moments(str(path), at, views, console.size.width, ascii_only=ascii_only(console)))
