"""The probe of one stream: pools, requests, steps, and the audit that lets a late reader find the truth.

Everything an engine's adapter calls. It never raises into the engine once it is constructed, and constructing it
raises nothing either: a directory that cannot be used gives a probe that counts what it loses.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kvmon.events.kinds import FinishReason, Kind
from kvmon.events.totals import MAX_POOLS, StreamTotal
from kvmon.events.wire import ABSENT, LONG, MAX_UNIT, encode
from kvmon.probe.audit import Audit, AuditSource
from kvmon.probe.emitter import Emitter, Loss
from kvmon.probe.guard import guarded
from kvmon.probe.pool import PoolProbe
from kvmon.recording.writer import DEFAULT_BUDGET, StreamWriter

__all__ = ["PoolInfo", "StreamProbe"]

_LOW31 = (1 << 31) - 1
_ARRIVED = LONG << 27 | Kind.REQUEST_ARRIVED << 19 | 7
_HASHES = LONG << 27 | Kind.REQUEST_HASHES << 19
_ADMITTED = LONG << 27 | Kind.REQUEST_ADMITTED << 19 | 1
_CACHE_HIT = LONG << 27 | Kind.CACHE_HIT << 19 | 3
_FIRST_TOKEN = LONG << 27 | Kind.FIRST_TOKEN << 19 | 1
_PROGRESS = LONG << 27 | Kind.REQUEST_PROGRESS << 19 | 3
_PREEMPTED = LONG << 27 | Kind.PREEMPTED << 19 | 2
_FINISHED = LONG << 27 | Kind.REQUEST_FINISHED << 19 | 4
_STEPS, _STEP_NS, _PREFILL_TOKENS, _DECODE_TOKENS = (
    int(slot)
    for slot in (StreamTotal.STEPS, StreamTotal.STEP_NS, StreamTotal.PREFILL_TOKENS, StreamTotal.DECODE_TOKENS)
)  # plain numbers: indexing with an enumeration is slow
_LARGEST_CONFIG_TEXT, _LARGEST_POOL_TEXT = 6_000, 720  # what every segment repeats fits a third of the smallest one


@dataclass(frozen=True)
class PoolInfo:
    """What a pool is; see the vocabulary of the design for each word. `placement` "buddy" says that a block has the
    next power of two of units and lies at a multiple of it; empty, that nothing like it is known.
    """

    name: str
    capacity_units: int
    unit_bytes: int
    unit_tokens: int
    layout: str = "paged"
    contiguity: str = "none"
    tier: str = "gpu"
    first_engine_unit: int = 1
    placement: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def text(self, fresh: bool) -> str:
        """The pool as JSON; `fresh` says that every unit is free. Attributes that are no JSON or too many are left
        out.
        """
        known = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "attributes"}
        known = {**known, "name": str(self.name)[:64], "fresh": fresh}
        if not self.placement:
            del known["placement"]
        with contextlib.suppress(TypeError, ValueError):
            text = _json({**self.attributes, **known})
            if len(text) <= _LARGEST_POOL_TEXT:
                return text
        return _json(known)


class StreamProbe:
    """Records one rank of one engine into a directory.

    `config` describes engine, adapter and scheduler (the fields of `engine_config` in the design). Requests are named
    by small integers from 1 that the caller gives in order of arrival; times are nanoseconds of `clock`.
    """

    def __init__(
        self,
        directory: Path,
        engine: str,
        rank: int = 0,
        *,
        config: Mapping[str, Any] | None = None,
        budget: int = DEFAULT_BUDGET,
        group_readable: bool = False,
        clock: Callable[[], int] = time.monotonic_ns,
        wall: Callable[[], int] = time.time_ns,
    ) -> None:
        def make_writer(epoch: bytes) -> StreamWriter:
            return StreamWriter(
                Path(directory),
                engine,
                rank,
                epoch=epoch,
                budget=budget,
                group_readable=group_readable,
                note_refusal=Loss.SECOND_WRITER not in self.emitter.lost_why,
                clock=clock,
                wall=wall,
            )

        self._config = _config_text(engine, config or {})
        self._pools: list[tuple[PoolProbe, PoolInfo]] = []
        self._audit: Audit | None = None
        self.emitter = Emitter(make_writer, clock)
        self.emitter.open(self._restate)

    @property
    def lost(self) -> int:
        """Records that could not be written."""
        return self.emitter.lost

    @property
    def loss_reasons(self) -> list[str]:
        """Why, in words; empty when nothing was lost."""
        return [reason.name.lower() for reason in Loss if reason in self.emitter.lost_why and reason.name]

    @property
    def writing(self) -> bool:
        """Whether records reach a file at this moment."""
        return self.emitter.writing

    def adopt_thread(self) -> None:
        """The calling thread is the engine's from now on: for engines that are built in one thread and run in
        another.
        """
        self.emitter.adopt_thread()

    def attach_pool(self, info: PoolInfo, *, fresh: bool = True) -> PoolProbe:
        """Begin to record a pool; `fresh` when every unit is free. Pools are numbered from 1 in the order they come.

        A pool that cannot be recorded (more than 16, or too many units) gets a probe whose records are counted as lost.
        """
        try:
            number = len(self._pools) + 1 if 0 < info.capacity_units <= MAX_UNIT else MAX_POOLS + 1
            record = encode(Kind.POOL_ATTACHED, pool=number, restated=0, text=info.text(fresh))
        except Exception:  # a guest: no value may raise into the engine
            number = MAX_POOLS + 1
        pool = PoolProbe(self.emitter, number)
        if number > MAX_POOLS:
            self.emitter.complain(Loss.VALUE)
            return pool
        self._pools.append((pool, info))
        self.emitter.put(record)
        return pool

    @guarded
    def pool_changed(self, pool: PoolProbe, capacity_units: int) -> None:
        """The pool has another size from now on: units above it are gone, those below it keep their state.

        A new sweep of the audit begins, after which a reader knows the owners again.
        """
        place = next(index for index, (known, _) in enumerate(self._pools) if known is pool)
        info = replace(self._pools[place][1], capacity_units=capacity_units)
        if self.emitter.put(encode(Kind.POOL_CHANGED, pool=pool.number, capacity_units=capacity_units)):
            self._pools[place] = (pool, info)
            if self._audit is not None:
                self._audit.restart()

    def audit_from(self, source: AuditSource, every: int = 1) -> None:
        """Ship a slice of the engine's own truth with every step from now on, or with every `every`-th one."""
        self._audit = Audit(self.emitter, self._capacities, self._restate, source, every)

    # -- requests --

    @guarded
    def arrived(
        self,
        request: int,
        at_ns: int,
        prompt: int,
        *,
        class_id: int = 0,
        limit: int | None = None,
        intended: int | None = None,
    ) -> None:
        """A request came, with so many prompt tokens, a limit of tokens to generate and, where known, how many it
        will.
        """
        if self.emitter.put(
            (
                _ARRIVED,
                request,
                (at_ns & _LOW31) + 1,
                (at_ns >> 31) + 1,
                class_id + 1,
                prompt + 1,
                ABSENT if limit is None else limit + 1,
                ABSENT if intended is None else intended + 1,
            )
        ):
            totals = self.emitter.totals
            totals[StreamTotal.ARRIVED] += 1
            totals[StreamTotal.PROMPT_TOKENS] += prompt

    @guarded
    def hashes(self, request: int, hash_tokens: int, words: Sequence[int], first_page: int = 0) -> None:
        """Keyed hashes of full pages, two words each, as `PageHasher.words` gives them."""
        size = max((self.emitter.largest - 3) // 2 * 2, 2)
        for at in range(0, len(words), size):
            part = words[at : at + size]
            self.emitter.put((_HASHES | 3 + len(part), request, hash_tokens + 1, first_page + at // 2 + 1, *part))

    @guarded
    def admitted(self, request: int) -> None:
        """The request runs from the coming step on."""
        if self.emitter.put((_ADMITTED, request)):
            self.emitter.totals[StreamTotal.ADMITTED] += 1

    @guarded
    def cache_hit(self, request: int, hit_tokens: int, lookup_tokens: int) -> None:
        """The prefix cache was asked for `lookup_tokens` and had `hit_tokens`."""
        if self.emitter.put((_CACHE_HIT, request, hit_tokens + 1, lookup_tokens + 1)):
            self.emitter.totals[StreamTotal.LOOKUP_TOKENS] += lookup_tokens
            self.emitter.totals[StreamTotal.HIT_TOKENS] += hit_tokens

    @guarded
    def first_token(self, request: int) -> None:
        """The first generated token of the request left the engine."""
        self.emitter.put((_FIRST_TOKEN, request))

    @guarded
    def progress(self, request: int, computed: int, decoding: bool) -> None:
        """`computed` tokens are written; with `decoding` every later step adds one until something else is said.

        Belongs into the frame of the step that computed them: the step that closes the frame adds nothing to it, and
        neither does the first step after a `tick`.
        """
        self.emitter.put((_PROGRESS, request, computed + 1, decoding + 1))

    @guarded
    def preempted(self, request: int, lost_tokens: int) -> None:
        """The request lost its memory; `lost_tokens` must be computed again. Comes before the units are given back."""
        if self.emitter.put((_PREEMPTED, request, lost_tokens + 1)):
            self.emitter.totals[StreamTotal.PREEMPTED] += 1
            self.emitter.totals[StreamTotal.LOST_TOKENS] += lost_tokens

    @guarded
    def finished(self, request: int, reason: int, output: int, intended: int | None = None) -> None:
        """The request ended with `output` generated tokens. Comes before its units are given back."""
        slot = StreamTotal.FINISHED_FIRST + FinishReason(reason)
        if self.emitter.put((_FINISHED, request, reason + 1, output + 1, ABSENT if intended is None else intended + 1)):
            self.emitter.totals[slot] += 1
            self.emitter.totals[StreamTotal.OUTPUT_TOKENS] += output

    @guarded
    def engine_error(self, error: int, asked: int = 0, free: int = 0, reserved: int = 0) -> None:
        """The engine failed to allocate device memory: bytes asked for, free on the device, and reserved by the
        framework's allocator but unallocated; 0 where not known. `error` is the adapter's number for the kind of error.
        """
        if self.emitter.put(encode(Kind.ENGINE_ERROR, error=error, asked=asked, free=free, reserved=reserved)):
            self.emitter.totals[StreamTotal.ERRORS] += 1

    @guarded
    def device_sample(
        self,
        device: int,
        used: int,
        free: int,
        total: int,
        reserved: int = 0,
        allocated: int = 0,
        inactive: int = 0,
        *,
        largest_free: int | None = None,
        kv_pool: int | None = None,
        weights: int | None = None,
        retries: int | None = None,
        ooms: int | None = None,
        uuid: str = "",
    ) -> None:
        """Memory of a GPU in bytes: as its driver sees it, then as the framework's allocator of this process does.

        `reserved` of the device, `allocated` of that (`kv_pool` and `weights` are parts of it), `inactive` free in
        pieces between, `largest_free` the largest free block. `device` is this process's number of it, `uuid` its name
        in every process. `retries` and `ooms` count since the process began. Comes before the `engine_error` that it
        explains.
        """
        self.emitter.put(
            encode(
                Kind.DEVICE_SAMPLE,
                device=device,
                used=used,
                free=free,
                total=total,
                reserved=reserved,
                allocated=allocated,
                inactive=inactive,
                largest_free=largest_free,
                kv_pool=kv_pool,
                weights=weights,
                retries=retries,
                ooms=ooms,
                uuid=str(uuid)[:64],
            )
        )

    # -- steps --

    def step(
        self,
        start_ns: int,
        duration_ns: int,
        prefill_tokens: int,
        decode_tokens: int,
        context_tokens: int,
        running: int,
        waiting: int,
        head_need: int | None = None,
    ) -> None:
        """An engine step is over: ship a slice of the audit and close the frame."""
        emitter = self.emitter
        if emitter.select(1):
            if self._audit is not None:
                self._audit.slice()
            if emitter.close_frame(
                (start_ns, duration_ns, prefill_tokens, decode_tokens, context_tokens, running, waiting, head_need)
            ):
                totals = emitter.totals
                totals[_STEPS] += 1
                totals[_STEP_NS] += duration_ns
                totals[_PREFILL_TOKENS] += prefill_tokens
                totals[_DECODE_TOKENS] += decode_tokens
        if emitter.after_frame() and self._audit is not None:
            self._audit.restart()

    def tick(self) -> None:
        """Close the frame outside of a step, so that what was recorded since the last one can be read."""
        if self.emitter.select(1):
            self.emitter.close_frame(None)
        if self.emitter.after_frame() and self._audit is not None:
            self._audit.restart()

    def close(self) -> None:
        """End the stream in order."""
        self.emitter.close()

    def _restate(self) -> None:
        self.emitter.put(encode(Kind.ENGINE_CONFIG, text=self._config))
        for pool, info in self._pools:
            self.emitter.put(encode(Kind.POOL_ATTACHED, pool=pool.number, restated=1, text=info.text(False)))

    def pools(self) -> Iterator[tuple[PoolProbe, PoolInfo]]:
        """The pools that are recorded."""
        return iter(self._pools)

    def _capacities(self) -> list[tuple[int, int]]:
        return [(pool.number, info.capacity_units) for pool, info in self._pools]


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _config_text(engine: str, config: Mapping[str, Any]) -> str:
    """The configuration as JSON; what is no JSON or too long is left out and named in `left_out`."""
    kept: dict[str, Any] = {"engine": str(engine)[:64]}
    left_out, size = [], 256
    for name in sorted(config):
        try:
            size += len(_json({str(name): config[name]}))
        except (TypeError, ValueError):
            size += _LARGEST_CONFIG_TEXT
        if size > _LARGEST_CONFIG_TEXT:
            left_out.append(str(name)[:32])
            break
        kept[str(name)] = config[name]
    return _json({**kept, "left_out": left_out} if left_out else kept)
