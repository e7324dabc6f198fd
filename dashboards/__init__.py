"""Grafana dashboards over kvmon's metrics: generated JSON, and their names.

What builds them (`source/`) is not in a wheel and is not needed to read them.
"""

from __future__ import annotations

from importlib.resources import files

from kvmon.errors import ConfigError

__all__ = ["NAMES", "text"]

NAMES: tuple[str, ...] = ("kvmon-fleet", "kvmon-pool", "kvmon-incident", "kvmon-itself")
"""Every dashboard by its uid, in the order in which somebody on call opens them."""


def text(name: str) -> str:
    """The JSON of a dashboard, to be imported or provisioned as it is.

    Raises ConfigError for a name that is none of NAMES.
    """
    if name not in NAMES:
        raise ConfigError(f"there is no dashboard '{name}': 'kvmon dashboards' lists them all")
    return (files("kvmon.dashboards") / f"{name}.json").read_text(encoding="utf-8")
