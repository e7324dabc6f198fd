"""One description of synthetic traffic, and the workload that it stands for.

Each concern draws from a random stream of its own, so that the same seed with other arrivals or other patience has the
same requests. Chats and tasks have the same numbers of turns and lengths whoever follows whom.

Invariant: a pure function of the description; the requests are numbered in the order in which they would arrive if
every token took 20 ms, so that a beginning of the workload is a beginning of the traffic.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kvmon.errors import ConfigError, TraceError
from kvmon.serving.traces.identities import Names, named
from kvmon.serving.workload import Workload
from kvmon.serving.workloads.arrivals import Arrivals, Beginnings, OpenLoop
from kvmon.serving.workloads.chains import Chains, draw_chains
from kvmon.serving.workloads.distributions import Distribution, parse_distribution
from kvmon.serving.workloads.kinds import KINDS, Kind
from kvmon.serving.workloads.lengths import Lengths, parse_lengths
from kvmon.serving.workloads.parameters import known, seconds, within
from kvmon.serving.workloads.patience import Patience
from kvmon.serving.workloads.prefixes import SharedPrefixes

__all__ = ["Traffic", "generate"]

_TOKEN_S = 0.020
_LONGEST_S = 4e9
_MOST_REQUESTS = 10_000_000
_MOST_TOKENS = 2**30


@dataclass(frozen=True)
class Traffic:
    """What to generate. None: as the kind has it (`KINDS`).

    `arrivals` says when requests, chats or tasks begin, `steps` how many turns they have (a distribution), `pause_s`
    the mean of the exponential pause before each further turn. `max_tokens` is the longest sequence, `limit` what a
    client lets be generated at most (None: what `max_tokens` leaves). Classes: `class_id`, or the number of the shared
    prefix with `class_by_prefix`, as for tenants.
    """

    requests: int
    seed: int = 0
    kind: str = "requests"
    arrivals: Arrivals = OpenLoop(4.0)  # noqa: RUF009 - frozen
    lengths: str | None = None
    steps: str | None = None
    pause_s: float | None = None
    prefixes: SharedPrefixes | None = None
    max_tokens: int | None = None
    limit: int | None = None
    class_id: int | None = None
    class_by_prefix: bool = False
    patience: Patience | None = None


def generate(traffic: Traffic) -> Workload:
    """The workload. Raises ConfigError for what no traffic can be."""
    kind, lengths, steps, prefixes = _resolved(traffic)
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence(traffic.seed).spawn(6)]
    chains = draw_chains(
        (streams[0], streams[1], streams[2]), traffic.requests, steps, lengths, prefixes, traffic.limit
    )
    n = len(chains.chain)
    begin = traffic.arrivals.begin(streams[3], int(chains.chain[-1]) + 1)
    pause_s = streams[4].exponential(kind.pause_s if traffic.pause_s is None else abs(traffic.pause_s), n)
    order, follows, arrival_ns = _scheduled(chains, begin, pause_s)
    prompt, output = chains.prompt_tokens[order], chains.output_tokens[order]
    prefix_id = chains.prefix_id[order]
    room = lengths.max_tokens - prompt
    class_id = kind.class_id if traffic.class_id is None else traffic.class_id
    try:
        workload = Workload(
            arrival_ns=arrival_ns[order],
            prompt_tokens=prompt.astype(np.int32),
            output_tokens=output.astype(np.int32),
            token_limit=(room if traffic.limit is None else np.minimum(room, traffic.limit)).astype(np.int32),
            class_id=(prefix_id if traffic.class_by_prefix else np.full(n, class_id)).astype(np.int32),
            name=f"{traffic.kind} (seed {traffic.seed})",
            follows=follows[order].astype(np.int32),
            abort_ns=np.zeros(0, np.int64) if traffic.patience is None else traffic.patience.draw(streams[5], n),
        )
        names = Names(
            prefix_id,
            np.where(prefix_id > 0, prefixes.tokens if prefixes else 0, 0),
            chains.chain[order] + 1 if kind.conversation else np.zeros(n, np.int64),
        )
        return named(workload, names)
    except TraceError as error:
        raise ConfigError(str(error)) from error


def _resolved(traffic: Traffic) -> tuple[Kind, Lengths, Distribution, SharedPrefixes | None]:
    """The description with the defaults of its kind, checked."""
    within(traffic.requests, "the number of requests", 1, _MOST_REQUESTS)
    within(traffic.seed, "the seed", 0, 2**63 - 1)
    known(traffic.kind, KINDS, "kind of traffic")
    kind = KINDS[traffic.kind]
    if not kind.conversation and (traffic.steps is not None or traffic.pause_s is not None):
        raise ConfigError("single requests have neither steps nor pauses: choose chats or agents")
    if traffic.class_id is not None:
        within(traffic.class_id, "the class", 0, _MOST_TOKENS)
        if traffic.class_by_prefix:
            raise ConfigError("a class is either a number or that of the prefix: give one of them")
    if traffic.pause_s is not None:
        seconds(traffic.pause_s, "the pause between steps")
    if traffic.limit is not None:
        within(traffic.limit, "the limit of generated tokens", 1, _MOST_TOKENS)
    lengths = parse_lengths(traffic.lengths or kind.lengths)
    most = max(lengths.max_tokens, kind.max_tokens) if traffic.max_tokens is None else traffic.max_tokens
    within(most, "the longest sequence in tokens", 2, _MOST_TOKENS)
    prefixes = traffic.prefixes or kind.prefixes
    if traffic.class_by_prefix and prefixes is None:
        raise ConfigError("classes by prefix need shared prefixes: say how many there are, and how long")
    header = prefixes.tokens if prefixes else 0
    if header + lengths.prompt.least >= most:
        raise ConfigError(
            f"prompts of {header + lengths.prompt.least} tokens and more leave no room in sequences of {most}: "
            "allow longer ones, or shorten prefix or prompts"
        )
    return kind, replace(lengths, max_tokens=most), parse_distribution(traffic.steps or kind.steps), prefixes


def _scheduled(
    chains: Chains, begin: Beginnings, pause_s: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The order in which the requests are numbered, and in the old order whom they follow and when they arrive (ns).

    A request comes after the one it follows because that takes at least one token's time.
    """
    first, chain = chains.is_first, chains.chain
    heads = np.flatnonzero(first)
    wait_s = np.where(first, 0.0, pause_s)
    spent_s = np.cumsum(wait_s + chains.output_tokens * _TOKEN_S)
    before_s = spent_s - chains.output_tokens * _TOKEN_S
    start_s = before_s - before_s[heads][chain]
    tails = np.append(heads[1:], len(chain)) - 1
    begins_s = _begins(begin, start_s[tails] + chains.output_tokens[tails] * _TOKEN_S)
    if float(begins_s.max()) + float(spent_s[-1]) > _LONGEST_S:
        raise ConfigError("the traffic would take more than 126 years: a higher rate, shorter pauses or fewer requests")
    expected_ns = np.rint((begins_s[chain] + start_s) * 1e9).astype(np.int64)
    order = np.argsort(expected_ns, kind="stable")
    number = np.empty(len(chain), np.int64)
    number[order] = np.arange(1, len(chain) + 1)
    follows = np.where(first, 0, np.roll(number, 1))
    follows[heads] = np.where(begin.after > 0, number[tails][begin.after - 1], 0)
    arrival_s = wait_s
    arrival_s[heads] = begin.time_s
    return order, follows, np.rint(arrival_s * 1e9).astype(np.int64)


def _begins(begin: Beginnings, lasts_s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """When each chain begins (s), if it lasts as long as `lasts_s` says."""
    begins_s: list[float] = []
    for time_s, after in zip(begin.time_s.tolist(), begin.after.tolist(), strict=True):
        begins_s.append(time_s + (begins_s[after - 1] + float(lasts_s[after - 1]) if after else 0.0))
    return np.array(begins_s)
