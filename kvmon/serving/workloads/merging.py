"""Several workloads at once: chats beside agents, one tenant beside another.

Invariant: the requests of each workload keep their order, times and lengths, and share nothing with another one's.
"""

from __future__ import annotations

import numpy as np

from kvmon.errors import ConfigError
from kvmon.serving.traces.identities import Names, named, names_of
from kvmon.serving.workload import Workload

__all__ = ["merge"]


def merge(*workloads: Workload, name: str = "merged") -> Workload:
    """All requests of `workloads`, by arrival; one that follows another keeps its place behind the arrivals before it.

    Shared prefixes and chats are numbered anew, the first workload's first. Raises ConfigError when there is nothing to
    merge, TraceError when a workload's prefix identities are not those of the plain format.
    """
    if not workloads:
        raise ConfigError("nothing to merge: give one workload or more")
    columns = [names_of(workload) for workload in workloads]
    place = [np.maximum.accumulate(np.where(w.independent, w.arrival_ns, 0)) for w in workloads]
    order = np.argsort(np.concatenate(place), kind="stable")
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(1, len(order) + 1)
    starts = np.cumsum([0, *(len(workload) for workload in workloads)])
    follows = np.zeros(len(order), np.int64)
    abort_ns = np.zeros(len(order), np.int64)
    for workload, start in zip(workloads, starts, strict=False):
        if len(workload.follows):
            earlier = np.where(workload.follows > 0, number[start + workload.follows - 1], 0)
            follows[start : start + len(workload)] = earlier
        if len(workload.abort_ns):
            abort_ns[start : start + len(workload)] = workload.abort_ns
    merged = Workload(
        arrival_ns=np.concatenate([workload.arrival_ns for workload in workloads])[order],
        prompt_tokens=np.concatenate([workload.prompt_tokens for workload in workloads])[order],
        output_tokens=np.concatenate([workload.output_tokens for workload in workloads])[order],
        token_limit=np.concatenate([workload.token_limit for workload in workloads])[order],
        class_id=np.concatenate([workload.class_id for workload in workloads])[order],
        name=name,
        follows=follows[order].astype(np.int32),
        abort_ns=abort_ns[order],
    )
    prefixes = np.cumsum([0, *(int(names.prefix_id.max()) for names in columns)])
    chats = np.cumsum([0, *(int(names.chat_id.max()) for names in columns)])
    renamed = Names(
        np.concatenate(
            [np.where(c.prefix_id > 0, c.prefix_id + at, 0) for c, at in zip(columns, prefixes, strict=False)]
        ),
        np.concatenate([c.prefix_tokens for c in columns]),
        np.concatenate([np.where(c.chat_id > 0, c.chat_id + at, 0) for c, at in zip(columns, chats, strict=False)]),
    )
    return named(merged, Names(*(column[order] for column in renamed)))
