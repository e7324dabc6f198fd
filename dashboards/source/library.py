"""What is used of grafana-dashboard-builder, which has no types: the classes whose subclasses it finds by their names.

Its own reader of files is not used: it runs Python that stands in the YAML, and skips what it does not know.
"""

from __future__ import annotations

import warnings

with warnings.catch_warnings():  # it uses a module that Python is about to drop
    warnings.simplefilter("ignore", DeprecationWarning)
    from grafana_dashboards.common import get_component_type  # type: ignore[import-untyped]
from grafana_dashboards.components.annotations import Annotations, AnnotationsItemBase  # type: ignore[import-untyped]
from grafana_dashboards.components.base import ComponentRegistry  # type: ignore[import-untyped]
from grafana_dashboards.components.dashboards import Dashboard  # type: ignore[import-untyped]
from grafana_dashboards.components.links import Links, LinksItemBase  # type: ignore[import-untyped]
from grafana_dashboards.components.panels import Panels, PanelsItemBase  # type: ignore[import-untyped]
from grafana_dashboards.components.projects import Project  # type: ignore[import-untyped]
from grafana_dashboards.components.rows import Rows, RowsItemBase  # type: ignore[import-untyped]
from grafana_dashboards.components.targets import Targets, TargetsItemBase  # type: ignore[import-untyped]
from grafana_dashboards.components.templates import Templates, TemplatesItemBase  # type: ignore[import-untyped]
from grafana_dashboards.exporter import DashboardExporter, ProjectProcessor  # type: ignore[import-untyped]

__all__ = [
    "Annotations",
    "AnnotationsItemBase",
    "ComponentRegistry",
    "Dashboard",
    "DashboardExporter",
    "Links",
    "LinksItemBase",
    "Panels",
    "PanelsItemBase",
    "Project",
    "ProjectProcessor",
    "Rows",
    "RowsItemBase",
    "Targets",
    "TargetsItemBase",
    "Templates",
    "TemplatesItemBase",
    "get_component_type",
]
