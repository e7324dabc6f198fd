"""The query of a panel: PromQL of the catalogue's metrics, asked of the data source that the page's variable names."""

from __future__ import annotations

from kvmon.dashboards.source.expressions import expanded, labels_in
from kvmon.dashboards.source.part import DATASOURCE, Json, Part
from kvmon.dashboards.source.promql import problems
from kvmon.dashboards.source.trouble import SourceError, within
from kvmon.dashboards.source.upstream import TargetsItemBase

__all__ = ["PromQuery", "checked"]

_FORMATS = ("time_series", "table", "heatmap")


class PromQuery(Part, TargetsItemBase):
    """`expr` and `legend`; `format: table` asks for now alone, `heatmap` for buckets; `ref` where a column names it."""

    required = ("expr",)
    optional = ("legend", "format", "ref", "now")

    def make(self, data: Json) -> Json:
        """The target; the panel gives it its letter."""
        kind = data.get("format", "time_series")
        if kind not in _FORMATS:
            raise SourceError(f"the format '{kind}' is none of {', '.join(_FORMATS)}")
        legend = str(data.get("legend", "__auto"))
        now = bool(data.get("now", kind == "table"))
        target: Json = {
            "datasource": dict(DATASOURCE),
            "editorMode": "code",
            "expr": checked(data["expr"], legend),
            "format": kind,
            "instant": now,
            "legendFormat": legend,
            "range": not now,
        }
        if "ref" in data:
            target["refId"] = str(data["ref"])
        return target


def checked(expression: object, legend: str = "") -> str:
    """A query written out. Raises SourceError for one that does not parse or asks for what there is not."""
    with within("expr"):
        text = expanded(str(expression))
        wrong = problems(text, shown=labels_in(legend))
        if wrong:
            raise SourceError(wrong[0])
    return text
