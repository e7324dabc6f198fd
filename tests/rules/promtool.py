"""Run the rules over scraped series with promtool, and say which alerts fired: nothing of the series is typed by hand.

A case becomes one unit test of promtool: its series as Prometheus would have stored them (a series that is missing from
a scrape is marked stale, as Prometheus does), with the labels of a scrape target, and `up`. What fired is asked of
`ALERTS`, which Prometheus itself writes. Nothing here knows what should have fired.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from kvmon.alerts import Group, alerts_of, written
from tests.conftest import PrometheusBinaries
from tests.rules.scenario_series import INTERVAL_S, Scraped

__all__ = ["TARGET", "Case", "Fired", "case_of", "check_cases", "check_rules", "described_in", "fired_in"]

TARGET = {"job": "kvmon", "instance": "node-1:10490"}
"""Labels that Prometheus adds to what it scrapes."""

_FIRING = 'group by (alertname, severity, verdict) (count_over_time(ALERTS{{alertstate="firing"}}[{seconds}s]))'
_STILL = 'group by (alertname, severity, verdict) (ALERTS{alertstate="firing"})'
_SAMPLE = re.compile(r"\{(.*?)\} 1E\+00")
_TOLD = re.compile(r'Labels:\{(.*?)\}.*?description="(.*?)", runbook_url', re.DOTALL)
_LABEL = re.compile(r'(\w+)="(.*?)"')


class Fired(NamedTuple):
    """An alert that fired: its name, how severe, and the verdict that it is about, empty for a symptom."""

    name: str
    severity: str
    verdict: str = ""


@dataclass(frozen=True)
class Case:
    """Series with their samples, one each `interval_s` seconds, None where there was none. `at_end`: what still fires
    with the last of them; None: that is not asked."""

    name: str
    samples: Mapping[str, Sequence[float | None]]
    interval_s: float = INTERVAL_S
    labels: Mapping[str, str] = field(default_factory=lambda: TARGET)
    at_end: frozenset[Fired] | None = None

    @property
    def seconds(self) -> int:
        """How long it takes."""
        return round(self.interval_s * max(map(len, self.samples.values())))


def case_of(name: str, scraped: Scraped, *, at_end: Iterable[Fired] | None = None) -> Case:
    """What was scraped, with `up` as Prometheus writes it: 1 where there is a page, 0 where there is none."""
    interval = scraped.times_s[1] - scraped.times_s[0]
    up = [1.0 if page else 0.0 for page in scraped.pages]
    ending = None if at_end is None else frozenset(at_end)
    return Case(name, {**scraped.samples, "up": up}, interval, at_end=ending)


def check_rules(binaries: PrometheusBinaries, files: Iterable[Path]) -> str:
    """What `promtool check rules` says against these files; empty where it finds no fault."""
    done = subprocess.run([binaries.promtool, "check", "rules", *files], capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def check_cases(
    binaries: PrometheusBinaries, groups: list[Group], cases: Mapping[str, tuple[Case, set[Fired]]], place: Path
) -> str:
    """Let promtool check that in each case just these alerts fired; what it says against it, empty where all is so."""
    done = _run(binaries, groups, [(case, fired) for case, fired in cases.values()], place)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def fired_in(binaries: PrometheusBinaries, groups: list[Group], case: Case, place: Path) -> set[Fired]:
    """The alerts that fired in a case, as promtool tells them: they are what it got where nothing was expected."""
    output = _run(binaries, groups, [(replace(case, at_end=None), set())], place)
    got = (output.stdout + output.stderr).rpartition("got:")[2] if output.returncode else ""
    assert got or output.returncode == 0, output.stdout + output.stderr
    found = [dict(_LABEL.findall(sample)) for sample in _SAMPLE.findall(got)]
    return {Fired(alert["alertname"], alert["severity"], alert.get("verdict", "")) for alert in found}


def described_in(binaries: PrometheusBinaries, groups: list[Group], case: Case, place: Path) -> dict[Fired, str]:
    """The descriptions of the alerts that fire at the end of a case, as Prometheus would tell them."""
    files = written(groups)
    for name, text in files.items():
        (place / name).write_text(text, encoding="utf-8")
    names = sorted({alert.name for alert in alerts_of(groups)})
    asked = [{"eval_time": f"{case.seconds}s", "alertname": name, "exp_alerts": []} for name in names]
    test = {**_test(case, set()), "promql_expr_test": [], "alert_rule_test": asked}
    body = {"rule_files": list(files), "evaluation_interval": f"{INTERVAL_S}s", "tests": [test]}
    (place / "cases.yml").write_text(json.dumps(body), encoding="utf-8")
    done = subprocess.run([binaries.promtool, "test", "rules", place / "cases.yml"], capture_output=True, text=True)
    found = {}
    for labels, description in _TOLD.findall(done.stdout + done.stderr):
        alert = dict(_LABEL.findall(labels))
        found[Fired(alert["alertname"], alert["severity"], alert.get("verdict", ""))] = description
    return found


def _run(
    binaries: PrometheusBinaries, groups: list[Group], cases: Sequence[tuple[Case, set[Fired]]], place: Path
) -> subprocess.CompletedProcess[str]:
    files = written(groups)
    for name, text in files.items():
        (place / name).write_text(text, encoding="utf-8")
    tests = [_test(case, fired) for case, fired in cases]
    body = {"rule_files": list(files), "evaluation_interval": f"{INTERVAL_S}s", "tests": tests}
    (place / "cases.yml").write_text(json.dumps(body), encoding="utf-8")  # JSON is YAML, and quick to write
    command = [binaries.promtool, "test", "rules", place / "cases.yml"]
    return subprocess.run(command, capture_output=True, text=True)


def _test(case: Case, fired: set[Fired]) -> dict[str, object]:
    asked = [(_FIRING.format(seconds=case.seconds + 1), fired)]
    if case.at_end is not None:
        asked.append((_STILL, set(case.at_end)))
    return {
        "name": case.name,
        "interval": f"{round(case.interval_s * 1000)}ms",
        "input_series": [
            {"series": _with_labels(name, case.labels), "values": _values(values)}
            for name, values in sorted(case.samples.items())
        ],
        "promql_expr_test": [
            {
                "expr": expression,
                "eval_time": f"{case.seconds}s",
                "exp_samples": [{"labels": _labels(alert), "value": 1} for alert in sorted(alerts)],
            }
            for expression, alerts in asked
        ],
    }


def _labels(alert: Fired) -> str:
    verdict = f', verdict="{alert.verdict}"' if alert.verdict else ""
    return f'{{alertname="{alert.name}", severity="{alert.severity}"{verdict}}}'


def _with_labels(series: str, labels: Mapping[str, str]) -> str:
    added = ",".join(f'{name}="{value}"' for name, value in labels.items())
    name, brace, rest = series.partition("{")
    return f"{name}{{{added},{rest}" if brace else f"{name}{{{added}}}"


def _values(values: Sequence[float | None]) -> str:
    """In promtool's notation: a sample that is missing after one that was there is a stale marker."""
    words, there = [], False
    for value in values:
        words.append("stale" if value is None and there else "_" if value is None else _number(value))
        there = value is not None
    return " ".join(words)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value) if "e" not in repr(value) else f"{value:.20f}"
