"""How the fields of a panel look: units, colours, thresholds, words for values, and what differs for some series."""

from __future__ import annotations

import re
from typing import Any

from grafana_foundation_sdk.models import units

from kvmon.dashboards.source.palette import GROUPS, colour
from kvmon.dashboards.source.part import Json
from kvmon.dashboards.source.trouble import SourceError, nearest, within

__all__ = ["FIELD_KEYS", "field_config", "fixed", "legend", "number_format", "overrides", "tooltip", "words"]

FIELD_KEYS = ("unit", "decimals", "min", "max", "absent", "thresholds", "words")
"""Keys of a panel, or of a column, that say how its numbers are written."""

_UNITS = frozenset(value for value in vars(units).values() if isinstance(value, str) and not value.startswith("_"))
_SERIES_KEYS = (
    *("color", "label", "width", "dash", "fill", "stack", "draw", "axis", "hidden"),
    *("unit", "decimals", "min", "max", "thresholds", "words"),
)
_ALL_ZERO = {"id": "byValue", "options": {"op": "gte", "reducer": "allIsZero", "value": 0}}


def number_format(data: Json) -> Json:
    """The keys of FIELD_KEYS as Grafana has them. Raises SourceError for a unit that it does not know."""
    made: Json = {}
    if "unit" in data:
        if data["unit"] not in _UNITS:
            raise SourceError(f"the unit '{data['unit']}' is not Grafana's: {nearest(str(data['unit']), _UNITS)}")
        made["unit"] = data["unit"]
    for key in ("decimals", "min", "max"):
        if key in data:
            made[key] = data[key]
    if "absent" in data:
        made["noValue"] = str(data["absent"])
    if "thresholds" in data:
        made["thresholds"] = _thresholds(data["thresholds"])
    if "words" in data:
        made["mappings"] = words(data["words"])
    return made


def field_config(data: Json, custom: Json, color: Json) -> Json:
    """The defaults and overrides of a panel.

    `colors` names a group of the palette, whose values give the series that are called so their colours; `series` says
    what differs for series by name, or by a pattern between slashes; `hide_zero` hides series that are zero all along.
    """
    defaults = {"color": color, "custom": custom, "mappings": [], **number_format(data)}
    defaults.setdefault("thresholds", {"mode": "absolute", "steps": [{"color": colour("text"), "value": None}]})
    return {"defaults": defaults, "overrides": overrides(data)}


def overrides(data: Json) -> list[Json]:
    """What differs for some series; what stands later wins."""
    made: list[Json] = []
    if "colors" in data:
        for value, name in _group(str(data["colors"])).items():
            matcher = {"id": "byRegexp", "options": f"/(^|\\s){re.escape(value)}$/"}
            properties: list[Json] = [{"id": "color", "value": fixed(name)}]
            if data["colors"] == "verdict":
                properties.append({"id": "mappings", "value": words({1: [value.replace("_", " "), name]})})
            made.append({"matcher": matcher, "properties": properties})
    if data.get("hide_zero"):
        hidden = {"id": "custom.hideFrom", "value": {"legend": True, "tooltip": True, "viz": True}}
        made.append({"matcher": dict(_ALL_ZERO), "properties": [hidden]})
    for name, differs in data.get("series", {}).items():
        with within(f"series '{name}'"):
            pattern = str(name).startswith("/")
            matcher = {"id": "byRegexp" if pattern else "byName", "options": str(name)}
            made.append({"matcher": matcher, "properties": _properties(differs)})
    return made


def fixed(name: str) -> Json:
    """A colour that depends on nothing."""
    return {"fixedColor": colour(name), "mode": "fixed"}


def words(meant: Any) -> list[Json]:
    """Words, and perhaps colours, that stand for values: `{0: [down, bad], 1: up}`, or a group of the palette."""
    if isinstance(meant, str):
        meant = {value: [value.replace("_", " "), name] for value, name in _group(meant).items()}
    if not isinstance(meant, dict):
        raise SourceError("'words' wants values and the words for them, or a group of the palette")
    options: Json = {}
    for index, (value, said) in enumerate(meant.items()):
        text, *rest = said if isinstance(said, list) else [said]
        options[str(value)] = {"index": index, "text": str(text), **({"color": colour(rest[0])} if rest else {})}
    return [{"options": options, "type": "value"}]


def legend(data: Json) -> Json:
    """The legend: `list` (the default) or `table` below the panel, `right` for a table beside it, or `hidden`."""
    kind = data.get("legend", "list")
    if kind not in ("table", "list", "right", "hidden"):
        raise SourceError(f"the legend '{kind}' is none of table, list, right, hidden")
    made: Json = {
        "calcs": list(data.get("calcs", ["lastNotNull", "max"] if kind in ("table", "right") else ["lastNotNull"])),
        "displayMode": "list" if kind in ("list", "hidden") else "table",
        "placement": "right" if kind == "right" else "bottom",
        "showLegend": kind != "hidden",
    }
    if kind in ("table", "right") and data.get("sort_legend"):
        made |= {"sortBy": data["sort_legend"], "sortDesc": True}
    return made


def tooltip() -> Json:
    """All series at once, the largest first, and none that is zero."""
    return {"hideZeros": True, "mode": "multi", "sort": "desc"}


def _group(name: str) -> dict[str, str]:
    if name not in GROUPS:
        raise SourceError(f"there are no colors '{name}': {nearest(name, GROUPS)}")
    return GROUPS[name]


def _thresholds(steps: Any) -> Json:
    """`{base: good, 0.5: warn}`: from 0.5 on it is a warning."""
    if not isinstance(steps, dict) or "base" not in steps:
        raise SourceError("'thresholds' wants 'base', and values with a colour each")
    rest = sorted((float(value), name) for value, name in steps.items() if value != "base")
    made = [{"color": colour(steps["base"]), "value": None}]
    return {"mode": "absolute", "steps": made + [{"color": colour(name), "value": value} for value, name in rest]}


def _properties(differs: Any) -> list[Json]:
    if not isinstance(differs, dict):
        raise SourceError(f"wants keys, not {differs!r}")
    for key in differs:
        if key not in _SERIES_KEYS:
            raise SourceError(f"has no key '{key}': {nearest(str(key), _SERIES_KEYS)}")
    made: list[Json] = [{"id": key, "value": value} for key, value in number_format(differs).items()]
    simple = {"label": "displayName", "width": "custom.lineWidth", "fill": "custom.fillOpacity"}
    for key, value in differs.items():
        if key == "color":
            made.append({"id": "color", "value": fixed(value)})
        elif key in simple:
            made.append({"id": simple[key], "value": value})
        elif key == "dash":
            made.append({"id": "custom.lineStyle", "value": {"dash": list(value), "fill": "dash"}})
        elif key == "stack":
            made.append({"id": "custom.stacking", "value": {"group": "A", "mode": "normal" if value else "none"}})
        elif key == "draw":
            made.append({"id": "custom.drawStyle", "value": value})
        elif key == "axis":
            made.append({"id": "custom.axisPlacement", "value": value})
        elif key == "hidden":
            made.append({"id": "custom.hideFrom", "value": {"legend": value, "tooltip": value, "viz": value}})
    return made
