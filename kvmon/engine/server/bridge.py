"""Between the event loop, where requests come and go, and the one thread in which the engine lives.

The thread builds the engine, steps it while there is work, sleeps on a condition while there is none, and closes it.
What it has to say after a step goes to the loop in one call. Invariant: no other thread touches the engine; a request
that nobody waits for any more is aborted before the next step; an exception in the thread ends every request and the
server.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kvmon.engine import Engine, Output
from kvmon.engine.server.api_error import ApiError
from kvmon.engine.server.service import Limits, Planned, enter, limits_of

__all__ = ["Bridge", "Ticket"]


@dataclass(eq=False)
class Ticket:
    """A request in the engine, with an answer for each `n` of each prompt, numbered from 0; the loop's side of it."""

    plans: Sequence[Planned]
    param: str
    count: int
    accepted: asyncio.Future[None]
    inbox: asyncio.Queue[tuple[int, Output] | ApiError] = field(default_factory=asyncio.Queue)
    open: set[int] = field(default_factory=set)
    numbers: list[int] = field(default_factory=list)  # the engine's names of the answers; the thread's until accepted

    async def next(self) -> tuple[int, Output]:
        """The next output, and of which answer it is. Raises ApiError once the engine has failed."""
        news = await self.inbox.get()
        if isinstance(news, ApiError):
            raise news
        return news


@dataclass
class _News:
    """What the thread tells the loop after a step."""

    running: int = 0
    accepted: list[Ticket] = field(default_factory=list)
    refused: list[tuple[Ticket, ApiError]] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    gone: list[tuple[Ticket, int]] = field(default_factory=list)


class Bridge:
    """`build` makes the engine, in the thread that will use it; `failed` is called from there when it breaks."""

    def __init__(self, build: Callable[[], Engine], failed: Callable[[], None]) -> None:
        self._build, self._failed = build, failed
        self._thread = threading.Thread(target=self._live, name="kvmon-engine", daemon=True)
        self._wake = threading.Condition()
        self._inbox: list[Callable[[Engine, _News], None]] = []
        self._closing = False
        self._built = threading.Event()
        self._limits = Limits(0, 0, 0)
        self.failure: BaseException | None = None
        # The loop's own.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tickets: dict[int, tuple[Ticket, int]] = {}
        self._entering: set[Ticket] = set()
        self._answers = 0
        self._running = 0
        # The thread's own.
        self._alive: set[int] = set()

    def start(self) -> None:
        """Build the engine. Raises whatever building it raised."""
        self._thread.start()
        self._built.wait()
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """End the thread after the step in hand; what is still in the engine is aborted."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def limits(self) -> Limits:
        """What the engine takes, once it is built."""
        return self._limits

    @property
    def running(self) -> int:
        """Answers that hold memory, after the last step."""
        return self._running

    @property
    def waiting(self) -> int:
        """Answers that hold none yet."""
        return max(0, self._answers - self._running)

    async def submit(self, plans: Sequence[Planned], param: str) -> Ticket:
        """Hand a request to the engine; whoever has the ticket closes it.

        Raises ApiError for what can never fit; `param` names the parameter with the prompt.
        """
        self._loop = asyncio.get_running_loop()  # before the look at the failure, whose news comes through the loop
        if self.failure is not None:
            raise _broken()
        count = sum(plan.sampling.n for plan in plans)
        ticket = Ticket(plans, param, count, self._loop.create_future(), open=set(range(count)))
        self._entering.add(ticket)
        self._answers += count
        self._tell(lambda engine, news: self._enter(engine, news, ticket))
        try:
            await ticket.accepted
        except asyncio.CancelledError:
            self.abort(ticket)
            raise
        return ticket

    def abort(self, ticket: Ticket, answer: int | None = None) -> None:
        """End one answer of a request, or all of them; what ended already stays as it is."""
        answers = sorted(ticket.open) if answer is None else [answer]
        if answers:
            self._tell(lambda engine, news: self._leave(engine, news, ticket, answers))

    def _tell(self, what: Callable[[Engine, _News], None]) -> None:
        with self._wake:
            self._inbox.append(what)
            self._wake.notify()

    # In the engine's thread.

    def _live(self) -> None:
        try:
            engine = self._build()
            self._limits = limits_of(engine)
        except BaseException as error:
            self.failure = error
            return
        finally:
            self._built.set()
        try:
            with contextlib.closing(engine):
                while self._turn(engine):
                    pass
                for number in self._alive:
                    engine.abort(number)
        except BaseException as error:
            self.failure = error
            self._post(self._break)
            self._failed()

    def _turn(self, engine: Engine) -> bool:
        """Everything that was asked for, then a step; False when it is time to end."""
        with self._wake:
            while not (self._inbox or self._closing or engine.has_work):
                self._wake.wait()
            if self._closing:
                return False
            todo, self._inbox = self._inbox, []
        news = _News()
        for what in todo:
            what(engine, news)
        if engine.has_work:
            news.outputs = list(engine.step())
        self._alive.difference_update(output.request for output in news.outputs if output.finish is not None)
        news.running = engine.running
        self._post(lambda: self._deliver(news))
        return True

    def _enter(self, engine: Engine, news: _News, ticket: Ticket) -> None:
        try:
            ticket.numbers = enter(engine, ticket.plans, ticket.param)
        except ApiError as refusal:
            news.refused.append((ticket, refusal))
            return
        self._alive.update(ticket.numbers)
        news.accepted.append(ticket)

    def _leave(self, engine: Engine, news: _News, ticket: Ticket, answers: Sequence[int]) -> None:
        for answer in answers:
            if ticket.numbers and (number := ticket.numbers[answer]) in self._alive:
                engine.abort(number)
                self._alive.discard(number)
            news.gone.append((ticket, answer))

    def _post(self, what: Callable[[], None]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody listens
                self._loop.call_soon_threadsafe(what)

    # In the loop.

    def _deliver(self, news: _News) -> None:
        self._running = news.running
        for ticket in news.accepted:
            self._entering.discard(ticket)
            self._tickets.update((number, (ticket, answer)) for answer, number in enumerate(ticket.numbers))
            if not ticket.accepted.done():
                ticket.accepted.set_result(None)
        for ticket, refusal in news.refused:
            self._entering.discard(ticket)
            for answer in range(ticket.count):
                self._end(ticket, answer)
            if not ticket.accepted.done():
                ticket.accepted.set_exception(refusal)
        for output in news.outputs:
            if output.request in self._tickets:
                ticket, answer = self._tickets[output.request]
                ticket.inbox.put_nowait((answer, output))
                if output.finish is not None:
                    self._end(ticket, answer)
        for ticket, answer in news.gone:
            self._end(ticket, answer)

    def _end(self, ticket: Ticket, answer: int) -> None:
        if answer in ticket.open:
            ticket.open.discard(answer)
            self._answers -= 1
            if ticket.numbers:
                self._tickets.pop(ticket.numbers[answer], None)

    def _break(self) -> None:
        for ticket in self._entering:
            if not ticket.accepted.done():
                ticket.accepted.set_exception(_broken())
        for ticket in {ticket for ticket, _ in self._tickets.values()}:
            ticket.inbox.put_nowait(_broken())
        self._running = self._answers = 0


def _broken() -> ApiError:
    return ApiError("the engine failed: see the server's log", status=500, code="engine_failed")
