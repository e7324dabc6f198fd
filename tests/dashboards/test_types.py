"""Every dashboard against the types that Grafana publishes: keys and values that it does not know are found."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.dashboards.asking import Json, dashboards

# Grafana's name of a panel: the file of its types, and which of them it has.
OF_PANEL = {
    "timeseries": ("timeseries/panelcfg/x/TimeSeriesPanelCfg", "FieldConfig"),
    "stat": ("stat/panelcfg/x/StatPanelCfg", None),
    "table": ("table/panelcfg/x/TablePanelCfg", "FieldConfig"),
    "heatmap": ("heatmap/panelcfg/x/HeatmapPanelCfg", "FieldConfig"),
    "state-timeline": ("statetimeline/panelcfg/x/StateTimelinePanelCfg", "FieldConfig"),
    "text": ("text/panelcfg/x/TextPanelCfg", None),
}
# What every annotation has; the rest belongs to the data source.
ANNOTATION = ("builtIn", "datasource", "enable", "hide", "iconColor", "name", "type")
# A value of an enumeration is written as it is; everything else as its type says, and nothing more.
PLAIN = """
type Plain<T> = T extends string ? `${T}` : T extends number ? T | (`${T}` extends `${infer N extends number}` ? N : T)
  : T extends boolean | null | undefined ? T : T extends Array<infer I> ? Array<Plain<I>>
  : unknown extends T ? unknown : { [K in keyof T]: Plain<T[K]> };
"""


def test_grafanas_types_take_every_dashboard(tmp_path: Path, npm_packages: Path) -> None:
    """`tsc` finds nothing wrong with the pages, nor with any panel as what it is."""
    assert complaints(tmp_path, npm_packages, dashboards()) == []


def test_the_types_refuse_what_grafana_would_not_read(tmp_path: Path, npm_packages: Path) -> None:
    """Each typing mistake in a panel is found: the check above can fail."""
    page = dashboards()["kvmon-pool"]
    panel = next(panel for panel in page["panels"] if panel["type"] == "timeseries")
    mistakes = {
        ("options", "legend", "displayMode"): ("tabel", "tabel"),
        ("options", "legend", "colour"): ("red", "colour"),
        ("fieldConfig", "defaults", "custom", "drawStyle"): ("dots", "dots"),
        ("gridPos", "w"): ("wide", "string"),
    }
    wrong = [with_value(panel, path, value) for path, (value, _) in mistakes.items()]
    numbered = [{**panel, "id": number} for number, panel in enumerate(wrong)]
    found = complaints(tmp_path, npm_packages, {"kvmon-pool": {**page, "panels": numbered}})
    assert len(found) == len(mistakes)
    assert all(says in line for line, (_, says) in zip(found, mistakes.values(), strict=True))


def with_value(panel: Json, path: tuple[str, ...], value: object) -> Json:
    """A copy of a panel that says something else in one place."""
    key, *rest = path
    return {**panel, key: with_value(panel[key], tuple(rest), value) if rest else value}


def complaints(place: Path, packages: Path, pages: dict[str, Json]) -> list[str]:
    """What `tsc` says of some dashboards."""
    (place / "node_modules").symlink_to(packages)
    (place / "pages.ts").write_text("\n".join(_lines(pages)), encoding="utf-8")
    options = ["--noEmit", "--strict", "--skipLibCheck", "--target", "es2022", "--module", "esnext"]
    command = ["node", str(packages / "typescript" / "lib" / "tsc.js"), *options, "--moduleResolution", "bundler"]
    environment = {"PATH": os.environ["PATH"]}
    done = subprocess.run([*command, "pages.ts"], cwd=place, env=environment, capture_output=True, text=True)
    return done.stdout.splitlines()


def _lines(pages: dict[str, Json]) -> Iterator[str]:
    yield "import type { Dashboard, Panel, RowPanel } from '@grafana/schema';"
    for number, (file, _) in enumerate(OF_PANEL.values()):
        yield f"import type * as P{number} from '@grafana/schema/dist/esm/raw/composable/{file}_types.gen';"
    yield PLAIN
    kinds = list(OF_PANEL)
    for index, page in enumerate(pages.values()):
        # what a data source takes is no part of these types
        marks = [{key: mark[key] for key in ANNOTATION if key in mark} for mark in page["annotations"]["list"]]
        yield from _typed(f"page{index}", "Dashboard", {**page, "annotations": {"list": marks}, "panels": []})
        for panel in page["panels"]:
            name = f"panel{index}_{panel['id']}"
            if panel["type"] == "row":
                yield from _typed(name, "Omit<RowPanel, 'panels'>", {**panel, "panels": None})
                continue
            kind, config = kinds.index(panel["type"]), panel.get("fieldConfig")
            yield from _typed(f"{name}_options", f"Partial<P{kind}.Options>", panel["options"])
            if config is not None and OF_PANEL[panel["type"]][1]:
                yield from _typed(f"{name}_custom", f"Partial<P{kind}.FieldConfig>", config["defaults"]["custom"])
            plain = {**panel, "options": {}, "fieldConfig": config and {**config, "defaults": _without_custom(config)}}
            yield from _typed(name, "Panel", plain)


def _without_custom(config: Json) -> Json:
    return {key: value for key, value in config["defaults"].items() if key != "custom"}


def _typed(name: str, kind: str, value: Json) -> Iterator[str]:
    shown = json.dumps({key: part for key, part in value.items() if part is not None})
    yield f"export const {name}: Plain<{kind}> = {shown};"
