"""Asks a Prometheus what the panels of a dashboard ask, as Grafana does: variables filled in, steps by the width.

A panel is known by its title; a row that is folded holds panels like any other.
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
from collections.abc import Iterator
from typing import Any

from kvmon.dashboards import NAMES, text
from tests.servers import Prometheus, fetch

__all__ = ["JOB", "Json", "PanelServer", "dashboards", "filled", "numbers", "panels", "queries"]

Json = dict[str, Any]

JOB = "kvmon"
"""The scrape job of every exporter here."""


class PanelServer(Prometheus):
    """A Prometheus that is asked as Grafana asks: at a time, or over a range of it."""

    def answers(
        self, panel: Json, begin_s: float, end_s: float, step_s: float, rate_s: float, engine: str = ".*"
    ) -> dict[str, list[Json]]:
        """What the queries of a panel give, by their letter; `rate_s` is `$__rate_interval`."""
        made = {}
        for target in panel.get("targets", []):
            expression = filled(target["expr"], rate_s, engine)
            made[target["refId"]] = (
                self.at(expression, end_s) if target["instant"] else self.over(expression, begin_s, end_s, step_s)
            )
        return made

    def at(self, expression: str, time_s: float) -> list[Json]:
        """The result of an instant query at a time."""
        return self._asked("query", query=expression, time=time_s)

    def over(self, expression: str, begin_s: float, end_s: float, step_s: float) -> list[Json]:
        """The result of a range query."""
        return self._asked("query_range", query=expression, start=begin_s, end=end_s, step=step_s)

    def _asked(self, what: str, **parameters: object) -> list[Json]:
        address = f"http://127.0.0.1:{self.port}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            answer = json.loads(fetch(address))
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None
        result = answer["data"]["result"]
        assert isinstance(result, list)
        return result


def dashboards() -> dict[str, Json]:
    """Every dashboard that is shipped, by its name."""
    return {name: json.loads(text(name)) for name in NAMES}


def panels(dashboard: Json) -> Iterator[Json]:
    """The panels of a dashboard that show something, in their order."""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            yield from panel["panels"]
        else:
            yield panel


def queries(dashboard: Json) -> Iterator[tuple[str, str]]:
    """Every query of a dashboard with what it is for: panels, annotations and variables."""
    for panel in panels(dashboard):
        for target in panel.get("targets", []):
            yield f"{panel['title']} / {target['refId']}", target["expr"]
    for annotation in dashboard["annotations"]["list"]:
        if "target" in annotation:
            yield f"annotation {annotation['name']}", annotation["target"]["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert found is not None, variable["query"]["query"]
            yield f"variable {variable['name']}", found[1]


def filled(expression: str, rate_s: float, engine: str = ".*") -> str:
    """A query as Grafana sends it when everything is chosen, or all of one engine."""
    values = {"job": JOB, "instance": ".*", "engine": engine, "rank": ".*", "pool": ".*"}
    values |= {"__rate_interval": f"{rate_s * 1000:.0f}ms", "__interval": f"{rate_s * 250:.0f}ms"}
    return re.sub(r"\$(\w+)", lambda found: values[found[1]], expression)


def numbers(series: Json) -> list[float]:
    """The values of one series of an answer, in their order."""
    return [float(value) for _, value in series.get("values", [series.get("value")])]
