"""JSON schemas of what Grafana knows, made from the classes of its foundation SDK: their types, no key beyond them.

page_schema()               a page, with anything for its panels
panel_schema("stat")        a panel with the options and the field configuration of its kind
"""

from __future__ import annotations

import inspect
import re
import types
import typing
import warnings
from enum import Enum
from typing import Any

with warnings.catch_warnings():  # it wants a newer format, which Grafana 11 does not read
    warnings.simplefilter("ignore", DeprecationWarning)
    from grafana_foundation_sdk.models import dashboard
from grafana_foundation_sdk.models import heatmap, prometheus, stat, statetimeline, table, text, timeseries

__all__ = ["KINDS", "page_schema", "panel_schema"]

Schema = dict[str, Any]

KINDS = {
    "timeseries": timeseries,
    "stat": stat,
    "heatmap": heatmap,
    "table": table,
    "state-timeline": statetimeline,
    "text": text,
}
"""The modules of the kinds of panels that there are here."""

_SIMPLE: dict[Any, Schema] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    type(None): {"type": "null"},
}
_CLASSES: dict[str, Schema] = {}
_KEY = re.compile(r'if "(\w+)" in data:(?:(?!if "\w+" in data:).)*?args\["(\w+)"\]', re.DOTALL)


def page_schema() -> Schema:
    """A dashboard; what its panels hold is `panel_schema`'s."""
    return _whole(_with(_of_class(dashboard.Dashboard), panels={"type": "array", "items": {"type": "object"}}))


def panel_schema(kind: str) -> Schema:
    """A panel of one kind with queries of Prometheus."""
    module = KINDS[kind]
    custom = getattr(module, "FieldConfig", None)
    own = _of_class(custom) if inspect.isclass(custom) else {"type": "object"}
    defaults = _with(_of_class(dashboard.FieldConfig), custom=own)
    panel = _with(
        _of_class(dashboard.Panel),
        options=_of_class(module.Options),
        targets={"type": "array", "items": _of_class(prometheus.Dataquery)},
        fieldConfig=_with(_of_class(dashboard.FieldConfigSource), defaults=defaults),
    )
    return _whole({**panel, "required": ["id", "type", "title", "gridPos", "options"]})


def _whole(schema: Schema) -> Schema:
    """A schema with everything that it refers to."""
    return {**schema, "$defs": _CLASSES}


def _with(schema: Schema, **properties: Schema) -> Schema:
    """A class in which some properties are of another kind."""
    found = _CLASSES[schema["$ref"].rpartition("/")[2]]
    return {**found, "properties": {**found["properties"], **properties}}


def _of(hint: Any) -> Schema:
    if hint in (typing.Any, object):
        return {}
    if hint in _SIMPLE:
        return _SIMPLE[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_of(argument) for argument in arguments]}
    if origin is list:
        return {"type": "array", "items": _of(arguments[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": _of(arguments[1])}
    if inspect.isclass(hint) and issubclass(hint, Enum):
        return {"enum": [member.value for member in hint]}
    return _of_class(hint) if inspect.isclass(hint) and "from_json" in vars(hint) else {}


def _of_class(made: type) -> Schema:
    """A reference to the schema of a class, which is made at the first."""
    name = f"{made.__module__.rpartition('.')[2]}.{made.__name__}"
    if name not in _CLASSES:
        _CLASSES[name] = {}  # a class may hold itself
        hints = typing.get_type_hints(made)
        keys = _KEY.findall(inspect.getsource(made.from_json))
        properties = {key: _of(hints.get(argument, typing.Any)) for key, argument in keys}
        if '"type": self.type_val' in inspect.getsource(made.to_json):
            properties.setdefault("type", _of(hints["type_val"]))
        _CLASSES[name].update(type="object", properties=properties, additionalProperties=False)
    return {"$ref": f"#/$defs/{name}"}
