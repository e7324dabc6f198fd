"""The panels: time series, numbers, heatmaps, tables, timelines of states, text.

Each has a title and a description; each that shows numbers has a unit. `width` is in Grafana's 24 columns, `height` in
its rows; without it a panel is as high as its row says. What a source cannot say is the same in every panel.
"""

from __future__ import annotations

from typing import ClassVar

from kvmon.dashboards.source.palette import colour
from kvmon.dashboards.source.part import DATASOURCE, Json, Part
from kvmon.dashboards.source.trouble import SourceError
from kvmon.dashboards.source.upstream import PanelsItemBase, Targets
from kvmon.dashboards.source.visuals import FIELD_KEYS, field_config, fixed, legend, tooltip

__all__ = ["HeatmapPanel", "Panel", "StatPanel", "StateTimelinePanel", "TextPanel", "TimeseriesPanel"]

_PLACED = ("width", "height")
_MADE_FOR = "11.0.0"  # what older Grafanas need not, and newer ones know how to read


class Panel(Part, PanelsItemBase):
    """What all panels with numbers have in common; `kind` is Grafana's name for one."""

    required: ClassVar[tuple[str, ...]] = ("title", "description", "unit", "targets", "width")
    optional: ClassVar[tuple[str, ...]] = ("height", *(key for key in FIELD_KEYS if key != "unit"))
    kind: ClassVar[str]

    def panel(self, data: Json, options: Json, config: Json) -> Json:
        """The panel without its place and its number."""
        return {
            "datasource": dict(DATASOURCE),
            "description": _sentence(data["description"]),
            "fieldConfig": config,
            "options": options,
            "pluginVersion": _MADE_FOR,
            "targets": self.lettered(data["targets"]),
            "title": data["title"],
            "type": self.kind,
            **placed(data),
        }

    def lettered(self, targets: object) -> list[Json]:
        """The queries, called A, B, C in their order where they have no name."""
        made: list[Json] = self.registry.children(Targets, targets)
        for number, target in enumerate(made):
            target.setdefault("refId", chr(ord("A") + number))
        names = [target["refId"] for target in made]
        if len(set(names)) != len(names):
            raise SourceError(f"two queries have the same 'ref' ({', '.join(names)})")
        return made


class TimeseriesPanel(Panel):
    """Lines, areas or bars over time."""

    optional = (
        *Panel.optional,
        *("colors", "series", "hide_zero", "stack", "fill", "draw", "line", "legend", "calcs", "sort_legend"),
        *("color", "axis", "threshold_style", "soft_max"),
    )
    kind = "timeseries"

    def make(self, data: Json) -> Json:
        """Gaps stay gaps: a number that is absent is not drawn."""
        custom: Json = {
            "axisBorderShow": False,
            "axisCenteredZero": False,
            "axisPlacement": "auto",
            "axisSoftMin": 0,
            "barAlignment": 0,
            "drawStyle": data.get("draw", "line"),
            "fillOpacity": data.get("fill", 10 if "color" in data else 0),
            "gradientMode": "none",
            "hideFrom": {"legend": False, "tooltip": False, "viz": False},
            "insertNulls": False,
            "lineInterpolation": "linear",
            "lineWidth": data.get("line", 2),
            "pointSize": 5,
            "scaleDistribution": {"type": "linear"},
            "showPoints": "auto",
            "spanNulls": False,
            "stacking": {"group": "A", "mode": "normal" if data.get("stack") else "none"},
            "thresholdsStyle": {"mode": data.get("threshold_style", "off")},
        }
        if "soft_max" in data:
            custom["axisSoftMax"] = data["soft_max"]
        if "axis" in data:
            custom["axisLabel"] = data["axis"]
        # Where one series is expected, further ones are shades of its colour.
        color = {"mode": "palette-classic"}
        if "color" in data:
            color = {"fixedColor": colour(data["color"]), "mode": "shades"}
        options = {"legend": legend(data), "tooltip": tooltip()}
        return self.panel(data, options, field_config(data, custom, color))


