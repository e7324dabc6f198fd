"""What every shipped dashboard keeps to, read from its JSON: places, names, units, words, colours, queries, links."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from grafana_foundation_sdk.models import units

from kvmon.catalog import ENUMERATIONS, METRICS
from kvmon.dashboards import NAMES, text
from kvmon.dashboards.source.expressions import VARIABLES
from kvmon.dashboards.source.palette import COLOURS, GROUPS, VERDICTS_BY_GRAVITY
from kvmon.dashboards.source.promql import metrics_in, problems
from kvmon.errors import ConfigError
from tests.dashboards.asking import Json, dashboards, panels, queries

PAGES = dashboards()
UNITS = {value for value in vars(units).values() if isinstance(value, str)}
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def everything(value: Any) -> Iterator[Any]:
    """Every value below and including this one."""
    yield value
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in below:
        yield from everything(part)


def with_numbers(page: Json) -> list[Json]:
    """Panels that show numbers."""
    return [panel for panel in panels(page) if panel["type"] != "text"]


each_page = pytest.mark.parametrize("page", [pytest.param(PAGES[name], id=name) for name in NAMES])


@each_page
def test_panels_fill_the_grid_and_do_not_overlap(page: Json) -> None:
    """Each line of the 24 columns is full, each cell has one panel, and nothing is outside."""
    cells: Counter[tuple[int, int]] = Counter()
    for panel in page["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells.update(
            itertools.product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"]))
        )
    assert set(cells.values()) == {1}
    assert len(cells) == 24 * (max(y for _, y in cells) + 1)


@each_page
def test_every_panel_says_what_it_is_and_in_which_unit(page: Json) -> None:
    """A title, a description in a sentence, a unit of Grafana's, and words for when there is nothing."""
    for panel in panels(page):
        assert panel["title"]
        assert len(panel["description"]) > 15
        assert panel["description"].rstrip()[-1] in ".:"
    for panel in with_numbers(page):
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["unit"] in UNITS, panel["title"]
        assert panel["type"] == "table" or defaults["noValue"], f"{panel['title']} does not say what absent means"
        for override in panel["fieldConfig"]["overrides"]:
            for found in override["properties"]:
                assert found["id"] != "unit" or found["value"] in UNITS


@each_page
def test_numbers_and_letters_are_unique(page: Json) -> None:
    """Panels by number and by title, queries of a panel by letter."""
    every = [*page["panels"], *itertools.chain(*(row.get("panels", []) for row in page["panels"]))]
    assert len({panel["id"] for panel in every}) == len(every)
    assert len({panel["title"] for panel in panels(page)}) == len(list(panels(page)))
    for panel in with_numbers(page):
        letters = [target["refId"] for target in panel["targets"]]
        assert letters
        assert len(set(letters)) == len(letters)


@each_page
def test_the_data_source_is_the_variable_everywhere(page: Json) -> None:
    """No query, annotation or variable names a data source of its own; Grafana's own annotations apart."""
    for found in everything(page):
        if isinstance(found, dict) and isinstance(found.get("datasource"), dict):
            assert found["datasource"] == DATASOURCE or found.get("builtIn") == 1
    for panel in with_numbers(page):
        assert all(target["datasource"] == DATASOURCE for target in panel["targets"])


@each_page
def test_queries_name_only_what_there_is(page: Json) -> None:
    """Metrics, labels and values of the catalogue; every variable is one of the page, every rate takes its interval."""
    known = {variable["name"] for variable in page["templating"]["list"]} | {"__rate_interval", "__interval"}
    for what, query in queries(page):
        assert problems(query) == [], what
        assert set(re.findall(r"\$(\w+)", query)) <= known, what
        for range_ in re.findall(r"\[(.*?)\]", query):
            assert range_ == "$__rate_interval", what
        for counter in (metric.name for metric in METRICS if metric.kind == "counter"):
            if counter in metrics_in(query) and what not in ("Engines and adapters / Lost",):
                assert re.search(rf"(rate|increase)\({counter}\b", query), f"{what} shows a counter as it is"


@each_page
def test_every_query_of_engines_heeds_the_variables(page: Json) -> None:
    """What is chosen at the top holds in each selector, as far as the metric has the label."""
    labels = {sample: metric.labels for metric in METRICS for sample in metric.samples}
    for what, query in queries(page):
        if what.startswith("variable"):
            continue
        for name, matchers in re.findall(r"\b(kvmon_\w+|up|scrape_\w+)\{(.*?)\}", query):
            due = ["job", "instance", *(label for label in VARIABLES if label in labels.get(name, ()))]
            assert all(f'{label}=~"${label}"' in matchers for label in due), what


