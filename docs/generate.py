"""What the docs show that is made from code, on standard output; `make docs` keeps it beside this file.

    python docs/generate.py --figure2      paged-vs-standard.svg: PagedAttention's figure 2 as the simulator has it
    python docs/generate.py --scenarios    scenarios.md: the catalogue
    python docs/generate.py --engines      engines.md: what each adapter declares that it sees
    python docs/generate.py --confusion    verdicts/README.md: what was found in every scenario, seeds 10 to 29
    python docs/generate.py --verdict NAME verdicts/NAME.md: the page that `kvmon explain NAME` prints

Invariant: the same code gives the same bytes.
"""

from __future__ import annotations

import io
import sys
from collections import Counter

from kvmon.adapters.base import SIGHTS
from kvmon.adapters.registry import adapters
from kvmon.cli.record import run_setup
from kvmon.cli.simulate_output import comparison
from kvmon.diagnosis.reading import first_line, page, pages
from kvmon.serving.scenarios import PAPER, SCENARIOS, find

PARTS = {
    "token": ("keys and values", "#2b6cb0"),
    "reserved": ("reserved, used later", "#90cdf4"),
    "internal": ("reserved, never used", "#f6ad55"),
    "external": ("asked for by nobody", "#cbd5e0"),
}
NAMES = {"max": "Orca (max)", "pow2": "Orca (pow2)", "oracle": "Orca (oracle)", "paged": "paged, 16"}


