"""`kvmon explain`: what a verdict means, how to confirm it, what it is not, and what to do."""

from __future__ import annotations

from difflib import get_close_matches

import click

from kvmon.errors import ConfigError

__all__ = ["command"]


@click.command("explain")
@click.argument("verdict", required=False)
def command(verdict: str | None) -> None:
    """Explain VERDICT; without one, list them all with a line each."""
    from kvmon.diagnosis.reading import first_line, page, pages

    if verdict is None:
        names = pages()
        width = max(map(len, names))
        click.echo("\n".join(f"{name:<{width}}  {first_line(name)}" for name in names))
        return
    name = verdict.strip().lower().replace("-", "_")
    if name not in pages():
        near = get_close_matches(name, pages(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "'kvmon explain' lists them all"
        raise ConfigError(f"there is no verdict '{verdict}': {hint}")
    click.echo(page(name).rstrip())
