"""One processor that is recorded: from its first batch after the attachment to the end of its generation loop.

The loop has a thread of its own. Nothing is looked at or patched but `prepare_next_batch` before that thread comes by:
there, between two steps, the recording begins, and there it ends. So no hook ever sees half a step, and one thread
writes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from kvmon.adapters.settings import Settings
from kvmon.adapters.transformers.audit import EngineAudit
from kvmon.adapters.transformers.blocks import BlockHooks
from kvmon.adapters.transformers.counts import Counts
from kvmon.adapters.transformers.describe import config_of
from kvmon.adapters.transformers.hooks import Function, Hooks
from kvmon.adapters.transformers.host import HostHooks
from kvmon.adapters.transformers.layout import Layout, layout_of
from kvmon.adapters.transformers.live import Requests
from kvmon.adapters.transformers.refusals import Refusals
from kvmon.adapters.transformers.scheduler import SchedulerHooks
from kvmon.adapters.transformers.shape import missing_for_counts, missing_for_units
from kvmon.adapters.transformers.steps import Steps
from kvmon.events.kinds import FinishReason
from kvmon.probe import Loss, PoolInfo, StreamProbe

__all__ = ["Recorder", "say"]

_WAIT_S = 5.0  # for the loop to end the recording itself
_LOG = logging.getLogger("kvmon")
CLOCK: Callable[[], int] = time.monotonic_ns
STEPS_A_SLICE = 4  # of the audit: a slice costs as much as all else that is told of a step in which nothing happens


def say(message: str) -> None:
    """One line for whoever runs the engine."""
    _LOG.warning("kvmon: transformers: %s", message)


class Recorder:
    """Records one processor under a rank's number, or counts only where `reduced` says why.

    `ended` is called when the recording is over. With `until_loop_ends` it ends with the generation loop.
    """

    def __init__(
        self,
        processor: Any,
        settings: Settings,
        rank: int,
        version: str,
        *,
        reduced: str = "",
        until_loop_ends: bool = True,
        ended: Callable[[Recorder], None] = lambda recorder: None,
    ) -> None:
        self.processor: Any = processor
        self.probe: StreamProbe | None = None
        self.why = reduced
        self.rank = rank
        self._settings, self._version, self._ended = settings, version, ended
        self._until_loop_ends = until_loop_ends
        self._units = not reduced
        self._hooks = Hooks(self._broken)
        self._failed: list[str] = []
        self._leave = False
        self._over = threading.Event()
        self._lock = threading.RLock()
        self._left: list[str] = []
        self._steps: Steps | Counts | None = None
        self._requests: Requests | None = None
        self._hooks.wrap(processor, "prepare_next_batch", self._preparing)

    def stop(self) -> list[str]:
        """Restore every method and end the recording; where the loop runs in another thread, between two of its steps.

        Names of methods that somebody else patched on top of.
        """
        if self.probe is not None and not self._over.is_set() and self._elsewhere():
            self._leave = True
            self._over.wait(_WAIT_S)
        self._end()
        return self._left

    def _elsewhere(self) -> bool:
        writer = self.probe.emitter.thread if self.probe is not None else 0
        return writer != threading.get_ident() and any(one.ident == writer for one in threading.enumerate())

    # -- in the thread of the loop --

    def _preparing(self, original: Function) -> Function:
        begin = self._hooks.body("ContinuousBatchProcessor.prepare_next_batch", self._begin)
        end = self._hooks.body("ContinuousBatchProcessor.prepare_next_batch", self._prepared)
        gave_up = self._hooks.body("ContinuousBatchProcessor.prepare_next_batch", self._gave_up)

        def prepare_next_batch(*args: Any, **kwargs: Any) -> Any:
            begin()
            try:
                ready = original(*args, **kwargs)
            except BaseException:
                gave_up()
                raise
            end(ready)
            return ready

        return prepare_next_batch

    def _begin(self) -> None:
        if self._leave:
            self._end()
            return
        if self.probe is None:
            with self._lock:
                if not self._over.is_set():
                    self._start()
        elif self.probe.emitter.thread != threading.get_ident():
            self.probe.adopt_thread()
        if self._steps is not None:
            self._steps.begin()

    def _prepared(self, ready: object) -> None:
        if self._steps is not None:
            self._steps.prepared(ready)

    def _gave_up(self) -> None:
        if isinstance(self._steps, Steps):
            self._steps.gave_up()

    def _loop_ended(self, result: object, *args: Any, **kwargs: Any) -> None:
        """Whoever was left has failed; unless somebody else runs the processor, nothing follows."""
        if self._requests is not None:
            self._requests.finish_all(FinishReason.ERROR)
        if self._steps is not None:
            self._steps.begin()
            self._steps.prepared(False)
        if self._until_loop_ends:
            self._end()

    def _start(self) -> None:
        try:
            self._look_and_record()
        except Exception as error:  # a guest: an engine that cannot be watched runs on
            self._refuse(f"not recorded, it cannot be watched: {type(error).__name__}")

    def _look_and_record(self) -> None:
        """Look at the engine, begin the recording, put the hooks on."""
        processor = self.processor
        missing = missing_for_counts(processor)
        if missing:
            self._refuse(f"not recorded, it has another shape than kvmon knows: no {', '.join(missing[:4])}")
            return
        try:
            layout = layout_of(processor.cache)
        except ValueError as error:
            self._refuse(f"not recorded, its cache has {error}")
            return
        if self._units and (missing := missing_for_units(processor)):
            self._units = False
            self.why = f"it has another shape than kvmon knows: no {', '.join(missing[:4])}"
            say(f"steps and counts only, {self.why}")
        fidelity = "exact" if self._units else "counts"
        probe = StreamProbe(
            self._settings.directory,
            self._settings.engine or "transformers",
            self.rank,
            config=config_of(processor, layout, fidelity, self._version, self._settings.class_by),
            budget=self._settings.budget,
            group_readable=self._settings.group_readable,
            clock=CLOCK,
        )
        self.probe = probe
        if not probe.writing:
            self._tell_refused(probe)
        helper = getattr(processor, "distributed_helper", None)
        info = layout.pool_info(int(getattr(helper, "tp_size", 1)))
        if self._units:
            self._watch(layout, probe, info)
        else:
            counts = self._steps = Counts(processor, layout, probe, probe.attach_pool(info, fresh=False))
            self._hooks.around(processor, "update_batch", after=counts.updated)
        self._hooks.around(processor, "update_batch", after=self._tell_damage)
        self._hooks.around(processor, "fail_all_requests", after=self._loop_ended)
        probe.tick()

    def _watch(self, layout: Layout, probe: StreamProbe, info: PoolInfo) -> None:
        """Everything: blocks, requests, steps, the host, the audit."""
        processor, hooks = self.processor, self._hooks
        cache, scheduler, manager = processor.cache, processor.scheduler, processor.offloading_manager
        fresh = not any(group.allocator.block_table or group.allocator.ledger.cached_blocks for group in layout.groups)
        pool = probe.attach_pool(info, fresh=fresh)
        requests = self._requests = Requests(
            probe, self._settings.directory, layout.unit_tokens, self._settings.class_by, CLOCK
        )
        refusals = Refusals(cache, layout, pool)
        steps = self._steps = Steps(processor, layout, probe, pool, requests, refusals, CLOCK)
        host = HostHooks(manager, layout, probe, pool, requests, refusals, steps.computed)
        blocks = BlockHooks(
            cache, layout, probe, pool, requests, refusals, postpone=host.postpone, computed=steps.computed
        )
        host.give_back = blocks.give_back
        host.attach_pool(fresh=not manager._request_id_to_cpu_blocks)
        steps.claim_more = host.claim
        blocks.install(hooks)
        host.install(hooks)
        SchedulerHooks(scheduler, requests, host, steps).install(hooks)
        hooks.around(processor, "update_batch", before=steps.updating, after=steps.updated)
        audit = EngineAudit(cache, layout, requests, host, manager._cpu_pool, blocks.group_of_sector, steps.computed)
        probe.audit_from(audit, STEPS_A_SLICE)

    # -- how it ends --

    def _end(self) -> None:
        with self._lock:
            if self._over.is_set():
                return
            self._left = self._hooks.undo()
            if self.probe is not None:
                if not self._elsewhere():
                    self.probe.adopt_thread()  # the loop is over: its last frame can be closed from here
                self.probe.close()
            # nothing here keeps the engine's memory from being given back
            self.processor = self._steps = self._requests = None
            self._over.set()
        self._ended(self)

    def _refuse(self, message: str) -> None:
        self.why = message
        say(message)
        self._end()

    def _tell_refused(self, probe: StreamProbe) -> None:
        name, reasons = self._settings.engine or "transformers", ", ".join(probe.loss_reasons) or "no file"
        if "second_writer" in probe.loss_reasons:
            say(f"another engine called {name} (rank {self.rank}) records there: give this one another name")
        else:
            say(f"nothing can be recorded in {self._settings.directory} ({reasons}): give one with room to write")

    def _broken(self, label: str) -> None:
        """A hook failed: it is off, and the stream says from here on that it lacks something."""
        self._failed.append(label)
        say(f"the hook of {label} failed and is off: this recording lacks events")
        if self.probe is not None:
            self.probe.emitter.lose(1, Loss.HOOK)

    def _tell_damage(self, result: object, *args: Any, **kwargs: Any) -> None:
        if self._failed and self.probe is not None:
            self.probe.emitter.lose(1, Loss.HOOK)
