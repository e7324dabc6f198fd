"""The scheduler as an engine uses it: add, schedule, commit, abort, one step at a time.

    scheduler = Scheduler(PagedConfig(4096), SchedulerConfig(), journal=True)
    request = scheduler.add(prompt_tokens=700, token_limit=256, arrival_ns=clock())
    while scheduler.has_work:
        plan = scheduler.schedule()
        ...                                   # compute plan.tokens[i] tokens of plan.requests[i]
        scheduler.commit(start_ns, duration_ns, stopped)
        observe(scheduler.drain())

Purpose: a thin typed class over the same kernels that the simulator runs to the end; no Python object a request.
Invariant: `schedule` and `commit` alternate. `check()` walks everything. It knows no clock, no model and no wire
format.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from kvmon.allocators.config import AllocatorConfig, PagedConfig
from kvmon.allocators.journal import ON, RESET, USED, Journal, new_journal
from kvmon.allocators.page_pool import drop_contents
from kvmon.errors import ConfigError
from kvmon.serving import state as at
from kvmon.serving.checks import check_serving
from kvmon.serving.commit import abort, commit, room_for_step
from kvmon.serving.config import SchedulerConfig
from kvmon.serving.endings import next_transfer
from kvmon.serving.faults import Faults
from kvmon.serving.lifecycle import arrive
from kvmon.serving.schedule import schedule
from kvmon.serving.workload import check_page_hashes

__all__ = ["Plan", "Scheduler"]

_MOST_TOKENS = 2**30
_Element = TypeVar("_Element", bound=np.generic)


class Plan(NamedTuple):
    """What to compute in the step in hand. `tables` and `blocks` are views, valid until the next call.

    requests  int32 (n)           in order of admission
    tokens    int32 (n)           to compute now, from `computed[i]` on; of a running decode the drafts to verify, too
    computed  int32 (n)           tokens whose keys and values stand already (prefix hits included)
    decodes   bool (n)            True: one more token of a running decode; False: part of a prompt
    samples   bool (n)            True: the step ends with a new token for this request
    seats     int32 (n)           row of `tables` (paged) and of `blocks` (contiguous)
    tables    int32 (seats, row)  pages of each seat in the order of its tokens, from 1; only the first pages count.
                                  With a window group the same number of rows follows for its pages
    blocks    int64 (seats, 2)    first unit and units of each seat's contiguous block
    """

    requests: npt.NDArray[np.int32]
    tokens: npt.NDArray[np.int32]
    computed: npt.NDArray[np.int32]
    decodes: npt.NDArray[np.bool_]
    samples: npt.NDArray[np.bool_]
    seats: npt.NDArray[np.int32]
    tables: npt.NDArray[np.int32]
    blocks: npt.NDArray[np.int64]


class Scheduler:
    """Continuous batching over one pool. `hash_tokens` is what one prefix identity names; 0: requests bring none."""

    def __init__(
        self,
        allocator: AllocatorConfig,
        scheduler: SchedulerConfig | None = None,
        *,
        hash_tokens: int = 0,
        journal: bool = False,
        faults: Faults | None = None,
    ) -> None:
        self.allocator = allocator
        self.config = scheduler or SchedulerConfig()
        self.faults = faults or Faults()
        self.faults.check_for(allocator)
        self.config.check_for(allocator)
        self.hash_tokens = hash_tokens
        self._levels = self.config.levels
        check_page_hashes(hash_tokens, allocator)
        self._requests = 0
        self._identities = 0
        self._open = False
        self._state = at.new_serving(
            allocator,
            self.config,
            new_journal(1 << 16 if journal else 0),
            faults=self.faults,
            requests=64,
            identities=256,
            hash_tokens=hash_tokens,
            row_units=64,
        )

    @property
    def state(self) -> at.Serving:
        """The arrays themselves, for observers and tests; whoever writes to them breaks the invariants."""
        return self._state

    @property
    def running(self) -> npt.NDArray[np.int32]:
        """Requests that hold memory, in order of admission (a view)."""
        return self._state.running[: self._state.tally[at.RUNNING]]

    @property
    def waiting(self) -> npt.NDArray[np.int32]:
        """Requests in the queue, front first (a copy)."""
        ring = self._state.waiting
        head, queued = self._state.tally[at.QUEUE_HEAD], self._state.tally[at.QUEUED]
        return np.array(ring[(head + np.arange(queued)) & (ring.size - 1)])

    @property
    def failures(self) -> npt.NDArray[np.int64]:
        """Failures so far, once a wait: at the start of a request (row 0) and in mid-stream (row 1), a column a
        `Reason` (a view)."""
        return self._state.tally[at.REASONS : at.REASONS + 32].reshape(2, 16)

    @property
    def has_work(self) -> bool:
        """Whether anybody runs or waits."""
        return bool(self._state.tally[at.RUNNING] + self._state.tally[at.QUEUED])

    @property
    def stuck(self) -> bool:
        """Whether the schedule just made moved nothing although there is work: without an abort, or the end of a
        transfer (`next_transfer_ns`), it never will (a deadlock)."""
        tally = self._state.tally
        return bool(self._open and self.has_work and tally[at.PLANNED] == 0 and tally[at.CHANGED] == 0)

    @property
    def next_transfer_ns(self) -> int | None:
        """When the first transfer under way is over and frees its pages; None when none is, or none ever will be."""
        first = int(next_transfer(self._state))
        return None if first == np.iinfo(np.int64).max else first

    def add(
        self,
        prompt_tokens: int,
        token_limit: int,
        *,
        intended_output: int = 0,
        class_id: int = 0,
        identities: Sequence[int] | npt.NDArray[np.uint64] = (),
        arrival_ns: int = 0,
        fork_of: int = 0,
        more_identities: int = 0,
    ) -> int:
        """Queue a request and return its number; one that could never fit is refused at once (see the journal).

        `intended_output` 0: the engine says at each commit who stopped. `fork_of`: an earlier request with the same
        prompt; in pages this one begins with that one's as soon as they are computed. `more_identities`: room for those
        that `name_more` will add. Raises ConfigError for what no request can be.
        """
        if self._open:
            raise ConfigError("a step is open: commit it before adding requests")
        for label, value, least in (
            ("prompt_tokens", prompt_tokens, 1),
            ("token_limit", token_limit, 1),
            ("intended_output", intended_output, 0),
            ("class_id", class_id, 0),
            ("more_identities", more_identities, 0),
        ):
            if not least <= value <= _MOST_TOKENS:
                raise ConfigError(f"{label} of {value} is not possible: give {least} or more")
        if len(identities) and not self.hash_tokens:
            raise ConfigError(
                "prefix identities need hash_tokens: say how many tokens one names when you build the scheduler"
            )
        if any(int(identity) == 0 for identity in identities):
            raise ConfigError("prefix identity 0 is reserved for 'no content': use numbers from 1")
        if fork_of and not (1 <= fork_of <= self._requests and self._same_prompt(fork_of, prompt_tokens)):
            raise ConfigError(f"request {fork_of} has no prompt of {prompt_tokens} tokens to fork: name one that has")
        self._grow(prompt_tokens, token_limit, len(identities) + more_identities)
        self._requests += 1
        request = self._requests
        state = self._state
        first = self._identities
        state.hashes[first : first + len(identities)] = np.asarray(identities, np.uint64)
        self._identities += len(identities) + more_identities
        covered = len(identities) * self.hash_tokens
        if self.hash_tokens and len(identities) <= -(-prompt_tokens // self.hash_tokens):
            covered = min(covered, prompt_tokens)
        level = self._levels.get(class_id, 0)
        state.facts[request, : at.PRIORITY + 1] = (
            arrival_ns,
            class_id,
            prompt_tokens,
            token_limit,
            intended_output,
            first,
            covered,
            level,
        )
        state.facts[request, at.FORK_OF] = fork_of
        state.facts[request, at.DRAWN_AS] = request
        self.tell_time(arrival_ns)
        state.tally[at.ENDED] = 0
        self._make_room(32)
        arrive(self._state, request)
        return request

    def tell_time(self, now_ns: int) -> None:
        """What time it is, where that is later than the last step: a transfer that is over by then ends with the next
        schedule."""
        tally = self._state.tally
        tally[at.NOW] = max(int(tally[at.NOW]), now_ns)

    def name_more(self, request: int, identities: Sequence[int]) -> None:
        """Name the next full steps of what `request` has, prompt and output, so that later requests can hit them.

        Only while what was named before is whole steps, and as far as `more_identities` made room. Raises ConfigError.
        """
        facts = self._state.facts
        covered = int(facts[request, at.COVERED])
        named, rest = divmod(covered, max(self.hash_tokens, 1))
        first = int(facts[request, at.HASH_FIRST]) + named
        end = self._identities if request == self._requests else int(facts[request + 1, at.HASH_FIRST])
        if rest or first + len(identities) > end:
            raise ConfigError(f"request {request} has no room for {len(identities)} more names behind token {covered}")
        self._state.hashes[first : first + len(identities)] = np.asarray(identities, np.uint64)
        facts[request, at.COVERED] = covered + len(identities) * self.hash_tokens

    def schedule(self) -> Plan:
        """Choose the tokens of the next step and place them. Raises ConfigError when the last step is still open."""
        if self._open:
            raise ConfigError("the last step is still open: commit it before scheduling the next")
        if self._state.journal.state[ON]:
            self._make_room(int(room_for_step(self._state)))
        self._state.tally[at.ENDED] = 0
        schedule(self._state)
        self._open = True
        state = self._state
        plan = state.plan[: state.tally[at.PLANNED]]
        requests = plan[:, at.WHO]
        computed = state.live[requests, at.COMPUTED]
        tokens = plan[:, at.TOKENS]
        return Plan(
            requests=requests.copy(),
            tokens=tokens.copy(),
            computed=computed,
            decodes=plan[:, at.DECODES] == 1,
            samples=computed + tokens >= state.live[requests, at.TOTAL],
            seats=state.live[requests, at.SEAT],
            tables=state.table,
            blocks=state.held[:, at.START : at.UNITS + 1],
        )

    def commit(
        self, start_ns: int, duration_ns: int, stopped: npt.NDArray[np.bool_] | Sequence[bool] | None = None
    ) -> npt.NDArray[np.int32]:
        """Close the step; returns the requests that ended with it.

        `stopped[i]` says that the new token of `plan.requests[i]` ended it; None: intended lengths and limits alone
        decide.
        """
        if not self._open:
            raise ConfigError("no step is open: schedule one before committing it")
        if duration_ns < 0:
            raise ConfigError(f"a step of {duration_ns} ns is none: give 0 or more")
        planned = int(self._state.tally[at.PLANNED])
        mask = self._state.nobody
        if stopped is not None and planned:
            mask = np.asarray(stopped).astype(np.uint8)
            if len(mask) != planned:
                raise ConfigError(f"{len(mask)} stop flags for {planned} planned requests: give one for each")
        requests = self._state.plan[:planned, at.WHO].copy()
        commit(self._state, start_ns, duration_ns, mask)
        self._open = False
        return np.array(requests[self._state.live[requests, at.PHASE] == at.DONE])

    def abort(self, request: int) -> bool:
        """End a request from outside, between two steps; False when it has ended already."""
        if self._open:
            raise ConfigError("a step is open: commit it before aborting requests")
        if not 1 <= request <= self._requests:
            raise ConfigError(f"request {request} is unknown: {self._requests} were added")
        tally = self._state.tally
        self._make_room(64 + int(4 * tally[at.HELD_PAGES] + tally[at.WINDOW_HELD] + tally[at.REGION_UNITS]))
        tally[at.ENDED] = 0
        return bool(abort(self._state, request))

    def reset_prefix_cache(self) -> None:
        """Forget every cached content; running requests keep their pages, which are not registered again."""
        self._make_room(1)
        drop_contents(self._state.pages)
        journal = self._state.journal
        if journal.state[ON]:
            journal.words[journal.state[USED]] = RESET
            journal.state[USED] += 1

    def drain(self) -> npt.NDArray[np.int64]:
        """The journal since the last drain (a copy); empty when it is off."""
        journal = self._state.journal
        words = np.array(journal.words[: journal.state[USED]])
        journal.state[USED] = 0
        return words

    def check(self) -> None:
        """Walk every invariant of the allocator and the scheduler; raises InvariantError."""
        check_serving(self._state)

    def clone(self, capacity_units: int | None = None, *, journal: bool | None = None) -> Scheduler:
        """An empty scheduler of the same policy over a pool of the same or another size."""
        allocator = self.allocator if capacity_units is None else self.allocator.resized(capacity_units)
        wanted = bool(self._state.journal.state[ON]) if journal is None else journal
        return Scheduler(allocator, self.config, hash_tokens=self.hash_tokens, journal=wanted, faults=self.faults)

    def _same_prompt(self, request: int, prompt_tokens: int) -> bool:
        return int(self._state.facts[request, at.PROMPT]) == prompt_tokens

    def _make_room(self, words: int) -> None:
        journal = self._state.journal
        if not journal.state[ON] or journal.state[USED] + words <= journal.words.size:
            return
        grown = np.empty(2 * (int(journal.state[USED]) + words), np.int64)
        grown[: journal.state[USED]] = journal.words[: journal.state[USED]]
        self._state = self._state._replace(journal=Journal(grown, journal.state))

    def _grow(self, prompt_tokens: int, token_limit: int, identities: int) -> None:
        """Room for one more request in every array that has one entry a request."""
        state = self._state
        if self._requests + 1 >= len(state.facts):
            state = state._replace(
                facts=_doubled(state.facts),
                live=_doubled(state.live),
            )
        while self._identities + identities > len(state.hashes):
            state = state._replace(hashes=_doubled(state.hashes))
        if int(state.tally[at.QUEUED]) + len(state.running) + 2 >= len(state.waiting):
            ring = np.zeros(2 * len(state.waiting), np.int32)
            ring[: state.tally[at.QUEUED]] = self.waiting
            state.tally[at.QUEUE_HEAD] = 0
            state = state._replace(waiting=ring)
        if isinstance(self.allocator, PagedConfig):
            pages = -(-(prompt_tokens + token_limit + 2 * self.config.lookahead_tokens) // self.allocator.unit_tokens)
            width = min(pages, self.allocator.capacity_units)
            if width > state.table.shape[1]:
                table = np.zeros((state.table.shape[0], max(width, 2 * state.table.shape[1])), np.int32)
                table[:, : state.table.shape[1]] = state.table
                wide = table.shape[1]
                state = state._replace(table=table, names=np.zeros(wide, np.uint64), some=np.zeros(wide, np.int32))
        self._state = state


def _doubled(array: npt.NDArray[_Element]) -> npt.NDArray[_Element]:
    grown = np.zeros((2 * array.shape[0], *array.shape[1:]), array.dtype)
    grown[: array.shape[0]] = array
    return grown
