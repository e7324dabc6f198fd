"""The reference engine: schedule, run, sample, commit, one step at a time, over a contiguous or a paged KV cache.

    engine = Engine(Decoder(config, weights), PagedConfig(4096))
    (request,) = engine.add([1, 2, 3], Sampling(max_tokens=16))
    while engine.has_work:
        for output in engine.step():
            ...

Purpose: the scheduler of `kvmon.serving` decides, this computes. It does what a plan says, copies what the allocator's
decisions move, and hands every journal to its observers, as an engine of somebody else would be watched.

Invariant: what a request generates depends on its prompt, its sampling and the model alone: not on the layout, the
batch, preemptions, swaps, moves or prefix hits (up to the order of additions). One thread uses an engine.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from kvmon.allocators import AllocatorConfig, PagedConfig
from kvmon.allocators.journal import FAIL, FINISH, iterate
from kvmon.allocators.refusal import FinishReason, Reason
from kvmon.engine.attention import attention_over
from kvmon.engine.batch import Batch, build_batch
from kvmon.engine.clock import Clock, WallClock
from kvmon.engine.kvstore import KVStore
from kvmon.engine.model import Decoder
from kvmon.engine.moves import Moves
from kvmon.engine.requests import Output, PageNames, Request
from kvmon.engine.sampling import Sampling, choose, generator_of
from kvmon.errors import ConfigError, SystemRefused
from kvmon.serving import Plan, Scheduler, SchedulerConfig
from kvmon.serving import state as at
from kvmon.serving.faults import Faults

if TYPE_CHECKING:
    from kvmon.engine.graphs import DecodeGraphs

__all__ = ["Engine", "Observer"]

Observer = Callable[[npt.NDArray[np.int64]], None]
"""Gets the journal of what just happened; it may look at the scheduler, which does not change meanwhile."""

_FINISH = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.ABORT: "abort",
    FinishReason.ERROR: "error",
    FinishReason.REFUSED: "error",
}


class Engine:
    """One model over one pool; see the module.

    `poison` writes NaN over everything that nobody may read; `graphs`: decode steps on a GPU are CUDA graphs. Raises
    ConfigError where model, pool and scheduler do not go together, SystemRefused where the device has no room for the
    pool.
    """

    def __init__(
        self,
        model: Decoder,
        allocator: AllocatorConfig,
        scheduler: SchedulerConfig | None = None,
        *,
        faults: Faults | None = None,
        max_model_len: int | None = None,
        eos: Sequence[int] | None = None,
        seed: int = 0,
        clock: Clock | None = None,
        poison: bool = False,
        graphs: bool = True,
    ) -> None:
        config = scheduler or SchedulerConfig()
        _check(allocator, config, max_model_len)
        self.model = model
        named = allocator.prefix_cache if isinstance(allocator, PagedConfig) else allocator.retained_prefixes > 0
        self.hash_tokens = allocator.unit_tokens if named else 0
        self.store = KVStore(model.config, allocator, host_tokens=config.host_tokens, device=str(model.device))
        self.scheduler = Scheduler(allocator, config, hash_tokens=self.hash_tokens, journal=True, faults=faults)
        self.clock: Clock = clock or WallClock()
        self.capacity_tokens = allocator.capacity_units * allocator.unit_tokens
        longest = min(model.config.max_positions, self.capacity_tokens)
        self.max_model_len = longest if max_model_len is None else max_model_len
        self.vocabulary = model.config.vocabulary
        self.observers: list[Observer] = []
        self.closers: list[Callable[[], None]] = []
        self.out_of_memory: list[Callable[[BaseException], None]] = []
        """Told when something beside the pool finds no memory; the engine ends with that."""
        self._eos = frozenset(model.config.eos if eos is None else eos)
        self._seed = seed
        self._names = PageNames(max(self.hash_tokens, 1), secrets.token_bytes(32))
        self._attention = attention_over(self.store)
        self._graphs = self._decode_graphs() if graphs and self.store.data.is_cuda else None
        self._moves = Moves(self.store, self.scheduler, poison=poison)
        self._requests: dict[int, Request] = {}
        self._outputs: list[Output] = []
        self._unstepped = False  # somebody came or went since the last step

    @property
    def has_work(self) -> bool:
        """Whether a step has anything to do: somebody runs or waits, an output was not fetched yet, or nobody is left
        and no step has said so."""
        return self.scheduler.has_work or bool(self._outputs) or self._unstepped

    @property
    def running(self) -> int:
        """Requests that hold memory."""
        return int(self.scheduler.state.tally[at.RUNNING])

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return int(self.scheduler.state.tally[at.QUEUED])

    @property
    def read_tokens(self) -> int:
        """Tokens whose keys and values attention has fetched on a CPU so far, each layer counted apart."""
        return self._attention.read_tokens

    def add(
        self,
        prompt: Sequence[int] | npt.NDArray[np.integer],
        sampling: Sampling,
        *,
        class_id: int = 0,
        intended_output: int = 0,
        shared_prefix_tokens: int | None = None,
        arrival_ns: int | None = None,
    ) -> list[int]:
        """Queue a prompt; returns the numbers of its `sampling.n` samples.

        `intended_output`: end after so many tokens whatever they are, as a workload has it. `shared_prefix_tokens`: how
        much of the prompt others may begin with; None: all of it. `arrival_ns`: when it came, where that was before
        now. Raises ConfigError for a prompt that the model or the pool can never take; then nothing is queued.
        """
        tokens = np.asarray(prompt, np.int64).reshape(-1)
        self._check_prompt(tokens, sampling)
        arrived = self.clock.now() if arrival_ns is None else arrival_ns
        numbers: list[int] = []
        for sample in range(sampling.n):
            generator = generator_of(sampling, self._seed, self._next_number, sample)
            request = Request(tokens, sampling, generator)
            if not sampling.ignore_eos and not intended_output:
                request.ends_with = self._eos
            request.ends_with |= frozenset(sampling.stop_tokens)
            named = len(tokens) if shared_prefix_tokens is None else min(shared_prefix_tokens, len(tokens))
            names = self._names.prompt(request, named) if self.hash_tokens else []
            more = (len(request.tokens) // self.hash_tokens - len(names)) if self._names_output(named, tokens) else 0
            number = self.scheduler.add(
                len(tokens),
                sampling.max_tokens,
                intended_output=intended_output,
                class_id=class_id,
                identities=names,
                arrival_ns=arrived,
                fork_of=numbers[0] if numbers else 0,
                more_identities=more,
            )
            request.names_output = more > 0
            self._requests[number] = request
            words = self.scheduler.drain()
            refusal = self._refusal(words)
            self._unstepped = True
            self._observe(words)
            if refusal is not None:
                del self._requests[number]
                raise ConfigError(refusal)
            numbers.append(number)
        return numbers

    @property
    def token_bytes(self) -> int:
        """Bytes of keys and values of a token in the pool."""
        return self.store.token_bytes

    @property
    def window_token_bytes(self) -> int:
        """Bytes of a token in the window group's own pool; 0 without one."""
        return self.store.window_token_bytes

    def step(self) -> list[Output]:
        """One step; what it brought. When the last one hung up it is an empty one, so that whoever watches sees it."""
        if self.scheduler.has_work or self._unstepped:
            self._step()
        outputs, self._outputs = self._outputs, []
        return outputs

    def abort(self, request: int) -> bool:
        """End a request and free its memory now; False when it has ended already."""
        if request not in self._requests:
            return False
        self.scheduler.tell_time(self.clock.now())
        if not self.scheduler.abort(request):
            return False
        words = self.scheduler.drain()
        self._ended(words)
        self._moves.poison_free()
        self._unstepped = True
        self._observe(words)
        return True

    def close(self) -> None:
        """Let go of what was attached; whoever still runs is forgotten."""
        while self.closers:
            self.closers.pop()()

    def reset_prefix_cache(self) -> None:
        """Forget every cached content; running requests keep their pages."""
        self.scheduler.reset_prefix_cache()
        self._observe(self.scheduler.drain())

    def identities(self, request: int) -> npt.NDArray[np.uint64]:
        """The names of a request's full steps, as far as they are known."""
        facts = self.scheduler.state.facts[request]
        first = int(facts[at.HASH_FIRST])
        count = int(facts[at.COVERED]) // self.hash_tokens if self.hash_tokens else 0
        return self.scheduler.state.hashes[first : first + count]

    def _step(self) -> None:
        scheduler = self.scheduler
        start = self.clock.now()
        scheduler.tell_time(start)
        plan = scheduler.schedule()
        planned = scheduler.drain()
        self._ended(planned)
        self._moves.apply(planned)
        self._moves.poison_free()
        stopped = self._compute(plan) if len(plan.requests) else None
        tally = scheduler.state.tally
        counts = tally[[at.PREFILL_TOKENS, at.DECODE_TOKENS, at.CONTEXT_TOKENS]].tolist()
        scheduler.commit(start, self.clock.end_of_step(start, *counts), stopped)
        committed = scheduler.drain()
        self._ended(committed)
        self._moves.poison_free()
        self._unstepped = False
        self._observe(planned)
        self._observe(committed)

    @torch.inference_mode()
    def _compute(self, plan: Plan) -> npt.NDArray[np.bool_]:
        """Run the model over the plan's tokens and sample; which of the planned requests their new token ends."""
        batch = build_batch(self.scheduler, plan, str(self.model.device))
        requests = [self._requests[number] for number in plan.requests.tolist()]
        spans = zip(requests, batch.computed.tolist(), batch.lengths.tolist(), strict=True)
        tokens = np.concatenate([request.tokens[first:end] for request, first, end in spans])
        stopped = np.zeros(len(requests), np.bool_)
        sampling = np.flatnonzero(plan.samples)
        try:
            logits = self._logits(tokens, batch, batch.starts[1:][sampling] - 1)
        except torch.OutOfMemoryError as error:
            for told in self.out_of_memory:
                told(error)
            raise SystemRefused(
                "the GPU ran out of memory beside the KV pool: give the pool less, or a step fewer tokens"
            ) from error
        if len(sampling):
            who = [requests[index] for index in sampling]
            chosen = choose(logits, [one.sampling for one in who], [one.generator for one in who])
            for index, request, token in zip(sampling.tolist(), who, chosen, strict=True):
                stopped[index] = self._take(int(plan.requests[index]), request, token)
        return stopped

    def _logits(self, tokens: npt.NDArray[np.int64], batch: Batch, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        """Run the model over the step's tokens; the logits of `rows` of them."""
        if self._graphs is not None and self._graphs.fits(batch):
            logits = self._graphs.logits(tokens, batch)
            return logits if len(rows) == len(logits) else logits[batch.on_device(rows)]
        self._attention.begin(batch)
        hidden = self.model(batch.on_device(tokens), batch.on_device(batch.positions), self._attention)
        return self.model.logits(hidden[batch.on_device(rows)])

    def _decode_graphs(self) -> DecodeGraphs:
        from kvmon.engine.graphs import DecodeGraphs

        seats = int(self.scheduler.state.config[at.SEATS])
        return DecodeGraphs(self.model, self.store, seats, self.max_model_len)

    def _take(self, number: int, request: Request, token: int) -> bool:
        """Give a request its next token; whether that ends it."""
        request.append(token)
        step = self.hash_tokens
        if request.names_output and request.known % step == 0:
            self.scheduler.name_more(number, [self._names.following(request, request.known // step - 1)])
        if token in request.ends_with:
            return True
        self._outputs.append(Output(number, (token,)))
        return False

    def _ended(self, words: npt.NDArray[np.int64]) -> None:
        """Say of every request that ended in a journal that it has, and why; forget it."""
        if not self.scheduler.state.tally[at.ENDED]:
            return
        why: dict[int, str] = {}
        for code, fields in iterate(words):
            if code == FAIL:
                why[fields[0]] = self._short_of(fields)
            elif code == FINISH:
                number, finish = fields[0], _FINISH[FinishReason(fields[1])]
                del self._requests[number]
                error = why.get(number, "the engine ended it") if finish == "error" else None
                self._say_ended(Output(number, finish=finish, error=error))

    def _say_ended(self, end: Output) -> None:
        """Join the end to the last token of the same step."""
        for index, output in enumerate(self._outputs):
            if output.request == end.request and output.finish is None:
                self._outputs[index] = Output(end.request, output.tokens, end.finish, end.error)
                return
        self._outputs.append(end)

    def _short_of(self, fail: list[int]) -> str:
        number, need, _, free, evictable, largest, reason, _ = fail
        unit = self.scheduler.allocator.unit_tokens
        name = Reason(reason).name.lower()
        capacity = self.scheduler.allocator.capacity_units
        if reason == Reason.NEVER_FITS:
            known = self._requests[number].known if number in self._requests else 0
            need = max(need, -(-known // unit))
            said = f"it needs {need:,} units of {unit} tokens and the pool has {capacity:,}"
        else:
            said = (
                f"it needed {need:,} units of {unit} tokens, {free + evictable:,} were free, {largest:,} in one piece"
            )
        return f"out of KV memory ({name}): {said}"

    def _refusal(self, words: npt.NDArray[np.int64]) -> str | None:
        """Why the request that was just added was turned away; None when it was not."""
        if not self.scheduler.state.tally[at.ENDED]:
            return None
        fails = [fields for code, fields in iterate(words) if code == FAIL]
        return self._short_of(fails[-1]) if fails else "the prompt leaves no room for a token: shorten it"

    def _check_prompt(self, tokens: npt.NDArray[np.int64], sampling: Sampling) -> None:
        if not len(tokens):
            raise ConfigError("an empty prompt generates nothing: give at least one token")
        if tokens.min() < 0 or tokens.max() >= self.vocabulary:
            wrong = int(tokens.min()) if tokens.min() < 0 else int(tokens.max())
            raise ConfigError(
                f"token {wrong} is not in the vocabulary of {self.vocabulary}: give 0 to {self.vocabulary - 1}"
            )
        wanted = len(tokens) + sampling.max_tokens
        if wanted > self.max_model_len:
            raise ConfigError(
                f"the prompt of {len(tokens):,} tokens and {sampling.max_tokens:,} to generate are {wanted:,}, more "
                f"than the {self.max_model_len:,} that a sequence may have here: shorten the prompt or ask for fewer"
            )

    def _names_output(self, named: int, tokens: npt.NDArray[np.int64]) -> bool:
        """Whether generated pages are named too: in pages, and where nothing before them is unnamed."""
        return self.hash_tokens > 0 and self.store.paged and named == len(tokens)

    @property
    def _next_number(self) -> int:
        return int(self.scheduler.state.tally[at.ARRIVED]) + 1

    def _observe(self, words: npt.NDArray[np.int64]) -> None:
        if len(words):
            for observer in self.observers:
                observer(words)


def _check(allocator: AllocatorConfig, config: SchedulerConfig, max_model_len: int | None) -> None:
    if max_model_len is not None and max_model_len < 2:
        raise ConfigError(f"a sequence of at most {max_model_len} tokens has no answer: choose 2 or more")
    if config.lookahead_tokens:
        raise ConfigError("the engine has no draft model: leave lookahead_tokens at 0")
    if config.host_tokens and isinstance(allocator, PagedConfig) and allocator.window_tokens:
        raise ConfigError("pages of a window group are not swapped: choose preemption recompute")
