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

from kvmon.adapters.counted import NET
from kvmon.adapters.settings import Settings
from kvmon.adapters.shapes import other_shape
from kvmon.adapters.transformers.audit import EngineAudit
from kvmon.adapters.transformers.blocks import BlockHooks
from kvmon.adapters.transformers.counts import Counts
from kvmon.adapters.transformers.declaration import DECLARATION
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

    `why` says what is missing, in a line; empty where nothing is. `ended` is called with the recorder and its processor
    when the recording is over; with `until_loop_ends` it is when the generation loop ends.
    """

    def __init__(
        self,
        processor: Any,
        settings: Settings,
        rank: int,
        version: str,
        *,
        reduced: str,
        until_loop_ends: bool,
        ended: Callable[[Recorder, Any], None],
    ) -> None:
        self.probe: StreamProbe | None = None
        self.why = reduced
        self.rank = rank
        self._processor: Any = processor
        self._settings, self._version, self._ended = settings, version, ended
        self._name = settings.engine or DECLARATION.name
        self._until_loop_ends = until_loop_ends
        self._hooks = Hooks(self._broken)
        self._damaged = False
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
        processor = self._processor
        if missing := missing_for_counts(processor):
            self._refuse(f"not recorded, it {other_shape(missing)}")
            return
        try:
            layout = layout_of(processor.cache)
        except ValueError as error:
            self._refuse(f"not recorded, its cache has {error}")
            return
        if not self.why and (missing := missing_for_units(processor)):
            self.why = f"it {other_shape(missing)}"
            say(f"steps and counts only, {self.why}")
        probe = StreamProbe(
            self._settings.directory,
            self._name,
            self.rank,
            config=config_of(processor, layout, self._version, self._settings.class_by, reduced=self.why),
            budget=self._settings.budget,
            group_readable=self._settings.group_readable,
            clock=CLOCK,
        )
        self.probe = probe
        if not probe.writing:
            self._tell_refused(probe)
        shards = int(getattr(getattr(processor, "distributed_helper", None), "tp_size", 1))
        if self.why:
            pool = probe.attach_pool(layout.pool_info(shards, NET), fresh=False)
            counts = self._steps = Counts(processor, layout, probe, pool, CLOCK)
            probe.audit_from(counts.memory, STEPS_A_SLICE)
            self._hooks.hook(processor, "update_batch", after=counts.updated)
        else:
            self._watch(layout, probe, layout.pool_info(shards))
        self._hooks.hook(processor, "update_batch", after=self._tell_damage)
        self._hooks.hook(processor, "fail_all_requests", after=self._loop_ended)
        probe.tick()

    def _watch(self, layout: Layout, probe: StreamProbe, info: PoolInfo) -> None:
        """Everything: blocks, requests, steps, the host, the audit."""
        processor, hooks = self._processor, self._hooks
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
        host.attach_pool(fresh=not manager._request_id_to_cpu_blocks)
        steps.claim_more = host.claim
        blocks.install(hooks)
        host.install(hooks)
        SchedulerHooks(scheduler, requests, host, steps).install(hooks)
        hooks.hook(processor, "update_batch", before=steps.updating, after=steps.updated)
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
            processor, self._processor = self._processor, None
            self._steps = self._requests = None
            self._over.set()
        self._ended(self, processor)

    def _refuse(self, message: str) -> None:
        self.why = message
        say(message)
        self._end()

    def _tell_refused(self, probe: StreamProbe) -> None:
        reasons = probe.loss_reasons
        if "second_writer" in reasons:
            say(f"another engine called {self._name} (rank {self.rank}) records there: give this one another name")
        else:
            why = ", ".join(reasons) or "no file"
            say(f"nothing can be recorded in {self._settings.directory} ({why}): give one with room to write")

    def _broken(self, label: str) -> None:
        """A hook failed: it is off, and the stream says from here on that it lacks something."""
        self._damaged = True
        message = f"the hook of {label} failed and is off: this recording lacks events"
        self.why = self.why or message
        say(message)
        self._tell_damage()

    def _tell_damage(self, *args: Any, **kwargs: Any) -> None:
        if self._damaged and self.probe is not None:
            self.probe.emitter.lose(1, Loss.HOOK)