def test_every_metric_is_on_a_dashboard() -> None:
    """Nothing is measured that nobody can see."""
    asked = {name for page in PAGES.values() for _, query in queries(page) for name in metrics_in(query)}
    unseen = [metric.name for metric in METRICS if not asked & set(metric.samples)]
    assert unseen == []


def test_pages_have_stable_names_and_the_same_variables() -> None:
    """The uid is the name of the file, the tag finds them, everything may be chosen more than once."""
    for name, page in PAGES.items():
        assert page["uid"] == name
        assert page["tags"] == ["kvmon"]
        assert page["schemaVersion"] == 42
        assert page["id"] is None
        assert page["refresh"] and page["time"]["to"] == "now"
    lists = [page["templating"]["list"] for page in PAGES.values()]
    assert all(variables == lists[0] for variables in lists)
    assert [variable["name"] for variable in lists[0]] == ["datasource", *VARIABLES]
    assert all(variable["multi"] and variable["includeAll"] for variable in lists[0][1:])


def test_links_lead_to_pages_that_there_are() -> None:
    """The page links keep time and variables; a link of a table sets variables that its rows have, and the time."""
    found = 0
    for page in PAGES.values():
        (link,) = page["links"]
        assert link["tags"] == ["kvmon"]
        assert link["keepTime"] and link["includeVars"]
        for table in (panel for panel in panels(page) if panel["type"] == "table"):
            queried = " ".join(target["expr"] for target in table["targets"])
            for url in re.findall(r'"url": "(.+?)"', json.dumps(table)):
                found += 1
                uid, _, query = url.removeprefix("/d/").partition("?")
                assert uid in PAGES
                assert query.startswith("${__url_time_range}&${datasource:queryparam}&")
                for variable, label in re.findall(r"var-(\w+)=\$\{__data\.fields\.(\w+):percentencode\}", query):
                    assert variable == label in VARIABLES
                    assert label in queried
    assert found >= 3


def test_a_state_has_the_same_colour_everywhere() -> None:
    """Whatever series is called by a state, an owner, a reason or a verdict has the colour of the palette."""
    colours: dict[tuple[str, str], set[str]] = {}
    for page in PAGES.values():
        for panel in with_numbers(page):
            for override in panel["fieldConfig"]["overrides"]:
                name = re.fullmatch(r"/\(\^\|\\s\)(\w+)\$/", str(override["matcher"]["options"]))
                for property_ in override["properties"]:
                    if name and property_["id"] == "color":
                        metric = next(iter(metrics_in(panel["targets"][0]["expr"])))
                        colours.setdefault((metric, name[1]), set()).add(property_["value"]["fixedColor"])
    assert colours
    assert {key: found for key, found in colours.items() if len(found) > 1} == {}


@pytest.mark.parametrize(
    ("group", "metric", "label"),
    [
        ("state", "kvmon_memory_bytes", "state"),
        ("slot", "kvmon_active_slots", "kind"),
        ("owner", "kvmon_owned_memory_bytes", "owner"),
        ("request", "kvmon_requests", "state"),
        ("reason", "kvmon_allocation_failures_total", "reason"),
        ("finish", "kvmon_requests_finished_total", "reason"),
        ("gpu", "kvmon_gpu_memory_bytes", "state"),
        ("part", "kvmon_gpu_used_bytes", "part"),
        ("torch", "kvmon_torch_memory_bytes", "state"),
        ("size", "kvmon_lost_ratio", "size"),
        ("verdict", "kvmon_verdict", "verdict"),
    ],
)
def test_every_value_has_a_colour_and_no_two_beside_each_other_share_one(group: str, metric: str, label: str) -> None:
    """The palette is complete; verdicts alone share colours, by their gravity."""
    assert set(GROUPS[group]) == set(ENUMERATIONS[metric, label])
    shades = [COLOURS[name] for name in GROUPS[group].values()]
    assert group == "verdict" or len(set(shades)) == len(shades)


def test_every_verdict_has_a_gravity() -> None:
    """A new verdict is on the dashboards without a change to them."""
    graded = [name for names in VERDICTS_BY_GRAVITY.values() for name in names]
    assert sorted(graded) == sorted(ENUMERATIONS["kvmon_verdict", "verdict"])


def test_an_unknown_dashboard_is_refused() -> None:
    """With the verb that lists them."""
    with pytest.raises(ConfigError, match="'kvmon dashboards' lists them all"):
        text("kvmon-pools")
