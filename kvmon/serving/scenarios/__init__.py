"""Scenarios by name: what kvmon must recognise, each with its healthy twin.

Invariant: a scenario is data drawn from a seed; nothing here runs.
"""

from __future__ import annotations

from kvmon.serving.scenarios.catalogue import SCENARIOS, find, names
from kvmon.serving.scenarios.figure2 import PAPER, POLICIES
from kvmon.serving.scenarios.scenario import Draw, Scenario, Setup

__all__ = ["PAPER", "POLICIES", "SCENARIOS", "Draw", "Scenario", "Setup", "find", "names"]
