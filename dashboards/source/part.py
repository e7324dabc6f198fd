"""What every component has in common: it says which keys it takes, and refuses all others by name.

A component is a class that is also one of the library's bases; the library finds it by its name in kebab case. What it
makes is plain JSON. Text from a source reaches it as it was written, braces included (see `reading.Verbatim`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from kvmon.dashboards.source.reading import Registry, spelled_out
from kvmon.dashboards.source.trouble import SourceError, nearest, within
from kvmon.dashboards.source.upstream import get_component_type

__all__ = ["DATASOURCE", "Json", "Part"]

Json = dict[str, Any]

DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
"""Every query asks the data source that the variable at the top of the page names."""


class Part(ABC):
    """A component: `required` and `optional` are the keys of its data, `make` turns them into JSON."""

    required: ClassVar[tuple[str, ...]] = ()
    optional: ClassVar[tuple[str, ...]] = ()
    registry: Registry

    @abstractmethod
    def make(self, data: Json) -> Any:
        """The JSON of data whose keys are known, with every required one there."""

    def gen_json_from_data(self, data: Any, context: object) -> Any:
        """What the library calls."""
        kind = get_component_type(type(self))
        data = spelled_out(data)
        called = next((data[key] for key in ("title", "name") if isinstance(data, dict) and key in data), None)
        with within(f"{kind} '{called}'" if called else kind):
            if not isinstance(data, dict):
                raise SourceError(f"wants keys ({', '.join(self.required)}), not {data!r}")
            keys = {*self.required, *self.optional}
            for key in data:
                if key not in keys:
                    raise SourceError(f"has no key '{key}': {nearest(str(key), keys)}")
            for key in self.required:
                if data.get(key) in (None, "", [], {}):
                    raise SourceError(f"lacks '{key}'")
            return self.make(data)
