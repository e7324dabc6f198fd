"""What is recorded of an engine, folded, is its allocator's state and what its model read: the lessons' scenarios."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kvmon.adapters.attach import attach
from kvmon.adapters.reference import ReferenceAudit
from kvmon.allocators import PagedConfig
from kvmon.engine import Sampling
from kvmon.engine.batch import Batch
from kvmon.engine.drive import Driver, build_driver
from kvmon.engine.engine import Engine
from kvmon.events.wire import STATUS
from kvmon.recording import StreamReader, find_streams
from kvmon.serving import state as at
from kvmon.serving.scenarios import find
from kvmon.serving.scenarios.lessons import LESSONS
from kvmon.state import StreamState
from kvmon.state.requests import computed_tokens
from tests.unit.engine.models import tiny

NAMES = [name for lesson in LESSONS for name in (lesson.name, lesson.twin().name)]
REQUESTS = 14


class Observed:
    """An engine under the first requests of a scenario, its recording, and the fold of it after each step."""

    def __init__(self, name: str, directory: Path) -> None:
        setup = find(name).setups(0)[0][""]
        work = setup.workload.first(min(REQUESTS, len(setup.workload)))
        self.driver: Driver = build_driver(replace(setup, workload=work), poison=True)
        self.engine: Engine = self.driver.engine
        clock = self.driver.clock
        self.recording = attach(self.engine, directory, time_base_ns=1, clock=lambda: 1 + clock.now_ns)
        self.fold = StreamState(verify=True)
        self.read: dict[int, list[int]] = {}  # units that the model was given for each sequence of the last step
        self._reader = StreamReader(find_streams(directory)[0])
        self._watch_the_model()
        self.compared = 0

    def _watch_the_model(self) -> None:
        begin, logits = self.engine._attention.begin, self.engine.model.logits

        def begun(batch: Batch) -> None:
            planned = self.engine.scheduler.state.plan[: len(batch.lengths), at.WHO].tolist()
            units = -(-batch.lengths // batch.unit_tokens)
            for place, request in enumerate(planned):
                row = batch.tables[0][place]
                if isinstance(self.engine.scheduler.allocator, PagedConfig):
                    self.read[request] = row[: units[place]].tolist()
                else:
                    self.read[request] = list(range(int(row[0]), int(row[0] + units[place])))
            begin(batch)

        def scored(hidden: torch.Tensor) -> torch.Tensor:
            found = logits(hidden)
            assert not torch.isnan(found).any(), "somebody read what is not there"
            return found

        self.engine._attention.begin = begun  # type: ignore[method-assign]
        self.engine.model.logits = scored  # type: ignore[method-assign]

    def step(self) -> bool:
        """One step of the engine, and everything compared; whether it is over."""
        self.read.clear()
        over = self.driver.run(self.driver.clock.now_ns + 1)
        while piece := self._reader.poll():
            self.fold.apply(np.frombuffer(piece.data, np.uint32))
        self._compare()
        return over

    def _compare(self) -> None:
        scheduler, fold = self.engine.scheduler, self.fold
        audit = ReferenceAudit(scheduler)
        pool = fold.pools[1]
        said = [word ^ STATUS for word in audit.status(1, 1, pool.capacity_units)]
        assert pool.status.tolist() == said, "every unit: references, content, pins"
        rows = {int(request): row for row, request in enumerate(fold.requests.id.tolist()) if request}
        for request in scheduler.running.tolist():
            tables = [list(units) for number, _, units in audit._tables(request) if number == 1]
            folded = [table.units.tolist() for table in fold.tables(rows[request], 1)]
            assert folded[: len(tables)] == tables
            computed = int(scheduler.state.live[request, at.COMPUTED])
            assert computed_tokens(fold.requests, rows[request], fold.steps) == computed
            if request in self.read:
                used = self.read[request]
                assert folded[0][: len(used)] == used, "what the model read"
                self.compared += 1


@pytest.mark.parametrize("name", NAMES)
def test_the_fold_is_the_allocator_and_what_the_model_read(name: str, tmp_path: Path) -> None:
    """After every step: each unit's state, each table, each request's tokens; no NaN in any logit."""
    observed = Observed(name, tmp_path)
    for _ in range(400):
        if observed.step():
            break
    observed.recording.close()
    assert observed.compared > 10
    assert not observed.fold.faults()


def test_when_the_last_one_hangs_up_the_recording_says_so(tmp_path: Path) -> None:
    """An engine that has nothing left takes one more step, an empty one: nobody runs, and all memory is back."""
    engine = Engine(tiny(), PagedConfig(40, 4, prefix_cache=False))
    recording = attach(engine, tmp_path)
    numbers = engine.add([1] * 30, Sampling(100, ignore_eos=True, n=3))
    for _ in range(4):
        engine.step()
    for number in numbers:
        engine.abort(number)
    while engine.has_work:
        engine.step()
    fold, reader = StreamState(verify=True), StreamReader(find_streams(tmp_path)[0])
    while piece := reader.poll():
        fold.apply(np.frombuffer(piece.data, np.uint32))
    assert fold.last_step is not None and (fold.last_step.running, fold.last_step.waiting) == (0, 0)
    assert fold.pools[1].units["free"] == 40 and not fold.requests.id.any()
    recording.close()
