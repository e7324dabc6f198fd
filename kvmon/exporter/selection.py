"""Which collectors run: chosen for good by options, and for one scrape by `collect[]` and `exclude[]`.

The manners are node_exporter's: all are on until one is turned off; a scrape asks for some or leaves some out, never
both. Invariant: nothing that is asked for is ignored in silence; what cannot be had is a ConfigError with the names
that can.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kvmon.errors import ConfigError

__all__ = ["collectors_of_scrape", "collectors_turned_on", "unknown_collector"]

_LONGEST = 60  # characters of a name that is quoted


def collectors_turned_on(known: Sequence[str], chosen: Mapping[str, bool], *, defaults: bool = True) -> tuple[str, ...]:
    """The collectors that run, in the order of `known`: `chosen` by name, the others if `defaults`.

    Raises ConfigError for an unknown name, and where none would be left.
    """
    _check(chosen, known)
    on = tuple(name for name in known if chosen.get(name, defaults))
    if not on:
        raise ConfigError(f"every collector is off: turn one on with --collector.NAME, of {', '.join(known)}")
    return on


def collectors_of_scrape(
    known: Sequence[str], on: Sequence[str], collect: Sequence[str], exclude: Sequence[str]
) -> tuple[str, ...]:
    """What runs for a scrape that asks for `collect`, or leaves out `exclude`, of the collectors that are on.

    Raises ConfigError where both are given, for an unknown name, and for one that is asked for and off.
    """
    if collect and exclude:
        raise ConfigError("collect[] and exclude[] exclude each other: give one of them")
    _check((*collect, *exclude), known)
    for name in collect:
        if name not in on:
            raise ConfigError(f"the collector '{name}' is off: start the exporter with --collector.{name}")
    return tuple(name for name in on if (name in collect if collect else name not in exclude))


def unknown_collector(name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that no collector has."""
    shown = name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..."
    return ConfigError(f"there is no collector {shown!r}: give one of {', '.join(known)}")


def _check(names: Iterable[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise unknown_collector(name, known)
