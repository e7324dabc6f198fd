"""Many what-ifs of many recordings, by several processes of this machine or by Ray.

    block=16,32,64 pool=80%..120%:10%       every block with every size: 15 what-ifs

Invariant: the answers are those of one process, in the order of the what-ifs, however many work on them and whichever
dies meanwhile: what a lost worker had in hand is done again by another one.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from itertools import product
from typing import NamedTuple

from kvmon.errors import ConfigError, SystemRefused
from kvmon.replay.changes import WhatIf, changed, parse_what_if
from kvmon.replay.demand import Demand
from kvmon.replay.recordings import Recording
from kvmon.replay.step_clock import StepClock
from kvmon.replay.whatif import Answer, Comparison, answer, begin_comparison

__all__ = ["EXECUTORS", "Subject", "Task", "parse_sweep", "run_task", "sweep"]

#: Who may do the work.
EXECUTORS = ("processes", "ray", "none")
MOST_WHAT_IFS = 10_000
_MOST_LOSSES = 3  # workers lost in a row without an answer between

Progress = Callable[[int, int], None]


class Subject(NamedTuple):
    """What a worker needs of a recording."""

    demand: Demand
    clock: StepClock


class Task(NamedTuple):
    """One what-if of one of the subjects."""

    subject: int
    what_if: WhatIf


def parse_sweep(text: str) -> list[WhatIf]:
    """Every combination of the values that `key=value,value key=from..to:step` lists, the last key fastest.

    Raises ConfigError for what is no list, an impossible range, or more than MOST_WHAT_IFS combinations.
    """
    keys, lists, count = [], [], 1
    for part in text.split():
        key, sign, values = part.partition("=")
        if not sign or not key or not values:
            raise ConfigError(f"sweep '{text}': '{part}' is no range: write key=value,value or key=from..to:step")
        found = [value for one in values.split(",") for value in _expanded(text, key, one)]
        keys.append(key)
        lists.append(found)
        count *= len(found)
        if count > MOST_WHAT_IFS:
            raise ConfigError(f"sweep '{text}': more than {MOST_WHAT_IFS:,} combinations: take larger steps")
    if not keys:
        raise ConfigError("a sweep needs a range: write key=value,value or key=from..to:step")
    texts = (",".join(f"{key}={value}" for key, value in zip(keys, row, strict=True)) for row in product(*lists))
    return [parse_what_if(one) for one in texts]


def _expanded(text: str, key: str, value: str) -> list[str]:
    """`80%..120%:10%` as its five values; one without dots is itself."""
    first, dots, rest = value.partition("..")
    if not dots:
        if not value:
            raise ConfigError(f"sweep '{text}': {key} has an empty value: leave the comma out")
        return [value]
    last, colon, step = rest.partition(":")
    percent = first.endswith("%")
    numbers = [part.removesuffix("%") for part in (first, last, step)]
    plain = all(part.lstrip("+-").replace(".", "", 1).isdecimal() for part in numbers)
    if not colon or not plain or any(part.endswith("%") != percent for part in (last, step)):
        raise ConfigError(f"sweep '{text}': '{value}' is no range: write from..to:step, such as 80%..120%:10%")
    begin, end, by = (float(part) for part in numbers)
    if by <= 0 or end < begin:
        raise ConfigError(f"sweep '{text}': '{value}' never arrives: write the smaller end first and a step above 0")
    count = int((end - begin) / by + 1e-9) + 1
    if count > MOST_WHAT_IFS:
        raise ConfigError(f"sweep '{text}': '{value}' has {count:,} values: take larger steps")
    plus = "+" if first.startswith("+") else ""
    values = (begin + place * by for place in range(count))
    return [f"{plus if one >= 0 else ''}{one:.10g}{'%' if percent else ''}" for one in values]


def sweep(
    recordings: Sequence[Recording],
    what_ifs: Sequence[WhatIf],
    *,
    executor: str = "processes",
    workers: int | None = None,
    ray_address: str | None = None,
    progress: Progress = lambda done, of: None,
) -> list[Comparison]:
    """A comparison of each recording with all what-ifs; `progress` is told how many are done of how many. Ray works on
    the cluster at `ray_address`, or on this machine.

    Raises ConfigError for an unknown executor or an impossible what-if (before anything runs), InputError where a
    recording cannot be replayed, SystemRefused where workers keep dying.
    """
    if executor not in EXECUTORS:
        raise ConfigError(f"'{executor}' is no executor: choose {', '.join(EXECUTORS)}")
    if workers is not None and workers < 1:
        raise ConfigError(f"{workers} workers do nothing: give 1 or more")
    for recording in recordings:
        engine = recording.demand.described()
        for what_if in what_ifs:
            changed(engine, what_if, recording.demand.hash_tokens)
    begun = [begin_comparison(recording) for recording in recordings]
    subjects = [
        Subject(recording.demand, comparison.clock) for recording, comparison in zip(recordings, begun, strict=True)
    ]
    tasks = [Task(subject, what_if) for subject in range(len(subjects)) for what_if in what_ifs]
    count = min(workers or os.cpu_count() or 1, max(len(tasks), 1))
    found: list[Answer | None] = [None] * len(tasks)
    for done, (place, one) in enumerate(_answers(subjects, tasks, executor, count, ray_address), start=1):
        found[place] = one
        progress(done, len(tasks))
    rows = iter([one for one in found if one is not None])
    return [Comparison(**{**vars(comparison), "answers": tuple(next(rows) for _ in what_ifs)}) for comparison in begun]


def _answers(
    subjects: Sequence[Subject], tasks: Sequence[Task], executor: str, workers: int, ray_address: str | None
) -> Iterator[tuple[int, Answer]]:
    if executor == "ray":
        from kvmon.replay.sweep_ray import answers_by_ray

        return answers_by_ray(subjects, tasks, workers, ray_address)
    if executor == "none" or workers == 1:
        return ((place, run_task(subjects, task)) for place, task in enumerate(tasks))
    return _by_processes(subjects, tasks, workers)


def run_task(subjects: Sequence[Subject], task: Task) -> Answer:
    """The answer to one task."""
    subject = subjects[task.subject]
    return answer(subject.demand, subject.clock, task.what_if)


_mine: Sequence[Subject] = ()  # of a worker process


def _begin_worker(subjects: Sequence[Subject]) -> None:
    global _mine
    _mine = subjects


def _work(task: Task) -> Answer:
    return run_task(_mine, task)


def _by_processes(subjects: Sequence[Subject], tasks: Sequence[Task], workers: int) -> Iterator[tuple[int, Answer]]:
    """Answers as they come. A worker that dies takes the pool with it: what is left goes to a new one."""
    left = dict(enumerate(tasks))
    lost = 0
    while left:
        with ProcessPoolExecutor(
            min(workers, len(left)), multiprocessing.get_context("spawn"), _begin_worker, (subjects,)
        ) as pool:
            places = {pool.submit(_work, task): place for place, task in left.items()}
            try:
                for future in as_completed(places):
                    one = future.result()
                    lost = 0
                    del left[places[future]]
                    yield places[future], one
            except BrokenProcessPool:
                lost += 1
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        if lost >= _MOST_LOSSES:
            raise SystemRefused(
                f"{lost} workers died one after the other, the last on '{next(iter(left.values())).what_if.text}': "
                "is there enough memory? Fewer --workers need less"
            )
