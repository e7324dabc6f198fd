"""Building: the committed files are what the sources say, and a mistake in a source is one line that says where."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kvmon.dashboards import NAMES
from kvmon.dashboards.source.build import SOURCES, built, differing, write
from kvmon.dashboards.source.trouble import SourceError

ROOT = Path(__file__).parents[3]
COMMITTED = ROOT / "dashboards"


def build(*options: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    """`python -m dashboards.source` as it is typed at the top of a checkout."""
    return subprocess.run(
        [sys.executable, "-m", "dashboards.source", *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
    )


def test_the_committed_files_are_what_the_sources_say() -> None:
    """Nothing is out of date, missing, or left over."""
    assert differing(built(), COMMITTED) == []
    assert sorted(path.stem for path in COMMITTED.glob("*.json")) == sorted(NAMES)


def test_two_builds_give_the_same_bytes(tmp_path: Path) -> None:
    """Whatever the order of Python's sets is that day; and the second build has nothing to do."""
    for number, seed in enumerate(("1", "2")):
        (tmp_path / f"{number}").mkdir()
        assert build("--out", str(tmp_path / f"{number}"), hash_seed=seed).returncode == 0
    for name in NAMES:
        first, second = ((tmp_path / f"{number}" / f"{name}.json").read_bytes() for number in (0, 1))
        assert first == second == (COMMITTED / f"{name}.json").read_bytes()
    assert build("--out", str(tmp_path / "0")).stdout == ""


def test_a_check_tells_what_is_out_of_date_and_writes_nothing(tmp_path: Path) -> None:
    """Exit code 1 and the names."""
    (tmp_path / "kvmon-pool.json").write_text("{}")
    (tmp_path / "kvmon-old.json").write_text("{}")
    done = build("--check", "--out", str(tmp_path))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == len(NAMES) + 1
    assert "kvmon-old.json" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kvmon-old.json", "kvmon-pool.json"]


