"""What-ifs by Ray: for many captures, or sweeps that are too large for one machine.

Invariant: imported only when somebody asks for Ray. A cluster that is named is used and left as it was; without one,
Ray is started on this machine, tells nobody of it, and is ended again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from kvmon.errors import ConfigError, SystemRefused
from kvmon.replay.whatif import Answer

if TYPE_CHECKING:
    from kvmon.replay.sweep import Subject, Task

__all__ = ["answers_by_ray"]

_RETRIES = 3  # of a task whose worker died


def answers_by_ray(
    subjects: Sequence[Subject], tasks: Sequence[Task], workers: int, address: str | None = None
) -> Iterator[tuple[int, Answer]]:
    """Answers as they come, of the cluster at `address` or of so many `workers` here.

    Raises ConfigError without Ray, SystemRefused where its workers keep dying or the cluster is not there.
    """
    try:
        import ray
    except ImportError:
        raise ConfigError("Ray is not installed: pip install 'kvmon[scale]', or leave --executor out") from None
    return _run(ray, subjects, tasks, workers, address)


def _run(
    ray: Any, subjects: Sequence[Subject], tasks: Sequence[Task], workers: int, address: str | None
) -> Iterator[tuple[int, Answer]]:
    from kvmon.replay.sweep import run_task

    ours = not ray.is_initialized()
    if ours:
        _begin(ray, workers, address)
    try:
        shared = ray.put(list(subjects))
        remote = ray.remote(max_retries=_RETRIES)(run_task)
        places = {remote.remote(shared, task): place for place, task in enumerate(tasks)}
        waiting = list(places)
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1)
            for one in done:
                yield places[one], ray.get(one)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        raise SystemRefused(
            f"Ray's workers died {_RETRIES + 1} times on one what-if: is there enough memory? ({type(error).__name__})"
        ) from None
    finally:
        if ours:
            ray.shutdown()


def _begin(ray: Any, workers: int, address: str | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        if address is not None:
            ray.init(address=address, **quiet)
        else:
            ray.init(num_cpus=workers, include_dashboard=False, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise SystemRefused(f"Ray does not start: {first}; leave --executor out to do without it") from None
