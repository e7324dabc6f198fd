"""A workload: the demand, independent of any engine, as a struct of arrays.

    arrival_ns      int64 (n)     never runs backwards among the requests that follow nobody
    prompt_tokens   int32 (n)     1 or more
    output_tokens   int32 (n)     what each request will generate, 1 or more
    token_limit     int32 (n)     what it may generate at most, 1 or more
    class_id        int32 (n)     operator's class, 0 or more
    hash_offsets    int64 (n+1)   request i: hashes[hash_offsets[i] : hash_offsets[i + 1]]
    hashes          uint64 (m)    prefix identities, one each `hash_tokens` tokens; equal ones mean equal prefixes up
                                  to there (they are chained); never 0
    follows         int32 (n)     0: arrives at arrival_ns on its own; k: request number k, an earlier one, has to end
                                  first, and arrival_ns is the pause after that end; several may follow the same one
    abort_ns        int64 (n)     0: never; else the client hangs up so long after the request arrived
    drawn_as        int64 (n)     the number by which chances are drawn for a request (drafts, transfers, faults), where
                                  it is not its own: the one that it had in a recording

`follows` and `abort_ns` are empty where no request has one, never zeros throughout; `drawn_as` where all have their
own. An aborted request has ended too.

Identities normally name the prompt; the last one may then name less than a full step. When a request has more of them
than its prompt takes, they name what it generates too, and all of them are full (a later turn of a conversation can
then hit it).

Invariant: a workload that exists is valid; requests are numbered from 1 in the order of these arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kvmon.allocators.config import AllocatorConfig, PagedConfig
from kvmon.errors import ConfigError, TraceError
from kvmon.serving.paged_memory import name_pages

__all__ = ["Workload", "check_page_hashes", "page_hashes"]

_MOST_TOKENS = 2**30
_LONGEST_NS = 2**62  # all arrivals and pauses together: no sum of them leaves int64


def _no_offsets() -> npt.NDArray[np.int64]:
    return np.zeros(0, np.int64)


def _no_hashes() -> npt.NDArray[np.uint64]:
    return np.zeros(0, np.uint64)


def _follow_nobody() -> npt.NDArray[np.int32]:
    return np.zeros(0, np.int32)


@dataclass(frozen=True)
class Workload:
    """Requests in order of arrival; see the module for the arrays. Raises TraceError for what no request can be."""

    arrival_ns: npt.NDArray[np.int64]
    prompt_tokens: npt.NDArray[np.int32]
    output_tokens: npt.NDArray[np.int32]
    token_limit: npt.NDArray[np.int32]
    class_id: npt.NDArray[np.int32]
    hash_offsets: npt.NDArray[np.int64] = field(default_factory=_no_offsets)
    hashes: npt.NDArray[np.uint64] = field(default_factory=_no_hashes)
    hash_tokens: int = 0
    name: str = "workload"
    follows: npt.NDArray[np.int32] = field(default_factory=_follow_nobody)
    abort_ns: npt.NDArray[np.int64] = field(default_factory=_no_offsets)
    drawn_as: npt.NDArray[np.int64] = field(default_factory=_no_offsets)

    def __post_init__(self) -> None:
        n = len(self.arrival_ns)
        if n == 0:
            raise TraceError(f"{self.name} holds no request: nothing to simulate")
        for label in ("prompt_tokens", "output_tokens", "token_limit", "class_id"):
            if len(getattr(self, label)) != n:
                raise TraceError(f"{self.name}: {label} has {len(getattr(self, label))} entries for {n} requests")
        self._check_follows(n)
        self._check_times()
        for label, least in (("prompt_tokens", 1), ("output_tokens", 1), ("token_limit", 1), ("class_id", 0)):
            values = getattr(self, label)
            wrong = np.flatnonzero((values < least) | (values > _MOST_TOKENS))
            if wrong.size:
                raise TraceError(
                    f"{self.name}: {label} of request {wrong[0] + 1} is {values[wrong[0]]}: {least} or more"
                )
        self._check_identities(n)

    def _check_follows(self, n: int) -> None:
        for label in ("follows", "abort_ns", "drawn_as"):
            values = getattr(self, label)
            if len(values) not in (0, n):
                raise TraceError(f"{self.name}: {label} has {len(values)} entries for {n} requests")
            if len(values) and not values.any():
                object.__setattr__(self, label, values[:0])
        wrong = np.flatnonzero((self.follows < 0) | (self.follows > np.arange(len(self.follows))))
        if wrong.size:
            raise TraceError(
                f"{self.name}: request {wrong[0] + 1} follows request {self.follows[wrong[0]]}: only an earlier one, "
                "or 0 for none"
            )

    def _check_times(self) -> None:
        independent = np.flatnonzero(self.independent)
        backwards = np.flatnonzero(np.diff(self.arrival_ns[independent]) < 0)
        if backwards.size:
            raise TraceError(
                f"{self.name}: request {independent[backwards[0] + 1] + 1} arrives before the one above it: "
                "sort by arrival"
            )
        early = np.flatnonzero(self.arrival_ns < 0)
        if early.size:
            when = "after a negative pause" if len(self.follows) and self.follows[early[0]] else "before time 0"
            raise TraceError(f"{self.name}: request {early[0] + 1} arrives {when}: 0 or more is needed")
        pauses = float(np.sum(self.arrival_ns[~self.independent], dtype=np.float64))
        if float(self.arrival_ns[independent[-1]]) + pauses > _LONGEST_NS:
            raise TraceError(f"{self.name}: arrivals and pauses span more than 146 years: give them in nanoseconds")
        wrong = np.flatnonzero((self.abort_ns < 0) | (self.abort_ns > _LONGEST_NS))
        if wrong.size:
            raise TraceError(
                f"{self.name}: abort_ns of request {wrong[0] + 1} is {self.abort_ns[wrong[0]]}: 0 (never) or more, "
                "at most 146 years"
            )

    def _check_identities(self, n: int) -> None:
        if len(self.hash_offsets) == 0:
            object.__setattr__(self, "hash_offsets", np.zeros(n + 1, np.int64))
        offsets = self.hash_offsets
        if len(offsets) != n + 1 or offsets[0] != 0 or offsets[-1] != len(self.hashes) or np.any(np.diff(offsets) < 0):
            raise TraceError(f"{self.name}: hash_offsets do not divide the {len(self.hashes)} prefix identities")
        if len(self.hashes) and self.hash_tokens < 1:
            raise TraceError(f"{self.name}: prefix identities without hash_tokens: say how many tokens one names")
        if np.any(self.hashes == 0):
            raise TraceError(f"{self.name}: prefix identity 0 is reserved for 'no content'")

    def __len__(self) -> int:
        return len(self.arrival_ns)

    @property
    def independent(self) -> npt.NDArray[np.bool_]:
        """Which requests arrive on their own rather than after another one (bool, n)."""
        return self.follows == 0 if len(self.follows) else np.ones(len(self), np.bool_)

    def first(self, count: int) -> Workload:
        """The first `count` requests."""
        if count < 1:
            raise ConfigError(f"the first {count} requests are none: choose at least 1")
        n = min(count, len(self))
        return Workload(
            self.arrival_ns[:n],
            self.prompt_tokens[:n],
            self.output_tokens[:n],
            self.token_limit[:n],
            self.class_id[:n],
            self.hash_offsets[: n + 1],
            self.hashes[: self.hash_offsets[n]],
            self.hash_tokens,
            self.name,
            self.follows[:n],
            self.abort_ns[:n],
            self.drawn_as[:n],
        )

    def covered_tokens(self) -> npt.NDArray[np.int64]:
        """Tokens of each request that its identities name (int64, n)."""
        if self.hash_tokens == 0:
            return np.zeros(len(self), np.int64)
        count = np.diff(self.hash_offsets)
        prompt = self.prompt_tokens.astype(np.int64)
        named = count * self.hash_tokens
        beyond = count > -(-prompt // self.hash_tokens)
        return np.where(beyond, named, np.minimum(named, prompt))


def check_page_hashes(hash_tokens: int, allocator: AllocatorConfig) -> None:
    """Raise ConfigError when prefix identities of `hash_tokens` tokens (0: none) cannot name the pages of
    `allocator`."""
    if not isinstance(allocator, PagedConfig) or not allocator.prefix_cache or not hash_tokens:
        return
    unit = allocator.unit_tokens
    if hash_tokens % unit and unit % hash_tokens:
        raise ConfigError(
            f"pages of {unit} tokens do not match prefix identities of {hash_tokens} tokens: choose a block size that "
            f"divides {hash_tokens} or is a multiple of it, or switch the prefix cache off"
        )


def page_hashes(workload: Workload, request: int, unit_tokens: int) -> npt.NDArray[np.uint64]:
    """Names of the full prompt pages of `request` (from 1) that its identities cover, in order (uint64)."""
    index = request - 1
    first = int(workload.hash_offsets[index])
    count = int(workload.hash_offsets[index + 1]) - first
    step = workload.hash_tokens
    covered = min(count * step, int(workload.prompt_tokens[index]))
    names = np.zeros(covered // unit_tokens, np.uint64)
    name_pages(workload.hashes, request, first, covered, step, unit_tokens, 0, len(names), names)
    return names
