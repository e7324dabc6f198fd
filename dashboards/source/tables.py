"""The table panel: a row for each set of labels, a column for each query, the worst row first.

Queries are asked for now and merged by the labels that all of them have. A column is a label or the `ref` of a query;
what is no column is left out, so that the labels that a Prometheus adds to its targets do not widen the table.
"""

from __future__ import annotations

from typing import Any

from kvmon.dashboards.source.expressions import VARIABLES
from kvmon.dashboards.source.panels import Panel
from kvmon.dashboards.source.part import Json
from kvmon.dashboards.source.trouble import SourceError, nearest, within
from kvmon.dashboards.source.visuals import FIELD_KEYS, field_config, number_format

__all__ = ["TablePanel"]

_COLUMN_KEYS = (*FIELD_KEYS, "label", "width", "paint", "link", "align")
_CELLS = {
    "text": {"type": "color-text"},
    "background": {"mode": "basic", "type": "color-background"},
    "gauge": {"mode": "basic", "type": "gauge", "valueDisplayMode": "text"},
}


class TablePanel(Panel):
    """`columns` in their order, each with a `label`; `worst` is the `ref` of the query that the rows are sorted by."""

    required = (*Panel.required, "columns")
    optional = (*Panel.optional, "worst")
    kind = "table"

    def make(self, data: Json) -> Json:
        """The panel with its transformations: merge, sort, keep the columns, order and rename them."""
        targets = self.lettered(data["targets"])
        refs = [target["refId"] for target in targets]
        for target in targets:
            if target["format"] != "table":
                raise SourceError(f"the query {target['refId']} wants 'format: table'")
        fields = {}
        for key in data["columns"]:
            fields[key] = _field(str(key), refs)
        worst = data.get("worst")
        if worst is not None and worst not in refs:
            raise SourceError(f"'worst' is '{worst}', and no query has this 'ref': {nearest(str(worst), refs)}")
        custom = {"align": "auto", "cellOptions": {"type": "auto"}, "filterable": False, "inspect": False}
        config = field_config(data, custom, {"mode": "thresholds"})
        for key, column in data["columns"].items():
            with within(f"column '{key}'"):
                config["overrides"].append(_column(column))
        options = {
            "cellHeight": "sm",
            "frameIndex": 0,
            "showHeader": True,
        }
        made = self.panel(data, options, config)
        made["transformations"] = _transformations(fields, data["columns"], worst and _field(worst, refs))
        return made


def _field(key: str, refs: list[str]) -> str:
    """Grafana's name of the field of a column."""
    if key in refs:
        return f"Value #{key}" if len(refs) > 1 else "Value"
    return key


def _transformations(fields: dict[str, str], columns: dict[str, Json], worst: str | None) -> list[Json]:
    names = list(fields.values())
    made: list[Json] = [{"id": "merge", "options": {}}]
    if worst is not None:
        made.append({"id": "sortBy", "options": {"fields": {}, "sort": [{"desc": True, "field": worst}]}})
    made.append({"id": "filterFieldsByName", "options": {"include": {"names": names}}})
    renamed = {fields[key]: column["label"] for key, column in columns.items()}
    ordered = {name: index for index, name in enumerate(names)}
    made.append({"id": "organize", "options": {"excludeByName": {}, "indexByName": ordered, "renameByName": renamed}})
    return made


def _column(column: Any) -> Json:
    if not isinstance(column, dict) or "label" not in column:
        raise SourceError("wants keys, 'label' among them")
    for key in column:
        if key not in _COLUMN_KEYS:
            raise SourceError(f"has no key '{key}': {nearest(str(key), _COLUMN_KEYS)}")
    properties: list[Json] = [{"id": key, "value": value} for key, value in number_format(column).items()]
    if "width" in column:
        properties.append({"id": "custom.width", "value": column["width"]})
    if "align" in column:
        properties.append({"id": "custom.align", "value": column["align"]})
    if "paint" in column:
        if column["paint"] not in _CELLS:
            raise SourceError(f"'paint' is '{column['paint']}', and none of {', '.join(_CELLS)}")
        properties.append({"id": "custom.cellOptions", "value": dict(_CELLS[column["paint"]])})
    if "link" in column:
        properties.append({"id": "links", "value": [_link(column["link"])]})
    return {"matcher": {"id": "byName", "options": column["label"]}, "properties": properties}


def _link(link: Any) -> Json:
    """A link to another dashboard with the row's labels as its variables, and the same time and data source."""
    if not isinstance(link, dict) or set(link) != {"title", "to", "labels"}:
        raise SourceError("a link wants 'title', 'to' (the uid of a dashboard) and 'labels'")
    for label in link["labels"]:
        if label not in VARIABLES:
            raise SourceError(f"no dashboard has a variable '{label}': {nearest(str(label), VARIABLES)}")
    chosen = "".join(f"&var-{label}=${{__data.fields.{label}:percentencode}}" for label in link["labels"])
    url = f"/d/{link['to']}?${{__url_time_range}}&${{datasource:queryparam}}{chosen}"
    return {"targetBlank": False, "title": link["title"], "url": url}
