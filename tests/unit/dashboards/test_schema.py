"""Every dashboard against Grafana's schema of dashboards, panels and queries."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from kvmon.dashboards import NAMES
from tests.dashboards.asking import Json, dashboards, panels
from tests.unit.dashboards.grafana_schema import page_schema, panel_schema

PAGES = dashboards()


def complaints(schema: dict[str, Any], value: Json) -> list[str]:
    """What a schema says of a value, with the place."""
    return [
        f"{error.json_path}: {error.message}" for error in jsonschema.Draft202012Validator(schema).iter_errors(value)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_what_grafana_reads(name: str) -> None:
    """Keys, types and enumerations of the page, its variables, links and annotations."""
    marks = PAGES[name]["annotations"]["list"]
    of_prometheus = ("tagKeys", "textFormat", "titleFormat", "useValueForTime")
    plain = [{key: value for key, value in mark.items() if key not in of_prometheus} for mark in marks]
    # of the target the schema knows what Grafana's own store of annotations takes
    plain = [{key: value for key, value in mark.items() if key != "target"} for mark in plain]
    assert complaints(page_schema(), {**PAGES[name], "annotations": {"list": plain}}) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_panel_is_what_its_kind_takes(name: str) -> None:
    """Options, field configuration and queries of each panel, by its kind."""
    found = {panel["title"]: complaints(panel_schema(panel["type"]), panel) for panel in panels(PAGES[name])}
    assert {title: said for title, said in found.items() if said} == {}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("options", "legend", "displayMode"), "tabel"),
        (("options", "legend", "colour"), "red"),
        (("fieldConfig", "defaults", "custom", "drawStyle"), "dots"),
        (("fieldConfig", "defaults", "unti"), "bytes"),
        (("gridPos", "w"), "wide"),
    ],
)
def test_the_schema_refuses_what_grafana_would_not_read(path: tuple[str, ...], value: object) -> None:
    """A typing mistake is found: the tests above can fail."""
    panel = next(panel for panel in dashboards()["kvmon-pool"]["panels"] if panel["type"] == "timeseries")
    place = panel
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert complaints(panel_schema("timeseries"), panel) != []
