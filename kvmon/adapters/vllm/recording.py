"""One scheduler that is recorded: its hooks, its stream, and what happens when one of them fails.

    exact     every unit at every event
    reduced   how many units, not which (fidelity `counts`): another shape than kvmon knows, or a hook that failed
    off       a second failure: every method is restored, the stream ends, the engine goes on

Invariant: nothing here raises into the engine. What is missing is said once in the log, and in the recording.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import sys
import weakref
from threading import get_ident
from typing import Any

from kvmon import __version__
from kvmon.adapters.base import Attachment, Support
from kvmon.adapters.counted import Counted
from kvmon.adapters.settings import Settings
from kvmon.adapters.shapes import other_shape
from kvmon.adapters.vllm.blocks import BlockHooks
from kvmon.adapters.vllm.geometry import config_of, pool_info
from kvmon.adapters.vllm.held import Held
from kvmon.adapters.vllm.requests import Requests
from kvmon.adapters.vllm.shape import missing_in_pool, missing_in_scheduler
from kvmon.adapters.vllm.steps import Steps
from kvmon.adapters.vllm.truth import Truth
from kvmon.adapters.vllm.waits import Waits
from kvmon.errors import InputError
from kvmon.probe import Loss, Patches, PoolProbe, StreamProbe

__all__ = ["LOG", "Recording", "failure", "recording_of"]

LOG = logging.getLogger("vllm.kvmon")
_STEPS_A_SLICE = 4  # of the audit: a slice is much beside a step
_alive: weakref.WeakSet[Recording] = weakref.WeakSet()


def recording_of(scheduler: object) -> Recording | None:
    """The recording of this scheduler; None where it has none."""
    return next((one for one in _alive if one.scheduler is scheduler and one.grade != "off"), None)


class Recording(Attachment):
    """Records one scheduler from now on.

    Raises InputError where the scheduler lacks what no recording can do without.
    """

    def __init__(self, scheduler: Any, settings: Settings, support: Support, version: str) -> None:
        missing = missing_in_scheduler(scheduler)
        if missing:
            raise InputError(f"vLLM {version} {other_shape(missing)}: update kvmon")
        if support.grade == "exact" and (missing := missing_in_pool(scheduler)):
            support = Support("reduced", f"vLLM {version} {other_shape(missing)}")
        self.scheduler, self._settings, self._version = scheduler, settings, version
        self._grade, self._why = support.grade, support.why
        self.requests = Requests(settings.directory, scheduler, settings.class_by)
        self.requests.adopt()
        self._undo: list[Patches] = []
        self._begin(fresh=_is_fresh(scheduler) if support.grade == "exact" else False)
        _alive.add(self)
        self._announce()

    @property
    def grade(self) -> str:
        """`exact`, `reduced` or `off`."""
        return self._grade

    @property
    def why(self) -> str:
        """What is missing, in a line; empty where nothing is."""
        return self._why

    def detach(self) -> list[str]:
        """Restore every patched method and end the recording in order; nothing the second time.

        Names of methods that somebody else patched on top of: those stay, switched off.
        """
        if self._grade == "off":
            return []
        self._grade = "off"
        left = self._take_off()
        self.probe.close()
        return left

    # -- hooks of requests --

    def _enter(self, *args: Any, **kwargs: Any) -> None:
        """Between two steps the engine may call from another thread than before."""
        if not self.steps.inside:
            self._adopt()

    def _step_begins(self, *args: Any, **kwargs: Any) -> None:
        self._adopt()
        self.steps.before_schedule()

    def _adopt(self) -> None:
        if get_ident() != self.probe.emitter.thread:
            self.probe.adopt_thread()

    def _arrived(self, result: object, request: Any, *args: Any, **kwargs: Any) -> None:
        self.requests.arrive(request)
        self.waits.arrived(request)

    def _ending(self, request: Any, *args: Any, **kwargs: Any) -> None:
        self._enter()
        self.requests.end(request)
        self.steps.gone(request.request_id)

    def _preempting(self, request: Any, *args: Any, **kwargs: Any) -> None:
        self._enter()
        rid = request.request_id
        number = self.requests.numbers.get(rid)
        self.steps.gone(rid)
        self.waits.preempted(rid)
        if number is not None:
            self.probe.preempted(number, int(request.num_computed_tokens))
        self.requests.prefilling.pop(rid, None)

    def _after_end(self, result: object, request: Any, *args: Any, **kwargs: Any) -> None:
        self.held.after_end(request)

    def _shut_down(self, result: object, *args: Any, **kwargs: Any) -> None:
        self.detach()

    # -- life --

    def _begin(self, *, fresh: bool) -> None:
        scheduler, settings, exact = self.scheduler, self._settings, self._grade == "exact"
        config = {
            **config_of(scheduler),
            "adapter": "vllm",
            "adapter_version": __version__,
            "engine_version": self._version,
            "fidelity": "exact" if exact else "counts",
            "class_by": settings.class_by,
            **({"reduced": self._why} if self._why else {}),
        }
        self.probe = probe = StreamProbe(
            settings.directory,
            settings.engine or "vllm",
            self._rank(),
            config=config,
            budget=settings.budget,
            group_readable=settings.group_readable,
        )
        pool = probe.attach_pool(pool_info(scheduler, net=not exact), fresh=fresh)
        self.requests.record_with(probe)
        self.waits = waits = Waits(scheduler, pool, self.requests.numbers.get, self._broken, units=exact)
        self.steps = Steps(scheduler, probe, pool, self.requests, waits, owners=exact)
        self.held = Held(scheduler, pool)
        used = (
            None
            if exact
            else Counted(pool, self.waits.capacity, scheduler.kv_cache_manager.block_pool.get_num_free_blocks)
        )
        probe.audit_from(Truth(scheduler, self.requests, self.held, self.steps.written, used), _STEPS_A_SLICE)
        for request in scheduler.requests.values():
            self.waits.arrived(request)
        probe.tick()
        self._install(pool, used)

    def _install(self, pool: PoolProbe, used: Counted | None) -> None:
        scheduler, steps = self.scheduler, self.steps
        patches = Patches(self._broken)
        self._undo = [patches, self.waits.patches]
        if used is None:
            blocks = BlockHooks(scheduler, pool, self.held, steps.left, self._broken)
            self._undo.append(blocks.patches)
            blocks.install()
        else:
            patches.hook(scheduler, "update_from_output", after=used.follow)
        patches.hook(scheduler, "schedule", before=self._step_begins, after=steps.after_schedule)
        patches.hook(scheduler, "update_from_output", after=steps.after_update)
        patches.hook(scheduler, "add_request", before=self._enter, after=self._arrived)
        deferring = used is None and Held.may_happen(scheduler)
        after_end = self._after_end if deferring else None
        patches.hook(scheduler, "_free_request", before=self._ending, after=after_end)
        patches.hook(scheduler, "_preempt_request", before=self._preempting, after=after_end)
        if hasattr(scheduler, "shutdown"):
            patches.hook(scheduler, "shutdown", after=self._shut_down)
        connector = getattr(scheduler, "connector", None)
        if connector is not None and hasattr(connector, "update_state_after_alloc"):
            patches.hook(connector, "update_state_after_alloc", after=steps.told)
        if deferring:
            self.held.install(patches)

    def _take_off(self) -> list[str]:
        return [name for patches in self._undo for name in patches.undo()]

    def _broken(self, hook: str) -> None:
        """A hook's body failed: record less, or nothing, and say so."""
        if self._grade == "off":
            return
        with contextlib.suppress(Exception):  # a guest: nothing of this may reach the engine
            self.probe.emitter.complain(Loss.HOOK)
            if self._grade == "exact":
                self._reduce(failure(hook))
                return
        with contextlib.suppress(Exception):
            LOG.warning("kvmon has stopped recording, the engine goes on: %s", failure(hook))
        with contextlib.suppress(Exception):
            self.detach()

    def _reduce(self, why: str) -> None:
        self._take_off()
        self.probe.close()
        self._grade, self._why = "reduced", why
        self.requests.prefilling.clear()
        self._begin(fresh=False)
        LOG.warning("kvmon records counts alone from now on: %s", why)

    def _announce(self) -> None:
        where = self._settings.directory
        engine = f"{self._settings.engine or 'vllm'} (rank {self._rank()})"
        if not self.probe.writing:
            reasons = self.probe.loss_reasons
            if "second_writer" in reasons:
                LOG.warning("kvmon: another engine records as %s in %s: set KVMON_ENGINE for this one", engine, where)
            else:
                LOG.warning("kvmon: nothing can be recorded in %s (%s); it is tried again", where, ", ".join(reasons))
        elif self._grade == "reduced":
            LOG.warning("kvmon records counts alone of %s into %s: %s", engine, where, self._why)
        else:
            LOG.info("kvmon records %s into %s", engine, where)

    def _rank(self) -> int:
        """Dense models report data_parallel_rank 0 for every rank; the index tells them apart."""
        parallel = self.scheduler.parallel_config
        rank = getattr(parallel, "data_parallel_index", None)
        return int(parallel.data_parallel_rank if rank is None else rank)


def failure(hook: str) -> str:
    """What is known of a hook's failure, while it is being handled."""
    error = sys.exc_info()[1]
    return f"the hook of {hook} failed" + ("" if error is None else f" ({type(error).__name__}: {error})"[:200])


def _is_fresh(scheduler: Any) -> bool:
    """Whether every unit is free and holds nothing, so that a reader knows all from the start."""
    blocks = scheduler.kv_cache_manager.block_pool
    if scheduler.requests or blocks.get_num_free_blocks() != blocks.num_gpu_blocks - 1:
        return False
    return all(block._block_hash is None for block in blocks.blocks)


@atexit.register
def _end_all() -> None:
    for recording in list(_alive):
        with contextlib.suppress(Exception):
            recording.detach()
