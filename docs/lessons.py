"""The lessons: one page for each case study, made of real runs, with the commands that anybody can run again.

    python docs/lessons.py --list            the names
    python docs/lessons.py --page NAME       lessons/NAME.md
    python docs/lessons.py --picture NAME    lessons/NAME.svg, the curves and the map of the report
    python docs/lessons.py --index           lessons/README.md

What a command prints stands in a page as it is printed. Invariant: the same code gives the same bytes; what depends on
the machine (how long a simulation took) is left out.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SEED = 3
_NEXT_POINT = re.compile(r"\s*\n(?=[MLQCz][ \n\"])")
_WALL_TIME = re.compile(r"^simulated / wall time +(.*?) / .*$", re.MULTILINE)


@dataclass(frozen=True)
class Lesson:
    """One case study.

    title, story    what it teaches, in words
    scenario        of the catalogue; it has the traffic and the twin
    changes         what-ifs that are tried, each a change
    look            what to look for in the picture
    after           what the run with the cure shows, and what it does not
    seed            of the traffic
    compare         another scenario of the same traffic whose run is shown beside it
    """

    title: str
    story: str
    scenario: str
    changes: tuple[str, ...]
    look: str
    after: str
    seed: int = SEED
    compare: str = ""


LESSONS: dict[str, Lesson] = {
    "server-failures": Lesson(
        "Refused with half the memory free",
        "In standard self-attention the cache of a sequence is one contiguous block. Eight sequences of eight slots "
        "fill a pool of 64; every second one ends. Half of the memory is free now, in four holes of eight. The next "
        "request needs sixteen adjacent slots and is refused. No usage gauge explains it: it says 50 %.",
        "server-failures",
        ("allocator=paged,block=8", "compaction=on"),
        "The four holes in the map at the moment of the refusal: each is eight units, and the need is sixteen.",
        "In pages of eight the same request takes any two pages and runs. Compaction cures it too, and copies for it.",
    ),
    "paged-vs-standard": Lesson(
        "Three reservations and pages, the figure of the paper",
        "How much of the KV memory holds keys and values? PagedAttention (SOSP 2023, figure 2) compares three ways to "
        "reserve a contiguous block for a sequence whose length nobody knows (the longest possible, the next power of "
        "two, the true length of an oracle) with pages. Even the oracle loses a third: lengths vary, blocks come and "
        "go, and what is free is in the wrong places.",
        "paged-vs-standard",
        (),
        "Each stream of the capture is one policy. The first, with reservations of the longest possible length, is "
        "drawn: almost all of it is set aside, and little of that is ever written.",
        "Pages leave at most one unfilled page a sequence: 96 % and more of the memory holds keys and values, and "
        "three to five times as many requests run at once.",
        seed=0,
    ),
    "post-incident": Lesson(
        "Out of memory at a quarter free",
        "Agents with long prompts and long answers share a system prompt of 600 tokens. The engine keeps the prefixes "
        "of the last sixteen to save prefill: sixteen regions that lie where they were computed and never move. Time "
        "to first token goes up, tokens a second stay flat, and requests are lost while a quarter of the memory is "
        "free. Nobody connects the two, because reuse looks like a gain everywhere else.",
        "post-incident",
        ("allocator=paged,block=16,on-growth-failure=preempt", "retain=0"),
        "The islands in the map: retained prefixes that cut the free memory into pieces. The largest free block is "
        "below the need whenever a request is lost, while what is free is far above it.",
        "Switching reuse off is the first thing that comes to mind, and it does help; it also computes every prefix "
        "again. Pages with shared prefix blocks keep the reuse and lose nothing.",
        compare="post-incident-without-reuse",
    ),
    "root-cause": Lesson(
        "Prefix caching alone does not cure it",
        "Prompts of 20 to 2,000 tokens behind a prefix of 220, answers of 50 or 1,500. Out of memory and spikes of "
        "token latency. The first suspicion is that too much is computed twice, and a prefix cache is asked for.",
        "root-cause",
        (
            "allocator=paged,block=16,on-growth-failure=preempt",
            "allocator=paged,block=16,on-growth-failure=preempt,prefix-cache=off",
            "retain=16",
        ),
        "Refusals at the start of a request and in the middle of a stream. The second kind loses work that was done "
        "already: a sequence grows into a neighbour, no hole is long enough, and it ends.",
        "Pages without a prefix cache avoid every lost request; a prefix cache without pages does not. Pages first.",
    ),
    "stabilizing": Lesson(
        "The median is good, the 99th percentile is not",
        "Mostly short chats, now and then a prompt of 2,000 to 6,000 tokens. The dashboards are green on average. When "
        "a long one arrives it needs one long run of free memory, the short ones have taken the middle of every hole, "
        "and it is refused.",
        "stabilizing",
        (
            "allocator=paged,block=16,on-growth-failure=preempt",
            "allocator=paged,block=16,on-growth-failure=preempt,admission=full-need",
            "compaction=on",
        ),
        "Need and largest free block at the red marks: the need is far above everything the short chats ask for.",
        "Pages, a prefix cache and prefill in chunks bring the long ones in. What may still fail is capacity, and that "
        "says so. Admission by full need pays in the queue: compare the time to first token, and what pages alone do.",
    ),
    "multi-tenant": Lesson(
        "It works in the morning and fails at night",
        "Several tenants with a header of 200 tokens each. At night one of them sends a batch of long requests. "
        "Nothing was deployed, no limit was reached, and the failures hit tenants who sent nothing unusual.",
        "multi-tenant",
        ("allocator=paged,block=16,on-growth-failure=preempt", "compaction=on"),
        "Before and after: the map is orderly until the batch begins, and does not recover before it ends.",
        "Pages end the fragmentation. A quota for the batch keeps it from filling the pool for the others: that is a "
        "question of fairness, which pages alone do not answer.",
    ),
    "choosing": Lesson(
        "The hit rate collapses",
        "Many prefixes of 300 tokens, prompts of mixed lengths, and a pool that is nearly full. Every prefix is "
        "evicted before its next use: the cache works as hard as ever and finds little.",
        "choosing",
        ("pool=+50%", "pool=+100%", "pin-after=2,pin-share=20%"),
        "Evictable memory shrinks to little while requests run. Prefix cache hits fall with it.",
        "A pin for the prefixes that are used again and again, under a cap, keeps the hot ones; a cap is needed, since "
        "what is pinned can no longer be lent.",
    ),
    "prefix-mixed": Lesson(
        "A prefix shorter than a page is never found",
        "Pages of 256 tokens and prefixes of 200. A prefix cache names full pages only, so not one token of these is "
        "ever found, however often they come: floor(200 / 256) is 0. The hit rate of 0 % is by construction.",
        "prefix-mixed",
        ("block=16", "block=64"),
        "Written and tail: a large part of every last page stays empty. There is not one hit.",
        "Pages of 16 find 192 of the 200 tokens, and hardly waste a slot.",
    ),
    "chatbot-degradation": Lesson(
        "Slower with each turn",
        "Chats of many turns. Each turn sends the whole history again. While the pool holds it between two turns, only "
        "the new words are computed; when it does not, everything is. Users say that the bot gets slow; two causes "
        "look the same to them: a decode step that reads more context, which is honest work, and a history that was "
        "evicted and is prefilled again.",
        "chatbot-degradation",
        ("pool=+100%", "pool=+300%"),
        "Prefix cache hits against prefill tokens a second: where the hits fall, the prefill rises.",
        "A pool that holds the histories, or a router that sends a chat to the rank that has its history, ends the "
        "prefilling. What a longer context costs in decoding stays.",
    ),
    "two-phase": Lesson(
        "Prefill takes ceil(m / B) blocks, decode one slot a token",
        "One sequence. The prompt of m tokens is computed at once and takes ceil(m / B) blocks of B slots. Then each "
        "token takes one slot, and a new block exactly every B tokens.",
        "two-phase",
        ("block=128",),
        "One step up at the prefill, then a stair of single blocks.",
        "With pages of 128 the stair has fewer and higher steps, and the tail is longer.",
    ),
    "updating": Lesson(
        "One slot a token",
        "One sequence that decodes for long. Nothing is computed twice: each step adds the keys and values of one "
        "token and reads all those before it.",
        "updating",
        ("block=128",),
        "A straight line in slots, a stair in blocks.",
        "The size of a page changes the stair, never the line.",
    ),
    "single-step": Lesson(
        "One prompt, one token",
        "A prompt whose answer is one token, as in scoring. The memory is taken for one step and given back.",
        "single-step",
        ("block=128",),
        "One rectangle: the blocks of the prompt, for one step.",
        "There is nothing to keep, so the size of a page matters only by its tail.",
    ),
    "space": Lesson(
        "Bytes a token",
        "2 x layers x KV heads x head size x bytes of an element: twice the layers, twice the bytes. The number of "
        "layers is drawn from the seed.",
        "space",
        (),
        "The same stair as in the other lessons; only the size of a unit is another.",
        "The twin has twice the layers: every number in bytes doubles, every number in tokens stays.",
    ),
    "structure": Lesson(
        "A sliding window reaches a plateau",
        "Full attention needs the keys and values of every token before; a layer with a sliding window those of the "
        "last W alone. Their pages are kept in a group of their own.",
        "structure",
        ("window-tokens=0",),
        "Two slopes: while the window fills every layer takes pages; after W tokens those of the full layers alone.",
        "Without windows everything grows to the end.",
    ),
}


def run(*arguments: str, cwd: Path) -> str:
    """What `kvmon` prints, at 80 columns and without colour; exit code 1 means that something was found."""
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "kvmon", *arguments],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1):
        raise RuntimeError(f"kvmon {' '.join(arguments)}: {done.stderr}")
    return "\n".join(line.rstrip() for line in _WALL_TIME.sub(r"simulated time \1", done.stdout).splitlines())


def shown(*arguments: str, cwd: Path) -> list[str]:
    """A command and what it prints, as a block."""
    command = " ".join(f'"{word}"' if " " in word else word for word in arguments)
    return ["```text", f"$ kvmon {command}", run(*arguments, cwd=cwd), "```", ""]


def page(name: str) -> str:
    """The page of a lesson, as Markdown."""
    lesson = LESSONS[name]
    seed, capture = str(lesson.seed), f"{name}.kvmon"
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        scenario = ("simulate", "--scenario", lesson.scenario, "--seed", seed)
        lines = [f"# {lesson.title}", "", lesson.story, "", "## The traffic, and what the operator sees", ""]
        lines += shown(*scenario, "--out", capture, cwd=place)
        if lesson.compare:
            lines += ["The same traffic, another engine:", ""]
            lines += shown("simulate", "--scenario", lesson.compare, "--seed", seed, cwd=place)
        lines += ["## The picture", "", f"![Memory over time and by address]({name}.svg)", "", lesson.look, ""]
        lines += [f"`kvmon replay {capture} --html report.html` has it with zoom and every refusal.", ""]
        lines += ["## The verdict", ""]
        lines += shown("replay", capture, "--no-what-if", cwd=place)
        if lesson.changes:
            changes = [word for change in lesson.changes for word in ("--what-if", change)]
            lines += ["## What if", "", "The recorded requests through the simulator, with one change at a time:", ""]
            said = shown("replay", capture, *changes, cwd=place)
            lines += [said[0], said[1], _from_calibration(said[2]), *said[3:]]
        lines += ["## The proof", ""]
        if name != "paged-vs-standard":
            lines += ["The same traffic with the cure, really run:", ""]
            lines += shown("simulate", "--scenario", f"{lesson.scenario}-healthy", "--seed", seed, cwd=place)
        else:
            lines += ["![Shares of the KV memory by policy](../paged-vs-standard.svg)", ""]
        lines += [lesson.after]
    return "\n".join(lines)


def _from_calibration(text: str) -> str:
    """The what-if's part of what replay prints; the findings stand above already."""
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if "replayed without a change" in line)
    return "\n".join(["...", *lines[first:]])


