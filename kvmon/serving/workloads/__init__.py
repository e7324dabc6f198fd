"""Seeded synthetic demand: what arrives when, how long it is, what it shares, and who follows whom.

Invariant: the same arguments give the same arrays on every machine with the same numpy; no clock, no global random
state.
"""

from __future__ import annotations

from kvmon.serving.workloads.arrivals import ARRIVALS, Arrivals, AtOnce, ClosedLoop, OpenLoop
from kvmon.serving.workloads.chat_and_agents import CLASS_AGENT, CLASS_CHAT, chat_and_agents
from kvmon.serving.workloads.distributions import DISTRIBUTIONS, Distribution, parse_distribution
from kvmon.serving.workloads.kinds import KINDS, Kind
from kvmon.serving.workloads.lengths import LENGTHS, Lengths, parse_lengths
from kvmon.serving.workloads.merging import merge
from kvmon.serving.workloads.patience import Patience
from kvmon.serving.workloads.prefixes import SharedPrefixes
from kvmon.serving.workloads.traffic import Traffic, generate

__all__ = [
    "ARRIVALS",
    "CLASS_AGENT",
    "CLASS_CHAT",
    "DISTRIBUTIONS",
    "KINDS",
    "LENGTHS",
    "Arrivals",
    "AtOnce",
    "ClosedLoop",
    "Distribution",
    "Kind",
    "Lengths",
    "OpenLoop",
    "Patience",
    "SharedPrefixes",
    "Traffic",
    "chat_and_agents",
    "generate",
    "merge",
    "parse_distribution",
    "parse_lengths",
]
