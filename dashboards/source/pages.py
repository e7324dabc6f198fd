"""A dashboard, its rows, its links to the others, and the events that are marked on all its panels."""

from __future__ import annotations

from typing import Any

from kvmon.dashboards.source.layout import laid_out
from kvmon.dashboards.source.palette import colour
from kvmon.dashboards.source.part import DATASOURCE, Json, Part
from kvmon.dashboards.source.queries import checked
from kvmon.dashboards.source.trouble import SourceError, nearest, within
from kvmon.dashboards.source.upstream import (
    Annotations,
    AnnotationsItemBase,
    Links,
    LinksItemBase,
    Panels,
    Rows,
    RowsItemBase,
    Templates,
)
from kvmon.dashboards.source.upstream import Dashboard as LibraryDashboard
from kvmon.dashboards.source.upstream import Project as LibraryProject

__all__ = ["Annotation", "Dashboard", "Project", "Row", "TagLink"]

SCHEMA_VERSION = 42
"""Grafana's format of a classic dashboard: 11 to 13 read it."""

_BUILT_IN: Json = {
    "builtIn": 1,
    "datasource": {"type": "grafana", "uid": "-- Grafana --"},
    "enable": True,
    "hide": True,
    "iconColor": "rgba(0, 211, 255, 1)",
    "name": "Annotations & Alerts",
    "type": "dashboard",
}


class Dashboard(Part, LibraryDashboard):
    """A page. `from` is where its time range begins, before now."""

    required = ("uid", "title", "description", "from", "refresh", "templates", "rows", "links")
    optional = ("annotations",)

    def gen_json(self, context: object) -> Any:
        """What the library calls."""
        with within("", self.registry.file_of("dashboard", self.name)):
            return super().gen_json(context)

    def make(self, data: Json) -> Json:
        """The whole file, panels placed."""
        children = self.registry.children
        return {
            "annotations": {"list": [dict(_BUILT_IN), *children(Annotations, data.get("annotations", []))]},
            "description": " ".join(data["description"].split()),
            "editable": True,
            "fiscalYearStartMonth": 0,
            "graphTooltip": 1,
            "id": None,
            "links": children(Links, data["links"]),
            "panels": laid_out(children(Rows, data["rows"])),
            "refresh": data["refresh"],
            "schemaVersion": SCHEMA_VERSION,
            "tags": ["kvmon"],
            "templating": {"list": children(Templates, data["templates"])},
            "time": {"from": data["from"], "to": "now"},
            "timepicker": {},
            "timezone": "browser",
            "title": data["title"],
            "uid": data["uid"],
            "weekStart": "",
        }


class Project(LibraryProject):
    """The dashboards that are built together; the library's own would look for its own kind of dashboard."""

    def get_dashboards(self) -> list[Any]:
        """Every dashboard that the project names."""
        known = {dashboard.name: dashboard for dashboard in self.registry[Dashboard]}
        for name in self.data.get("dashboards", []):
            if name not in known:
                file = self.registry.file_of("project", self.name)
                raise SourceError(
                    f"there is no dashboard '{name}': {nearest(str(name), known)}", file=file, keys=("dashboards",)
                )
        return [known[name] for name in self.data.get("dashboards", [])]


class Row(Part, RowsItemBase):
    """Panels beside each other, `height` high unless they say so, under a `title` that folds them away."""

    required = ("panels", "height")
    optional = ("title", "collapsed")

    def make(self, data: Json) -> Json:
        """What the layout takes: the row has no panel of its own where it has no title."""
        return {
            "collapsed": bool(data.get("collapsed", False)),
            "height": data["height"],
            "panels": self.registry.children(Panels, data["panels"]),
            "title": data.get("title"),
        }


class TagLink(Part, LinksItemBase):
    """Links to all dashboards with a tag; they keep the time range and the variables."""

    required = ("title", "tag")

    def make(self, data: Json) -> Json:
        """The link at the top of the page."""
        return {
            "asDropdown": False,
            "icon": "external link",
            "includeVars": True,
            "keepTime": True,
            "tags": [data["tag"]],
            "targetBlank": False,
            "title": data["title"],
            "tooltip": "",
            "type": "dashboards",
            "url": "",
        }


class Annotation(Part, AnnotationsItemBase):
    """Marks on all panels where a query has a value above zero; `tags` are labels that are shown with it."""

    required = ("name", "description", "expr", "color", "heading", "text")
    optional = ("tags", "enable")

    def make(self, data: Json) -> Json:
        """The annotation."""
        return {
            "datasource": dict(DATASOURCE),
            "enable": bool(data.get("enable", True)),
            "hide": False,
            "iconColor": colour(data["color"]),
            "name": data["name"],
            "tagKeys": ",".join(data.get("tags", [])),
            "target": {
                "datasource": dict(DATASOURCE),
                "editorMode": "code",
                "expr": checked(data["expr"], f"{data['heading']} {data['text']}"),
                "interval": "",
                "legendFormat": "",
                "range": True,
                "refId": "Anno",
            },
            "textFormat": data["text"],
            "titleFormat": data["heading"],
            "useValueForTime": False,
        }
