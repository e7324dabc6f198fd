"""Options of `kvmon exporter` that choose what it tells: a switch for each collector, and limits of series.

The collectors are looked up when the options of the command are: that imports them, which nothing else of the command
line has to pay for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import click

from kvmon.catalog import SERIES_BUDGET
from kvmon.errors import ConfigError

__all__ = ["Collecting", "ExporterCommand", "collecting", "collecting_options"]

_MAX_SERIES = 5_000  # 8 ranks of 4 pools within their budgets fit
_PREFIX, _OFF = "--collector.", "--no-collector."


@dataclass(frozen=True, slots=True)
class Collecting:
    """What is collected: names of collectors, series a rank with one pool may have, series a page may have (0: any)."""

    collectors: tuple[str, ...]
    series_budget: int
    max_series: int


class ExporterCommand(click.Command):
    """A command with a switch for each collector; one that there is not is told with those that there are."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Its own parameters and the switches."""
        help_option = self.get_help_option(ctx)
        return [*self.params, *_switches(), *([help_option] if help_option else [])]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; the error for an unknown switch is one about collectors."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            for prefix in (_PREFIX, _OFF):
                if error.option_name.startswith(prefix):
                    from kvmon.exporter.selection import unknown_collector

                    raise unknown_collector(error.option_name.removeprefix(prefix), _names()) from None
            raise


def collecting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options beside the switches."""
    options = (
        click.option(
            "--series-budget",
            default=SERIES_BUDGET,
            show_default=True,
            help="Series that a rank may have for each of its pools, up to four; what has no room is counted.",
        ),
        click.option(
            "--max-series",
            default=_MAX_SERIES,
            show_default=True,
            help="Series that the whole page may have; 0: no limit.",
        ),
        click.option(
            "--collector.disable-defaults",
            "disable_defaults",
            is_flag=True,
            help="Run those collectors alone that are turned on.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def collecting(options: Mapping[str, Any]) -> Collecting:
    """What the options say. Raises ConfigError for limits that cannot be, and where no collector is left."""
    from kvmon.exporter.page import own_series
    from kvmon.exporter.selection import collectors_turned_on

    switches = {name: options[_parameter(name)] for name in _names()}
    chosen = {name: on for name, on in switches.items() if on is not None}
    collectors = collectors_turned_on(_names(), chosen, defaults=not options["disable_defaults"])
    budget, most, own = options["series_budget"], options["max_series"], own_series(len(collectors))
    if budget < 1:
        raise ConfigError(f"--series-budget is {budget}: give 1 or more")
    if most < 0 or 0 < most <= own:
        raise ConfigError(f"--max-series is {most}: give more than the {own} about kvmon itself, or 0 for no limit")
    return Collecting(collectors, budget, most)


@cache
def _switches() -> tuple[click.Option, ...]:
    from kvmon.exporter.collectors import COLLECTORS, about

    return tuple(
        click.Option([f"{_PREFIX}{make.name}/{_OFF}{make.name}", _parameter(make.name)], default=None, help=about(make))
        for make in COLLECTORS
    )


def _names() -> tuple[str, ...]:
    from kvmon.exporter.collectors import COLLECTORS

    return tuple(make.name for make in COLLECTORS)


def _parameter(name: str) -> str:
    return f"collector_{name}"
