"""What stands in angle brackets in a query of a source, and the variables that it stands for.

A source writes `kvmon_memory_bytes{<pool>, state="active"}`; `<pool>` stands for the labels that the variables of
every dashboard choose.
"""

from __future__ import annotations

import re

from kvmon.dashboards.source.palette import VERDICTS_BY_GRAVITY
from kvmon.dashboards.source.trouble import SourceError, nearest

__all__ = ["VARIABLES", "expanded", "labels_in", "selector"]

VARIABLES = ("job", "instance", "engine", "rank", "pool")
"""The variables of every dashboard, each narrowed by those before it."""

# The gravest verdict has the highest number. A deadlock and a want of capacity come after what explains them.
_JUDGED = """
    6 * kvmon_verdict{<pool>, verdict=~"<bad>", verdict!="deadlock"} or 5 * kvmon_verdict{<pool>, verdict="deadlock"}
    or 4 * kvmon_verdict{<pool>, verdict=~"<unsure>"}
    or 3 * kvmon_verdict{<pool>, verdict=~"<warn>", verdict!="capacity"}
    or 2 * kvmon_verdict{<pool>, verdict="capacity"} or kvmon_verdict{<pool>, verdict="healthy"}
"""
_STANDS_FOR = re.compile(r"<(\w+)>")
_LEGEND_LABEL = re.compile(r"\{\{\s*(\w+)\s*\}\}")


def selector(last: str) -> str:
    """Matchers for the variables up to `last`; empty for none."""
    names = VARIABLES[: VARIABLES.index(last) + 1] if last else ()
    return ", ".join(f'{name}=~"${name}"' for name in names)


def expanded(expression: str) -> str:
    """The query with everything in angle brackets written out. Raises SourceError for what stands for nothing."""
    known = {
        "judged": _JUDGED,
        "exporter": selector("instance"),
        "rank": selector("rank"),
        "pool": selector("pool"),
        **{gravity: "|".join(names) for gravity, names in VERDICTS_BY_GRAVITY.items()},
    }

    def write_out(found: re.Match[str]) -> str:
        if found[1] not in known:
            raise SourceError(f"<{found[1]}> stands for nothing: {nearest(found[1], known)}")
        return known[found[1]]

    return " ".join(_STANDS_FOR.sub(write_out, _STANDS_FOR.sub(write_out, expression)).split())


def labels_in(legend: str) -> set[str]:
    """The labels that a legend shows."""
    return set(_LEGEND_LABEL.findall(legend))