def picture(name: str) -> str:
    """Curves and map of every pool that matters, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "kvmon", "svg.fonttype": "none", "font.family": "sans-serif"})
    from matplotlib import pyplot
    from matplotlib.colors import ListedColormap

    from kvmon.replay.timeline import read_timelines
    from kvmon.replay.timeline_model import MAP_STATES, UNKNOWN_CELL

    lesson = LESSONS[name]
    with tempfile.TemporaryDirectory() as temporary:
        capture = Path(temporary) / "run.kvmon"
        run(
            "simulate",
            "--scenario",
            lesson.scenario,
            "--seed",
            str(lesson.seed),
            "--out",
            str(capture),
            cwd=capture.parent,
        )
        timeline = read_timelines(capture, buckets=600, columns=300, cells=96)[0]
    colours = {
        "active": "#2f74b5",
        "reserved": "#9cc3e6",
        "cached": "#12876a",
        "pinned": "#b0568f",
        "deferred": "#c47f00",
    }
    seconds = (timeline.edges_ns - timeline.begin_ns) / 1e9
    pools = timeline.pools
    figure, axes = pyplot.subplots(2 * len(pools), 1, figsize=(9, 4.6 * len(pools)), sharex=True, squeeze=False)
    for pool, (curves, address) in zip(pools, axes[:, 0].reshape(-1, 2), strict=True):
        stack = [
            state for state in ("active", "pinned", "deferred", "cached") if np.nanmax(pool.curves[state].most) > 0
        ]
        curves.stackplot(
            seconds[1:],
            *(np.nan_to_num(pool.curves[state].last) for state in stack),
            colors=[colours[state] for state in stack],
            labels=stack,
            step="pre",
            linewidth=0,
        )
        if pool.contiguity != "none":
            curves.step(
                seconds[1:], pool.curves["largest_free"].least, color="#16191f", lw=1, label="largest free block"
            )
        need = timeline.curves["head_need"].most
        waits = np.where(need > 0, need, np.nan)
        if pool.number == pools[0].number and np.isfinite(waits).any():
            curves.plot(seconds[1:], waits, color="#b3261e", lw=1.4, label="need at the head")
        for failure in timeline.failures:
            if failure.refusal.pool == pool.number:
                at = (failure.refusal.time_ns - timeline.begin_ns) / 1e9
                curves.axvline(at, ymin=0.96, color="#b3261e", lw=0.8)
        highest = float(np.nanmax(pool.curves["capacity"].most - pool.curves["available"].least))
        top = pool.capacity if highest > pool.capacity / 4 else 1.3 * highest  # one sequence in a large pool
        curves.set_ylim(0, top)
        curves.set_ylabel(f"units of pool {pool.name}")
        curves.legend(loc="upper left", ncols=6, fontsize=8, frameon=False, bbox_to_anchor=(0, 1.16))
        states = np.where(pool.map.state == UNKNOWN_CELL, len(MAP_STATES), pool.map.state)
        palette = ListedColormap(["#e7eaee", *(colours[state] for state in MAP_STATES[1:]), "#8a8f99"])
        edges = (pool.map.edges_ns - timeline.begin_ns) / 1e9
        rows = np.linspace(0, pool.capacity, states.shape[1] + 1)
        address.pcolormesh(edges, rows, states.T, cmap=palette, vmin=-0.5, vmax=len(MAP_STATES) + 0.5, rasterized=True)
        address.set_ylim(top, 0)
        address.set_ylabel("address")
    axes[-1, 0].set_xlabel("seconds")
    axes[0, 0].set_xlim(0, max(float(seconds[-1]), 1e-3))
    for one in axes[:, 0]:
        one.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", dpi=100, metadata={"Date": None, "Creator": None})
    # a path is one line, not one for each of its points: nobody reads those in a difference
    text = _NEXT_POINT.sub(" ", drawn.getvalue())
    return "\n".join(line.rstrip() for line in text.splitlines())


def index() -> str:
    """The list of the lessons."""
    lines = [
        "# Lessons",
        "",
        "Case studies of KV-cache memory, one page each: the traffic, what an operator sees, the picture, the verdict,",
        "what would have avoided it, and the run that proves it. `make docs` writes them anew from real runs; every",
        "command on a page can be run again and prints the same.",
        "",
        "| lesson | verdict | about |",
        "| --- | --- | --- |",
    ]
    from kvmon.serving.scenarios import SCENARIOS

    for name, lesson in LESSONS.items():
        lines.append(f"| [{lesson.title}]({name}.md) | `{SCENARIOS[lesson.scenario].verdict}` | `{lesson.scenario}` |")
    return "\n".join(lines)


if __name__ == "__main__":
    pages = {"--page": page, "--picture": picture}
    if len(sys.argv) == 3 and sys.argv[1] in pages and sys.argv[2] in LESSONS:
        print(pages[sys.argv[1]](sys.argv[2]))
    elif sys.argv[1:] == ["--index"]:
        print(index())
    elif sys.argv[1:] == ["--list"]:
        print("\n".join(LESSONS))
    else:
        sys.exit("give --list, --index, --page NAME or --picture NAME with a name of --list")
