"""`kvmon dashboards`: the Grafana dashboards as files, from an installed kvmon alone.

The files are what `kvmon.dashboards` ships, byte for byte. Invariant: nothing is replaced that says something else,
unless it is asked for, and either all files are there at the end or none has changed.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from kvmon.cli.output_files import write_files
from kvmon.errors import ConfigError

__all__ = ["command"]

_PROVIDER = "kvmon-provider.yaml"
_GRAFANAS_FOLDER = "/etc/grafana/provisioning/dashboards"


@click.command("dashboards")
@click.option(
    "-o", "--out", "folder", type=click.Path(path_type=Path, readable=False), help="Write the files into this folder."
)
@click.option("--force", is_flag=True, help="Replace files that say something else.")
@click.option("--provisioning", is_flag=True, help=f"Write {_PROVIDER} too, by which Grafana finds the files.")
@click.option(
    "--grafana-path",
    metavar="PATH",
    help=f"Where Grafana will see the folder, for --provisioning.  [default: {_GRAFANAS_FOLDER}]",
)
@click.option("--json", "json_", is_flag=True, help="Print one JSON array.")
def command(folder: Path | None, force: bool, provisioning: bool, grafana_path: str | None, json_: bool) -> None:
    """List the Grafana dashboards, or write them (-o) to be imported or provisioned.

    They ask the data source that is chosen at the top of the page, and fit Grafana 11 to 13.
    """
    if folder is None and (force or provisioning):
        raise ConfigError(f"--{'force' if force else 'provisioning'} writes nothing by itself: give a folder with -o")
    if grafana_path is not None and not provisioning:
        raise ConfigError("--grafana-path is for --provisioning: give both, or none")
    if grafana_path is not None and not grafana_path.startswith("/"):
        raise ConfigError(f"'{grafana_path}' is no absolute path: give the one at which Grafana sees the folder")

    from kvmon.dashboards import NAMES, text

    texts = {f"{name}.json": text(name) for name in NAMES}
    facts = [_facts(name, texts[f"{name}.json"]) for name in NAMES]
    if folder is not None:
        if provisioning:
            texts[_PROVIDER] = _provider(grafana_path or _GRAFANAS_FOLDER)
        files = {folder / name: content for name, content in texts.items()}
        written = write_files(files, "the dashboards", force=force)
        rows = [{"file": str(path), "written": path in written} for path in files]
        lines = [f"{row['file']} {'written' if row['written'] else 'is there already, and the same'}" for row in rows]
        click.echo(json.dumps(rows, indent=2) if json_ else "\n".join(lines))
        return
    width = max(map(len, NAMES))
    listed = [f"{fact['uid']:<{width}}  {fact['description']}" for fact in facts]
    click.echo(json.dumps(facts, indent=2) if json_ else "\n".join(listed))


def _facts(name: str, content: str) -> dict[str, object]:
    dashboard = json.loads(content)
    shown = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    return {
        "uid": dashboard["uid"],
        "title": dashboard["title"],
        "description": dashboard["description"],
        "file": f"{name}.json",
        "panels": len(shown),
    }


def _provider(path: str) -> str:
    """What Grafana reads from its folder provisioning/dashboards. A JSON string is YAML, whatever it holds."""
    return f"""# Made by `kvmon dashboards --provisioning`; Grafana reads it from its folder provisioning/dashboards.
apiVersion: 1
providers:
  - name: kvmon
    type: file
    folder: kvmon
    folderUid: kvmon
    allowUiUpdates: false
    disableDeletion: false
    updateIntervalSeconds: 30
    options:
      path: {json.dumps(path)}
"""
