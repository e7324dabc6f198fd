"""What is used of grafana-dashboard-builder, which has no types: the classes whose subclasses it finds by their names.

Its own reader of files is not used: it runs Python that stands in the YAML, and skips what it does not know.
"""

from __future__ import annotations

import warnings

with warnings.catch_warnings():  # it uses a module that Python is about to drop
    warnings.simplefilter("ignore", DeprecationWarning)
    from grafana_dashboards.common import get_component_type
from grafana_dashboards.components.annotations import Annotations, AnnotationsItemBase
from grafana_dashboards.components.base import ComponentRegistry
from grafana_dashboards.components.dashboards import Dashboard
from grafana_dashboards.components.links import Links, LinksItemBase
from grafana_dashboards.components.panels import Panels, PanelsItemBase
from grafana_dashboards.components.projects import Project
from grafana_dashboards.components.rows import Rows, RowsItemBase
from grafana_dashboards.components.targets import Targets, TargetsItemBase
from grafana_dashboards.components.templates import Templates, TemplatesItemBase
from grafana_dashboards.exporter import DashboardExporter, ProjectProcessor

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