def figure2() -> str:
    """Bars of the four policies, ours beside the published ones, with their numbers as text, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "kvmon", "svg.fonttype": "none", "font.family": "sans-serif"})
    from matplotlib import pyplot

    rows = comparison({name: run_setup(setup) for name, setup in find("paged-vs-standard").setups(0)[0].items()})
    figure, axes = pyplot.subplots(figsize=(9, 4.2))
    places, labels = [], []
    for index, row in enumerate(rows):
        policy = str(row["policy"])
        published = dict(zip(PARTS, PAPER[policy], strict=False))
        for side, shares in enumerate((published, row)):
            at = 1.25 * index + 0.48 * side
            places.append(at)
            labels.append("paper" if side == 0 else "kvmon")
            bottom = 0.0
            for part, (meaning, colour) in PARTS.items():
                share = shares[part]
                if not isinstance(share, float):
                    continue
                legend = meaning if index == 0 and side == 1 else None
                axes.bar(at, share, 0.44, bottom=bottom, color=colour, label=legend)
                if share >= 4:
                    white = "white" if part == "token" else "#1a202c"
                    axes.text(at, bottom + share / 2, f"{share:.1f}", ha="center", va="center", fontsize=8, color=white)
                bottom += share
        axes.text(1.25 * index + 0.24, -17, NAMES[policy], ha="center", fontsize=10)
    axes.set_xticks(places, labels, fontsize=8)
    axes.set_ylim(0, 100)
    axes.set_ylabel("share of the KV memory, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", length=0)
    figure.legend(loc="upper center", ncols=4, frameon=False, fontsize=9)
    figure.subplots_adjust(left=0.07, right=0.99, top=0.9, bottom=0.17)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in drawn.getvalue().splitlines())


def scenarios() -> str:
    """A table of every scenario, as Markdown."""
    lines = [
        "# Scenarios",
        "",
        "Made by `make docs` from the catalogue that `kvmon simulate --list` prints. Run one with",
        "`kvmon simulate --scenario NAME --seed N [--out X.kvmon]`; `NAME-healthy` is the same with the cure. A seed",
        "draws traffic and parameters, and stands in the capture beside them.",
        "",
        "| scenario | verdict | traffic | an operator sees | avoided by | the twin may show |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for scenario in SCENARIOS.values():
        twin = ", ".join(f"`{verdict}`" for verdict in scenario.healthy)
        lines.append(
            f"| `{scenario.name}` | `{scenario.verdict}` | {scenario.traffic} | {scenario.sees} | {scenario.avoids} "
            f"| {twin} |"
        )
    return "\n".join(lines)


SEEDS = range(10, 30)


def confusion() -> str:
    """The index of the verdicts, and what the diagnosis made of every scenario, as Markdown."""
    import confusion as measured

    lines = [
        "# Verdicts",
        "",
        "Made by `make docs`. `kvmon explain NAME` prints the page of a verdict.",
        "",
        "| verdict | |",
        "| --- | --- |",
        *(f"| [{name}]({name}.md) | {first_line(name)} |" for name in pages()),
        "",
        "## What was found in every scenario",
        "",
        f"Thresholds (`kvmon/diagnosis/thresholds.py`) were frozen on seeds 0 to 9; these are seeds {SEEDS.start} to "
        f"{SEEDS.stop - 1}. Each scenario",
        "and its twin run through the simulator, every event is folded, and the finding that stands first is counted.",
        "",
        "| scenario | stands for | found first | in the twin | also right where five seconds are lost |",
        "| --- | --- | --- | --- | --- |",
    ]
    runs = right = alarms = 0
    losses = {scenario.name: found for scenario, found in measured.rows(SEEDS, loss=True)}
    found_by_name = {scenario.name: (scenario, found) for scenario, found in measured.rows(SEEDS)}
    for name, (scenario, found) in found_by_name.items():
        fine = sum(found[verdict] for verdict in measured.allowed(scenario))
        runs += found.total()
        right += fine
        if scenario.cured:
            alarms += found.total() - fine
            continue
        twin = found_by_name[f"{name}-healthy"][1]
        lost = losses[name]
        stays = sum(lost[verdict] for verdict in (*measured.allowed(scenario), "telemetry_untrusted"))
        stays = stays if scenario.verdict == "healthy" else lost[scenario.verdict]
        lines.append(
            f"| `{name}` | {scenario.verdict} | {_counts(found)} | {_counts(twin)} | {stays} of {lost.total()} |"
        )
    lines += [
        "",
        f"{right:,} of {runs:,} are right ({right / runs:.1%}); {alarms} twins show what they may not. Where events",
        "are lost, a healthy run says `telemetry_untrusted`, which counts as right: that is what there is to say.",
        "",
        "## Two causes at once",
        "",
        "| scenario | its verdict | and besides | both found |",
        "| --- | --- | --- | --- |",
    ]
    for name, first, second, found in measured.pairs(SEEDS):
        lines.append(f"| `{name}` | {first} | {second} | {found['both']} of {found.total()} |")
    lines += [
        "",
        "The explanation of a failure stands first, then conditions over time, then capacity, which is what is left,",
        "then what cannot be trusted. A finding says how much of the past it knew, and what it could not see. Without",
        "units (`counts`, `cache_only`) nobody can say who held the memory, and no cause that needs it is named.",
    ]
    return "\n".join(lines)


def engines() -> str:
    """What each adapter sees, as it declares it."""
    lines = [
        "# What kvmon sees in your engine",
        "",
        "Written by `docs/generate.py --engines` from what adapters declare; change `kvmon/adapters`, not this page.",
        "",
        "`exact`: at every event. `sampled`: now and then. `absent`: not seen, and no number is made of it. A version",
        "newer than the last one here is recorded with less (`counts`), an older one not at all; see `kvmon doctor`.",
    ]
    for adapter in adapters():
        one = adapter.declaration
        first, last = (".".join(map(str, version)) for version in (one.first, one.last))
        lines += ["", f"## {one.title}", "", f"Versions {first} to {last}, fidelity `{one.fidelity}`."]
        lines += [f"Tested with {', '.join(one.tested)}."] if one.tested else []
        lines += ["", f"- `kvmon.attach(...)` takes {one.attaches}."]
        lines += [f"- By itself: {one.by_itself}."] if one.by_itself else []
        lines += ["", "| what | how | where, or why not |", "| --- | --- | --- |"]
        lines += [f"| {SIGHTS[name]} | {one.sees[name].how} | {one.sees[name].note} |" for name in SIGHTS]
        lines += ["", "Not run, or only in part:", ""]
        lines += [f"- {what}: {why}" for what, why in one.not_run.items()]
    return "\n".join(lines)


def _counts(found: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in found.most_common())


def verdict_page(name: str) -> str:
    """The page of a verdict as it ships."""
    return page(name).rstrip()


PAGES = {"--figure2": figure2, "--scenarios": scenarios, "--engines": engines, "--confusion": confusion}

if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--verdict" and sys.argv[2] in pages():
        print(verdict_page(sys.argv[2]))
    elif len(sys.argv) == 2 and sys.argv[1] in PAGES:
        print(PAGES[sys.argv[1]]())
    else:
        sys.exit(f"generate.py: give one of {', '.join(PAGES)}, or --verdict NAME")
