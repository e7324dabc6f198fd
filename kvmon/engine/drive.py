"""Driving an engine through a workload under a clock that is a formula: the traffic of the simulator, a real model.

    driver = build_driver(setup)
    while not driver.run(until_ns=...):
        ...

Purpose: what a server does with clients, done with a workload: requests are let in when they arrive, turns of a
conversation when the one before has ended, and clients hang up. An idle engine goes on to the next arrival.

Invariant: the engine makes the same allocations, failures and preemptions in the same order as `kvmon.simulate` does
of the same setup, whatever the model computes and however often `run` is interrupted; a test compares the journals. Of
what happens at the same time own arrivals come first, then turns, then hang-ups, as there.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from heapq import heappop, heappush

import numpy as np
import torch

from kvmon.allocators import PagedConfig
from kvmon.engine.clock import ModelClock, MovableClock
from kvmon.engine.config import tiny_config
from kvmon.engine.engine import Engine
from kvmon.engine.model import Decoder
from kvmon.engine.prompts import Prompts, Tokens
from kvmon.engine.runnable import why_not
from kvmon.engine.sampling import Sampling
from kvmon.engine.weights import random_weights
from kvmon.errors import ConfigError
from kvmon.serving import Workload
from kvmon.serving import state as at
from kvmon.serving.scenarios import Setup

__all__ = ["Driver", "build_driver"]

_NEVER = 2**63 - 1
_POLL_NS = 100_000_000  # between two steps of an engine in which nothing can move
_TURN, _HANG_UP = 0, 1  # what is due; turns come first


def build_driver(
    setup: Setup,
    *,
    seed: int = 0,
    poison: bool = False,
    threads: int | None = None,
    clock: MovableClock | None = None,
) -> Driver:
    """The tiny model over the pool of `setup`, at the begin of its traffic; with a window group its last layer slides.

    `threads`: how many torch computes with in this process from now on; None: as many as it did. Raises ConfigError
    where the engine cannot run it, SystemRefused where the machine has no room for the pool.
    """
    lacking = why_not(setup)
    if lacking is not None:
        raise ConfigError(f"{lacking}: let 'kvmon simulate' run it")
    if threads is not None:
        torch.set_num_threads(threads)
    config = tiny_config()
    if isinstance(setup.allocator, PagedConfig) and setup.allocator.window_tokens:
        config = replace(config, windows=(*(0,) * (config.layers - 1), setup.allocator.window_tokens))
    clock = clock or ModelClock(setup.step_time)
    engine = Engine(
        Decoder(config, random_weights(config, seed)),
        setup.allocator,
        setup.scheduler,
        faults=setup.faults,
        # How long a request may be is for the pool and the scheduler to say.
        max_model_len=config.max_positions,
        seed=seed,
        clock=clock,
        poison=poison,
    )
    return Driver(engine, clock, setup.workload, linger_ns=round(setup.linger_s * 1e9))


class Driver:
    """One engine under one workload; `clock` is the engine's.

    `linger_ns`: how long to go on after nothing can move any more, as an engine does. `over` is true when everybody has
    ended, or nothing will ever move.
    """

    def __init__(self, engine: Engine, clock: MovableClock, workload: Workload, *, linger_ns: int = 0) -> None:
        self.engine = engine
        self.clock = clock
        self.over = False
        self._work = workload
        self._prompts = Prompts(workload, engine.vocabulary)
        self._linger_ns = linger_ns
        self._order = np.flatnonzero(workload.independent).tolist()
        self._followers: dict[int, list[int]] = defaultdict(list)
        for index in np.flatnonzero(~workload.independent).tolist():
            self._followers[int(workload.follows[index]) - 1].append(index)
        self._next = 0  # of those who come on their own
        self._due: list[tuple[int, int, int]] = []  # a heap of time, what, and whom
        self._hang_ups = 0  # of those
        self._numbers: dict[int, int] = {}  # the engine's number of who has not ended, and back
        self._indexes: dict[int, int] = {}
        self._outputs: dict[int, list[int]] = {}  # of those whose output somebody may begin with
        self._stuck_since: int | None = None

    def run(self, until_ns: int = _NEVER) -> bool:
        """Drive until no step begins before `until_ns`, or it is over; whether it is."""
        scheduler, clock = self.engine.scheduler, self.clock
        while not self.over:
            coming = self._let_in()
            if not scheduler.has_work:
                # Who still wanted to hang up has ended.
                if self._next == len(self._order) and len(self._due) == self._hang_ups:
                    self.over = True
                elif coming >= until_ns:
                    break
                else:
                    clock.now_ns = coming
            elif clock.now_ns >= until_ns:
                break
            else:
                self._step(coming)
        return self.over

    def _let_in(self) -> int:
        """Whatever is due by now, in its order; when the next thing is."""
        while True:
            arrival = int(self._work.arrival_ns[self._order[self._next]]) if self._next < len(self._order) else _NEVER
            coming = min(arrival, self._due[0][0] if self._due else _NEVER)
            if coming > self.clock.now_ns:
                return coming
            if coming == arrival:
                self._next += 1
                self._add(self._order[self._next - 1], arrival)
                continue
            _, what, index = heappop(self._due)
            if what == _TURN:
                self._add(index, coming)
            else:
                self._hang_ups -= 1
                self._abort(index)

    def _add(self, index: int, arrival_ns: int) -> None:
        work, prompts, tally = self._work, self._prompts, self.engine.scheduler.state.tally
        before = int(tally[at.ARRIVED])
        try:
            (number,) = self.engine.add(
                prompts.prompt(index),
                Sampling(int(work.token_limit[index]), ignore_eos=True),
                class_id=int(work.class_id[index]),
                intended_output=int(work.output_tokens[index]),
                shared_prefix_tokens=prompts.named_tokens(index),
                arrival_ns=arrival_ns,
            )
        except ConfigError:
            if int(tally[at.ARRIVED]) == before:
                raise  # nobody arrived: this workload is not for this model
            self._call_followers(index)
        else:
            self._numbers[index], self._indexes[number] = number, index
            if prompts.names_output(index):
                self._outputs[index] = []
        if len(work.abort_ns) and work.abort_ns[index]:
            self._hang_ups += 1
            heappush(self._due, (arrival_ns + int(work.abort_ns[index]), _HANG_UP, index))

    def _abort(self, index: int) -> None:
        number = self._numbers.get(index)
        if number is not None and self.engine.abort(number):
            self._end(index)

    def _step(self, coming: int) -> None:
        """One step, what it ends, and where time goes when it moved nothing; `coming`: the next arrival or hang-up."""
        engine, clock = self.engine, self.clock
        began = clock.now_ns
        for output in engine.step():
            index = self._indexes.get(output.request)
            if index is None:
                continue  # it hung up before
            if index in self._outputs:
                self._outputs[index] += output.tokens
            if output.finish is not None:
                self._end(index)
        tally = engine.scheduler.state.tally
        moved = tally[at.PREFILL_TOKENS] or tally[at.DECODE_TOKENS] or tally[at.CHANGED]
        if moved or not engine.scheduler.has_work:
            self._stuck_since = None
            return
        transfer = engine.scheduler.next_transfer_ns if tally[at.PARKED] else None
        config = engine.scheduler.state.config
        overtaken = coming != _NEVER and (config[at.LEVELS] or config[at.QUOTAS])
        if self._hang_ups or transfer is not None or overtaken:
            clock.now_ns = max(clock.now_ns, min(coming, _NEVER if transfer is None else transfer))
            return
        if self._stuck_since is None:
            self._stuck_since = began
        self.over = clock.now_ns - self._stuck_since >= self._linger_ns
        if not self.over:
            clock.now_ns = max(clock.now_ns, min(coming, clock.now_ns + _POLL_NS))

    def _end(self, index: int) -> None:
        del self._indexes[self._numbers.pop(index)]
        if index in self._outputs:
            output: Tokens = np.array(self._outputs.pop(index), np.int64)
            self._prompts.generated(index, self._prompts.prompt(index), output)
        self._call_followers(index)

    def _call_followers(self, index: int) -> None:
        """Whoever follows a request that has ended is due after its pause."""
        for follower in self._followers.pop(index, ()):
            heappush(self._due, (self.clock.now_ns + int(self._work.arrival_ns[follower]), _TURN, follower))
