"""Hooks around one scheduler: who comes, who is let in, who goes."""

from __future__ import annotations

from typing import Any

from kvmon.adapters.transformers.hooks import Hooks
from kvmon.adapters.transformers.host import HostHooks
from kvmon.adapters.transformers.live import Requests
from kvmon.adapters.transformers.steps import Steps
from kvmon.events.kinds import FinishReason

__all__ = ["SchedulerHooks"]


class SchedulerHooks:
    """What an offload does to the queue is told by `host`; everything else is told here."""

    def __init__(self, scheduler: Any, requests: Requests, host: HostHooks, steps: Steps) -> None:
        self._scheduler, self._requests, self._host, self._steps = scheduler, requests, host, steps

    def install(self, hooks: Hooks) -> None:
        """Put them on, and meet whoever is there already."""
        scheduler = self._scheduler
        hooks.hook(scheduler, "add_waiting_request", after=self.waits)
        hooks.hook(scheduler, "finish_request", before=self.ending)
        hooks.hook(scheduler, "clear_cancelled_requests", after=self.cancelled)
        hooks.hook(scheduler, "reset", before=self.resetting)
        hooks.hook(scheduler, "schedule_batch", after=self._steps.scheduled)
        if callable(getattr(scheduler, "_try_to_meet_safety_margin", None)):
            hooks.hook(scheduler, "_try_to_meet_safety_margin", after=self._steps.margin)
        for state in scheduler.active_requests.values():
            self._requests.found(state, running=True)
        for state in scheduler.waiting_requests.values():
            self._requests.found(state, running=False)

    def waits(self, result: object, state: Any) -> None:
        """A request joined the queue."""
        if not self._host.offloading:
            self._requests.waits(state)
        else:
            self._host.again(state)

    def ending(self, request_id: str) -> None:
        """A request is about to be taken out; a victim of an offload comes back."""
        one = self._requests.find(request_id)
        if one is not None and not self._host.offloading:
            self._requests.finish_as(one, self._scheduler.active_requests.get(request_id, one.state))

    def cancelled(self, result: list[Any]) -> None:
        """Clients lost interest; those that held memory were told when it went."""
        for state in result:
            one = self._requests.find(state.request_id)
            if one is not None:
                self._requests.finish(one, FinishReason.ABORT)

    def resetting(self) -> None:
        """A new generation loop begins: nobody of the last one is there any more."""
        self._requests.finish_all(FinishReason.ABORT)
