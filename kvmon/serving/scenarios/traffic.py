"""Traffic that scenarios are made of: requests at a load that is a share of the pool, single requests, phases.

Invariant: pure functions of their arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kvmon.serving.workload import Workload
from kvmon.serving.workloads import OpenLoop, Patience, SharedPrefixes, Traffic, generate

__all__ = ["STEP_S", "at_load", "delayed", "one_by_one"]

_LIMIT_STEP = 256
STEP_S = 0.009
"""Seconds of a step with a few dozen sequences and some 50,000 tokens of context, by the default step-time model."""


def at_load(
    seed: int,
    requests: int,
    lengths: str,
    *,
    pool_tokens: int,
    load: float,
    cv: float = 1.0,
    prefixes: SharedPrefixes | None = None,
    patience: Patience | None = None,
    class_id: int = 0,
    step_s: float = STEP_S,
) -> Workload:
    """Requests whose tokens fill on average the share `load` of a pool of `pool_tokens`.

    Little's law: tokens in memory = arrivals a second * tokens of a request * seconds it stays; a request of p + o
    tokens holds p + o/2 on average for o steps. Prefixes count for each. Limits are the next multiple of 256.
    """
    traffic = Traffic(
        requests,
        seed=seed,
        lengths=lengths,
        arrivals=OpenLoop(1.0, cv=cv),
        prefixes=prefixes,
        patience=patience,
        class_id=class_id,
    )
    workload = generate(traffic)
    prompt = workload.prompt_tokens.astype(np.float64)
    output = workload.output_tokens.astype(np.float64)
    held = float(np.mean((prompt + output / 2) * output * step_s))
    rate = load * pool_tokens / held
    return replace(
        workload,
        arrival_ns=(workload.arrival_ns / rate).astype(np.int64),
        token_limit=np.minimum(workload.token_limit, -(-workload.output_tokens // _LIMIT_STEP) * _LIMIT_STEP),
    )


def one_by_one(rows: Sequence[tuple[float, int, int, int]], *, class_id: int = 0, name: str = "by hand") -> Workload:
    """Requests given by hand: (arrival in s, prompt, output, limit)."""
    arrival, prompt, output, limit = zip(*rows, strict=True)
    return Workload(
        (np.array(arrival) * 1e9).astype(np.int64),
        np.array(prompt, np.int32),
        np.array(output, np.int32),
        np.array(limit, np.int32),
        np.full(len(rows), class_id, np.int32),
        name=name,
    )


def delayed(workload: Workload, seconds: float) -> Workload:
    """The same, `seconds` later."""
    shift = np.where(workload.independent, round(seconds * 1e9), 0)
    return replace(workload, arrival_ns=workload.arrival_ns + shift)