MISTAKES = {
    "a misspelled component": (
        "pool.yaml",
        "- stat-panel:\n                title: In use",
        "- stat-pannel:\n                title: In use",
        "pool.yaml: dashboard 'kvmon / Pool' / row: there is no 'stat-pannel' among 'panels': did you mean stat-panel",
    ),
    "a panel of the library that Grafana no longer draws": (
        "pool.yaml",
        "- stat-panel:\n                title: In use",
        "- graph:\n                title: In use",
        "there is no 'graph' among 'panels'",
    ),
    "an unknown metric": (
        "pool.yaml",
        "kvmon_runs_per_sequence{",
        "kvmon_runs_per_sequenze{",
        "row 'Fragmentation' / timeseries-panel 'Runs a sequence is scattered over' / prom-query / expr: "
        "'kvmon_runs_per_sequenze' is no metric of kvmon: did you mean kvmon_runs_per_sequence",
    ),
    "an unknown label": (
        "shared.yaml",
        "expr: 60 * sum by (reason)",
        "expr: 60 * sum by (raeson)",
        "shared.yaml: panels 'failures-by-reason' / timeseries-panel 'Allocation failures by reason' / prom-query / "
        "expr: no series here has the label 'raeson': did you mean reason",
    ),
    "a label that the metric does not have": (
        "shared.yaml",
        "sum(kvmon_memory_capacity_bytes{<pool>})",
        "sum(kvmon_memory_capacity_bytes{<pool>, state=~'free'})",
        "kvmon_memory_capacity_bytes has no label 'state'",
    ),
    "a value that a label never has": (
        "shared.yaml",
        'state="active"',
        'state="activ"',
        "the label 'state' of kvmon_memory_bytes is never 'activ': did you mean active",
    ),
    "a legend of a label that is not there": (
        "shared.yaml",
        'legend: "{{reason}}"',
        'legend: "{{raeson}}"',
        "no series here has the label 'raeson'",
    ),
    "no PromQL": (
        "pool.yaml",
        "max(kvmon_forgotten_ratio{<rank>})",
        "max(kvmon_forgotten_ratio{<rank>}",
        "is no PromQL",
    ),
    "a selector that stands for nothing": ("pool.yaml", "{<pool>}", "{<poool>}", "<poool> stands for nothing"),
    "no description": (
        "pool.yaml",
        "                description: Allocations refused, a minute.\n",
        "",
        "row / stat-panel 'Failures now': lacks 'description'",
    ),
    "no unit": (
        "incident.yaml",
        "unit: reqps\n",
        "decimals: 1\n",
        "timeseries-panel 'Requests that arrived and ended': lacks 'unit'",
    ),
    "a unit that Grafana does not have": (
        "incident.yaml",
        "unit: reqps",
        "unit: reqs",
        "the unit 'reqs' is not Grafana's",
    ),
    "an unknown key": ("incident.yaml", "unit: reqps", "unti: reqps", "has no key 'unti': did you mean unit"),
    "a key twice": (
        "incident.yaml",
        "unit: reqps",
        "unit: reqps\n                unit: reqps",
        "the key 'unit' stands twice",
    ),
    "an unknown colour": (
        "incident.yaml",
        "color: teal",
        "color: teel",
        "there is no colour 'teel': did you mean teal",
    ),
    "unknown colours": ("incident.yaml", "colors: finish", "colors: finnish", "there are no colors 'finnish'"),
    "a title twice": (
        "itself.yaml",
        "title: Not read yet",
        "title: Events read",
        "row 'The engines that are followed': the title 'Events read' stands twice",
    ),
    "a line that is not full": ("itself.yaml", "width: 12\n", "width: 11\n", "the last line has"),
    "a panel that does not fit": ("itself.yaml", "width: 12\n", "width: 13\n", "does not fit"),
    "a named panel that is not there": (
        "pool.yaml",
        "panels: [verdicts]",
        "panels: [verdict]",
        "there is no 'verdict' among 'panels': did you mean verdicts",
    ),
    "a dashboard that is not there": (
        "shared.yaml",
        "kvmon-itself]",
        "kvmon-itsself]",
        "shared.yaml: dashboards: there is no dashboard 'kvmon-itsself'",
    ),
    "a kind that is not there": ("shared.yaml", "  project:", "  projekt:", "there is no kind 'projekt'"),
    "a variable of another label": (
        "shared.yaml",
        "name: rank",
        "name: shard",
        "'shard' is no label that every dashboard has",
    ),
    "a link of a label that no page has": (
        "fleet.yaml",
        "labels: [job, instance, engine, rank]",
        "labels: [job, host]",
        "table-panel 'Engines' / column 'engine': no dashboard has a variable 'host'",
    ),
    "a column of nothing to sort by": ("fleet.yaml", "worst: Worst", "worst: Wurst", "no query has this 'ref'"),
    "Python in the YAML": (
        "fleet.yaml",
        "from: now-1h",
        "from: !!python/object/apply:os.system [id]",
        "could not determine a constructor for the tag",
    ),
    "no YAML": ("fleet.yaml", "dashboard:", "dashboard: [", "fleet.yaml: line"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_its_file_and_key(mistake: str, tmp_path: Path) -> None:
    """And nothing is built."""
    file, right, wrong, says = MISTAKES[mistake]
    sources = copied(tmp_path)
    content = (sources / file).read_text(encoding="utf-8")
    assert right in content
    (sources / file).write_text(content.replace(right, wrong, 1), encoding="utf-8")
    with pytest.raises(SourceError) as error:
        built(sources)
    assert says in str(error.value)
    assert str(error.value).startswith(f"{file}: ")
    assert "\n" not in str(error.value)


def test_a_mistake_ends_the_command_and_nothing_is_written(tmp_path: Path) -> None:
    """One line on standard error, exit code 3, and the folder as it was."""
    sources, out = copied(tmp_path), tmp_path / "out"
    out.mkdir()
    (sources / "pool.yaml").write_text("- name: x\n  dashboad: {}\n")
    done = build("--sources", str(sources), "--out", str(out))
    assert done.returncode == 3
    assert done.stderr == ("dashboards: pool.yaml: component 1: there is no kind 'dashboad': did you mean dashboard?\n")
    assert list(out.iterdir()) == []


def test_a_folder_that_refuses_leaves_all_files_as_they_were(tmp_path: Path) -> None:
    """A directory where a file should go: one line, and no file has changed or is left over."""
    texts = built()
    write(texts, tmp_path)
    (tmp_path / "kvmon-pool.json").unlink()
    (tmp_path / ".kvmon-pool.json.new").mkdir()
    changed = {name: content + " " for name, content in texts.items()}
    with pytest.raises(SourceError, match="cannot write into"):
        write(changed, tmp_path)
    assert (tmp_path / "kvmon-fleet.json").read_text(encoding="utf-8") == texts["kvmon-fleet.json"]


def test_no_sources_are_an_error(tmp_path: Path) -> None:
    """An empty folder builds nothing, and says so."""
    with pytest.raises(SourceError, match="no source"):
        built(tmp_path)


def test_sources_are_plain_yaml() -> None:
    """They can be read without anything of the library's or of kvmon's."""
    for path in SOURCES.glob("*.yaml"):
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), list)


def copied(place: Path) -> Path:
    """The sources, to be spoilt."""
    sources = place / "sources"
    sources.mkdir()
    for path in SOURCES.glob("*.yaml"):
        shutil.copy(path, sources)
    return sources
