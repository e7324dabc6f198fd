"""The variables at the top of a page: the data source, and the labels that narrow everything below.

They are the same on every dashboard, all may be chosen more than once, and "All" matches what is not there yet.
"""

from __future__ import annotations

from kvmon.dashboards.source.expressions import VARIABLES, selector
from kvmon.dashboards.source.part import DATASOURCE, Json, Part
from kvmon.dashboards.source.queries import checked
from kvmon.dashboards.source.trouble import SourceError
from kvmon.dashboards.source.upstream import TemplatesItemBase

__all__ = ["DatasourceVariable", "LabelVariable"]

_ON_TIME_RANGE = 2  # when its values are asked for again: with every change of the time range
_SHOWN = 0


class DatasourceVariable(Part, TemplatesItemBase):
    """Which Prometheus is asked."""

    required = ("label", "description")

    def make(self, data: Json) -> Json:
        """The variable `datasource`."""
        return {
            "description": data["description"],
            "hide": _SHOWN,
            "includeAll": False,
            "label": data["label"],
            "multi": False,
            "name": "datasource",
            "options": [],
            "query": "prometheus",
            "refresh": 1,
            "regex": "",
            "type": "datasource",
        }


class LabelVariable(Part, TemplatesItemBase):
    """The values that a label has on the metric `of`, where what was chosen before it holds."""

    required = ("name", "label", "of", "description")

    def make(self, data: Json) -> Json:
        """The variable called as its label is."""
        name = data["name"]
        if name not in VARIABLES:
            raise SourceError(f"'{name}' is no label that every dashboard has: {', '.join(VARIABLES)}")
        before = VARIABLES.index(name)
        series = f"{data['of']}{{{selector(VARIABLES[before - 1])}}}" if before else str(data["of"])
        query = f"label_values({checked(series, f'{{{{{name}}}}}')}, {name})"
        return {
            # All jobs are those of kvmon, named one by one; what is within them may as well be anything.
            **({"allValue": ".*"} if before else {}),
            "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
            "datasource": dict(DATASOURCE),
            "description": data["description"],
            "hide": _SHOWN,
            "includeAll": True,
            "label": data["label"],
            "multi": True,
            "name": name,
            "options": [],
            "query": {"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
            "refresh": _ON_TIME_RANGE,
            "regex": "",
            "sort": 3 if name == "rank" else 1,
            "type": "query",
        }
