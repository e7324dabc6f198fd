"""The runbooks that the package has, one for each alert name, and where an alert says that they are.

By default an alert points to the exporter that its series come from, which serves them: that needs no host of its own.
Invariant: a name is looked up in the package's own folder; no path is made of it.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib.resources import files

from kvmon.errors import ConfigError

__all__ = ["DEFAULT_RUNBOOK_URL", "check_runbook_url", "runbook", "runbooks"]

DEFAULT_RUNBOOK_URL = "http://{{ $labels.instance }}/runbooks"
"""The exporter that the series came from."""


def runbooks() -> dict[str, str]:
    """Text of each runbook by the name of its alert."""
    folder = files("kvmon.alerts").joinpath("runbooks")
    texts = {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir() if file.name.endswith(".md")}
    return {name.removesuffix(".md"): texts[name] for name in sorted(texts)}


def runbook(alert: str) -> str:
    """The runbook of an alert. Raises ConfigError for a name that is no alert's, and names the nearest ones."""
    texts = runbooks()
    named = {name.lower(): name for name in texts}
    name = named.get(alert.strip().lower())
    if name is not None:
        return texts[name]
    near = [named[found] for found in get_close_matches(alert.lower(), named, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(near)}?" if near else "'kvmon alerts' lists them all"
    raise ConfigError(f"there is no alert '{alert}': {hint}")


def check_runbook_url(prefix: str) -> str:
    """`prefix` without a slash at its end. Raises ConfigError for what no browser opens."""
    if not prefix.startswith(("http://", "https://")) or prefix.rstrip("/") in ("http:", "https:"):
        raise ConfigError(f"--runbook-url is '{prefix}': give an address that begins with https:// or http://")
    if any((character.isspace() and character != " ") or not character.isprintable() for character in prefix):
        raise ConfigError("--runbook-url has a character that no address has: give one line of text")
    return prefix.rstrip("/")