class StatPanel(Panel):
    """One number, or a few, as it is now; with `graph` over the time that is shown."""

    optional = (*Panel.optional, "series", "calc", "paint", "graph", "text", "layout")
    kind = "stat"

    def make(self, data: Json) -> Json:
        """`paint` is what the thresholds colour: the number (value), its background, or nothing (none)."""
        options = {
            "colorMode": data.get("paint", "value"),
            "graphMode": "area" if data.get("graph") else "none",
            "justifyMode": "auto",
            "orientation": data.get("layout", "auto"),
            "percentChangeColorMode": "standard",
            "reduceOptions": {"calcs": [data.get("calc", "lastNotNull")], "fields": "", "values": False},
            "showPercentChange": False,
            "textMode": data.get("text", "auto"),
            "wideLayout": True,
        }
        return self.panel(data, options, field_config(data, {}, {"mode": "thresholds"}))


class HeatmapPanel(Panel):
    """How many of each size, over time: a query for each size, in the order of the axis, or one of buckets."""

    optional = (*Panel.optional, "axis_unit", "cells")
    kind = "heatmap"

    def make(self, data: Json) -> Json:
        """Nothing is computed in the browser: the sizes are those of the metric."""
        options = {
            "calculate": False,
            "cellGap": 1,
            "cellValues": {"unit": data["unit"]},
            "color": {
                "exponent": 0.5,
                "fill": colour("blue"),
                "mode": "scheme",
                "reverse": False,
                "scale": "exponential",
                "scheme": "Cividis",
                "steps": 64,
            },
            "exemplars": {"color": colour("red")},
            "filterValues": {"le": 1e-9},
            "legend": {"show": True},
            "rowsFrame": {"layout": data.get("cells", "auto"), "value": data["title"]},
            "showValue": "never",
            "tooltip": {"mode": "single", "showColorScale": True, "yHistogram": True},
            "yAxis": {"axisPlacement": "left", "reverse": False, "unit": data.get("axis_unit", "none")},
        }
        custom = {
            "hideFrom": {"legend": False, "tooltip": False, "viz": False},
            "scaleDistribution": {"type": "linear"},
        }
        return self.panel(data, options, field_config(data, custom, fixed("blue")))


class StateTimelinePanel(Panel):
    """What held when: a row for each series, blank where there was none."""

    optional = (*Panel.optional, "colors", "series", "legend", "row_height")
    kind = "state-timeline"

    def make(self, data: Json) -> Json:
        """Equal values are one stretch, with their words in it."""
        custom = {
            "axisPlacement": "auto",
            "fillOpacity": 85,
            "hideFrom": {"legend": False, "tooltip": False, "viz": False},
            "lineWidth": 0,
        }
        options = {
            "alignValue": "left",
            "legend": legend({"legend": data.get("legend", "hidden")}),
            "mergeValues": True,
            "rowHeight": data.get("row_height", 0.8),
            "showValue": "auto",
            "tooltip": {"hideZeros": False, "mode": "single", "sort": "none"},
        }
        color = {"mode": "thresholds"} if "thresholds" in data else fixed("neutral")
        return self.panel(data, options, field_config(data, custom, color))


class TextPanel(Part, PanelsItemBase):
    """Words between the panels."""

    required = ("title", "description", "content", "width")
    optional = ("height",)

    def make(self, data: Json) -> Json:
        """Markdown."""
        return {
            "description": _sentence(data["description"]),
            "options": {
                "code": {"language": "plaintext", "showLineNumbers": False, "showMiniMap": False},
                "content": data["content"],
                "mode": "markdown",
            },
            "pluginVersion": _MADE_FOR,
            "title": data["title"],
            "type": "text",
            **placed(data),
        }


def placed(data: Json) -> Json:
    """Width and height, which the layout takes out again."""
    width = data["width"]
    if not isinstance(width, int) or not 1 <= width <= 24:
        raise SourceError(f"the width is {width!r}: give 1 to 24 columns")
    return {key: data[key] for key in _PLACED if key in data}


def _sentence(text: str) -> str:
    """Text of a source in one line, a paragraph each."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in str(text).strip().split("\n\n"))
