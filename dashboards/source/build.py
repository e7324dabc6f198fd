"""Builds every dashboard from the sources of this folder, and writes them all or none.

Invariant: the same sources give the same bytes. What is wrong is one SourceError with its file and key, and nothing has
been written then.
"""

from __future__ import annotations

import json
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from kvmon.dashboards.source.pages import Project
from kvmon.dashboards.source.part import Json
from kvmon.dashboards.source.reading import Registry
from kvmon.dashboards.source.trouble import SourceError
from kvmon.dashboards.source.upstream import DashboardExporter, ProjectProcessor

__all__ = ["SOURCES", "built", "differing", "write"]

SOURCES = Path(__file__).parent
"""Where the YAML is."""

# A kind exists for the library once its class does.
for _module in ("panels", "queries", "tables", "variables"):
    import_module(f"kvmon.dashboards.source.{_module}")


class _Texts(DashboardExporter):
    """Keeps each dashboard as the text of its file."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def process_dashboard(self, project_name: str, dashboard_name: str, dashboard_data: Json) -> None:
        """Keep one."""
        self.texts[f"{dashboard_name}.json"] = json.dumps(dashboard_data, indent=2, sort_keys=True) + "\n"


def built(sources: Path = SOURCES) -> dict[str, str]:
    """The dashboards by the name of their file. Raises SourceError for what cannot be built."""
    registry = Registry()
    files = sorted(sources.glob("*.yaml"))
    if not files:
        raise SourceError(f"no source (*.yaml) in {sources}")
    for path in files:
        registry.read(path, path.name)
    kept = _Texts()
    ProjectProcessor([kept]).process_projects(registry[Project])
    return dict(sorted(kept.texts.items()))


def differing(texts: dict[str, str], folder: Path) -> list[str]:
    """Names of the files in `folder` that are missing, say something else, or have no source."""
    there = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.json")}
    return sorted(name for name in texts.keys() | there.keys() if texts.get(name) != there.get(name))


def write(texts: dict[str, str], folder: Path) -> list[str]:
    """Write the files of which the text differs from what is there, and return their names.

    Raises SourceError where the folder refuses; nothing has changed then.
    """
    names = [name for name in differing(texts, folder) if name in texts]
    new = {folder / f".{name}.new": folder / name for name in names}
    try:
        for unnamed, path in new.items():
            unnamed.write_text(texts[path.name], encoding="utf-8")
        for unnamed, path in new.items():
            unnamed.replace(path)
    except OSError as error:
        raise SourceError(f"cannot write into {folder}: {error.strerror or error}") from None
    finally:
        for unnamed in new:
            with suppress(OSError):
                unnamed.unlink(missing_ok=True)
    return names
