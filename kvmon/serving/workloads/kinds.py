"""Kinds of traffic: single requests, chats, agents, with what each of them usually looks like.

Invariant: a kind is only a set of defaults; whatever it says can be said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvmon.serving.workloads.chat_and_agents import CLASS_AGENT, CLASS_CHAT
from kvmon.serving.workloads.prefixes import SharedPrefixes

__all__ = ["KINDS", "Kind"]


@dataclass(frozen=True)
class Kind:
    """Defaults of a kind: distribution of the steps, mean pause between two of them, lengths, class, prefixes.

    `max_tokens` is the least longest sequence: a conversation needs more room than its single requests.
    `conversation`: a step's prompt begins with everything that was said before.
    """

    what: str
    conversation: bool
    steps: str
    pause_s: float
    lengths: str
    max_tokens: int
    class_id: int
    prefixes: SharedPrefixes | None


#: Name -> kind. Steps and pauses are assumed; the header of agents stands for a system prompt with its tools.
KINDS = {
    "requests": Kind(
        what="single requests that share nothing but a prefix",
        conversation=False,
        steps="fixed:1",
        pause_s=0.0,
        lengths="sharegpt",
        max_tokens=0,
        class_id=0,
        prefixes=None,
    ),
    "chats": Kind(
        what="conversations: every turn brings all that was said before",
        conversation=True,
        steps="uniform:1-9",
        pause_s=30.0,
        lengths="sharegpt",
        max_tokens=8192,
        class_id=CLASS_CHAT,
        prefixes=None,
    ),
    "agents": Kind(
        what="tasks: loops of tool calls behind one big header",
        conversation=True,
        steps="uniform:4-20",
        pause_s=2.0,
        lengths="agent-steps",
        max_tokens=131_072,
        class_id=CLASS_AGENT,
        prefixes=SharedPrefixes(1, 4000),
    ),
}
