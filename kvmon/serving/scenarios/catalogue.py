"""The table of scenarios, and how a name finds its row or its twin.

Invariant: names are promises; `find` knows every name that `names` lists.
"""

from __future__ import annotations

import difflib

from kvmon.errors import ConfigError
from kvmon.serving.scenarios.broken import BROKEN
from kvmon.serving.scenarios.figure2 import FIGURE2
from kvmon.serving.scenarios.lessons import LESSONS
from kvmon.serving.scenarios.prefixes import PREFIXES
from kvmon.serving.scenarios.scenario import Scenario
from kvmon.serving.scenarios.single import SINGLE
from kvmon.serving.scenarios.stuck import STUCK

__all__ = ["SCENARIOS", "find", "names"]

#: Every scenario by name, twins not listed.
SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario for scenario in (*LESSONS[:1], FIGURE2, *LESSONS[1:], *PREFIXES, *SINGLE, *STUCK, *BROKEN)
}


def names() -> list[str]:
    """Names of all scenarios and their twins."""
    return [name for scenario in SCENARIOS.values() for name in (scenario.name, scenario.twin().name)]


def find(name: str) -> Scenario:
    """The scenario or twin of this name. Raises ConfigError that names the nearest ones."""
    if name in SCENARIOS:
        return SCENARIOS[name]
    base = name.removesuffix("-healthy")
    if base in SCENARIOS:
        return SCENARIOS[base].twin()
    near = difflib.get_close_matches(name, names(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "'kvmon simulate --list' names them all"
    raise ConfigError(f"there is no scenario '{name}': {hint}")
