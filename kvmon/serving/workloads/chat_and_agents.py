"""The traffic of the demo: independent chats and agents behind one shared prompt prefix.

Invariant: the same arguments give the same arrays on every machine with the same numpy; demo, tests and benchmarks
compare runs by its seed, so what it draws, and in which order, does not change.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvmon.errors import ConfigError
from kvmon.serving.traces.identities import HASH_TOKENS, prefix_identities
from kvmon.serving.workload import Workload

__all__ = ["CLASS_AGENT", "CLASS_CHAT", "chat_and_agents"]

CLASS_CHAT = 1
CLASS_AGENT = 2


def chat_and_agents(
    seed: int,
    requests: int,
    *,
    rate_per_s: float = 4.0,
    agent_share: float = 0.35,
    shared_prefix_tokens: int = 600,
) -> Workload:
    """Chats and agents behind one shared prompt prefix, arriving as a Poisson process.

    Agents bring 50 to 4,000 tokens (log-uniform) and generate 800 to 1,500; chats bring about 120 tokens (log-normal)
    and generate about 200 (gamma with a coefficient of variation of 0.87, the shape of ShareGPT's outputs). Both begin
    with the same `shared_prefix_tokens`. The limit of every request is 2,048 tokens. Classes: CLASS_CHAT, CLASS_AGENT.
    """
    if requests < 1:
        raise ConfigError(f"{requests} requests are no workload: choose at least 1")
    if not rate_per_s > 0.0 or not 0.0 <= agent_share <= 1.0 or shared_prefix_tokens < 0:
        raise ConfigError("a rate above 0, a share of agents from 0 to 1 and a prefix of 0 or more tokens are needed")
    random = np.random.default_rng(seed)
    agent = random.random(requests) < agent_share
    own = np.where(agent, _log_uniform(random, 50, 4000, requests), random.lognormal(np.log(120), 0.9, requests))
    shape = 1.0 / 0.87**2
    output = np.where(agent, random.uniform(800, 1500, requests), random.gamma(shape, 200 / shape, requests))
    identities = prefix_identities(1, shared_prefix_tokens)
    prompt = shared_prefix_tokens + np.clip(own, 8, 4000)
    return Workload(
        arrival_ns=np.cumsum(random.exponential(1e9 / rate_per_s, requests)).astype(np.int64),
        prompt_tokens=prompt.astype(np.int32),
        output_tokens=np.clip(output, 4, 2000).astype(np.int32),
        token_limit=np.full(requests, 2048, np.int32),
        class_id=np.where(agent, CLASS_AGENT, CLASS_CHAT).astype(np.int32),
        hash_offsets=np.arange(requests + 1, dtype=np.int64) * len(identities),
        hashes=np.tile(np.array(identities, np.uint64), requests),
        hash_tokens=HASH_TOKENS if identities else 0,
        name=f"chat-and-agents (seed {seed})",
    )


def _log_uniform(random: np.random.Generator, low: float, high: float, n: int) -> npt.NDArray[np.float64]:
    return np.exp(random.uniform(np.log(low), np.log(high), n))
