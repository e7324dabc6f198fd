"""vLLM's Scheduler and BlockPool without a model: any version, driven by made-up outputs.

A folder with another version's `vllm` package, without compiled parts, goes to the front of PYTHONPATH; the version is
asserted, because a wrong path silently tests the installed one.
"""

from __future__ import annotations

import inspect
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.engines.tiny_models import write_llama

__all__ = ["Driver", "make_scheduler"]


def _fitting(kind: Any, **wanted: Any) -> Any:
    """An instance of `kind` from those arguments that this version knows."""
    known = inspect.signature(kind).parameters
    return kind(**{name: value for name, value in wanted.items() if name in known})


def make_scheduler(
    models: Path,
    *,
    blocks: int = 64,
    block_size: int = 16,
    max_seqs: int = 8,
    budget: int = 128,
    max_model_len: int = 512,
    window: int | None = None,
    hybrid: bool = False,
    caching: bool = True,
    policy: str = "fcfs",
    asynchronous: bool = False,
    connector: str | None = None,
    kv_events: str | None = None,
    kv_metrics: bool = False,
    rank: int = 0,
    full_need: bool = False,
    watermark: float = 0.0,
) -> Any:
    """A real scheduler over a real pool of `blocks` blocks; of the model there is a configuration alone.

    With `window` its layers slide; `hybrid` gives it a group of full attention and two of sliding windows.
    """
    import torch
    from vllm.config import (
        CacheConfig,
        KVEventsConfig,
        KVTransferConfig,
        ModelConfig,
        ObservabilityConfig,
        ParallelConfig,
        SchedulerConfig,
        VllmConfig,
    )
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import (
        FullAttentionSpec,
        KVCacheConfig,
        KVCacheGroupSpec,
        KVCacheTensor,
        SlidingWindowSpec,
    )
    from vllm.v1.structured_output import StructuredOutputManager

    model = ModelConfig(
        model=str(write_llama(models)), skip_tokenizer_init=True, max_model_len=max_model_len, dtype="float32", seed=1
    )
    scheduling = _fitting(
        SchedulerConfig,
        max_num_seqs=max_seqs,
        max_num_batched_tokens=budget,
        max_model_len=max_model_len,
        enable_chunked_prefill=True,
        policy=policy,
        async_scheduling=asynchronous,
        is_encoder_decoder=False,
        scheduler_reserve_full_isl=full_need,
        watermark=watermark,
    )
    cache = _fitting(CacheConfig, block_size=block_size, cache_dtype="auto", enable_prefix_caching=caching)
    transfer = events = None
    if connector is not None:
        transfer = KVTransferConfig(
            kv_connector=connector, kv_role="kv_both", kv_connector_module_path="tests.engines.vllm_connector"
        )
    if kv_events is not None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            endpoint = f"tcp://127.0.0.1:{free.getsockname()[1] - rank}"  # vLLM adds the rank
        events = KVEventsConfig(enable_kv_cache_events=True, publisher=kv_events, endpoint=endpoint)
    config = _fitting(
        VllmConfig,
        model_config=model,
        cache_config=cache,
        scheduler_config=scheduling,
        parallel_config=ParallelConfig(),
        kv_transfer_config=transfer,
        kv_events_config=events,
        observability_config=_fitting(ObservabilityConfig, kv_cache_metrics=kv_metrics),
    )
    config.parallel_config.data_parallel_index = rank
    page = {"block_size": block_size, "num_kv_heads": 1, "head_size": 8, "dtype": torch.float32}
    sliding = {**page, "sliding_window": window or 40}
    specs = [FullAttentionSpec(**page)]
    if hybrid:
        specs += [SlidingWindowSpec(**sliding), SlidingWindowSpec(**sliding)]
    elif window is not None:
        specs = [SlidingWindowSpec(**sliding)]
    layers = [f"layer.{number}" for number in range(len(specs))]
    size = specs[0].page_size_bytes * blocks
    shape = inspect.signature(KVCacheTensor).parameters
    if "layers" in shape:
        one_page = specs[0].page_size_bytes
        tensors = [
            KVCacheTensor(size=size, layers=[layer], layer_stride=size, block_stride=one_page) for layer in layers
        ]
    else:
        tensors = [KVCacheTensor(size=size, shared_by=layers)]
    layout = KVCacheConfig(
        num_blocks=blocks,
        kv_cache_tensors=tensors,
        kv_cache_groups=[KVCacheGroupSpec([name], spec) for name, spec in zip(layers, specs, strict=True)],
    )
    cache.num_gpu_blocks = blocks
    known = inspect.signature(Scheduler).parameters
    wanted = {
        "vllm_config": config,
        "kv_cache_config": layout,
        "structured_output_manager": StructuredOutputManager(config),
        "block_size": block_size,
        "hash_block_size": block_size,
        "log_stats": True,
    }
    kind = AsyncScheduler if asynchronous else Scheduler
    return kind(**{name: value for name, value in wanted.items() if name in known})


class Driver:
    """Random traffic for one scheduler: arrivals with shared prefixes, aborts, resets, a made-up model's tokens."""

    def __init__(self, scheduler: Any, seed: int = 0, *, in_flight: int = 1) -> None:
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash

        init_none_hash(sha256)
        self.scheduler, self.random = scheduler, random.Random(seed)
        self.nanoseconds = 0  # spent in the scheduler
        self._hasher = get_request_block_hasher(scheduler.block_size, sha256)
        self._made = 0
        self._in_flight = in_flight
        self._outputs: list[Any] = []
        self.queries = self.hits = 0
        self._requests: list[Any] = []
        self.tokens: dict[str, list[int]] = {}

    def add(
        self, prompt: int, tokens: int, *, family: int = 0, name: str = "", salt: str | None = None, priority: int = 0
    ) -> Any:
        """A request whose prompt is the beginning of one of a few endless texts."""
        from vllm import SamplingParams
        from vllm.v1.request import Request

        self._made += 1
        wanted = {
            "request_id": name or f"request-{self._made}",
            "prompt_token_ids": [(family * 97 + at * 7) % 500 + 3 for at in range(prompt)],
            "sampling_params": SamplingParams(max_tokens=tokens, ignore_eos=True),
            "pooling_params": None,
            "eos_token_id": None,
            "block_hasher": self._hasher,
            "cache_salt": salt,
            "priority": priority,
            "arrival_time": float(self._made),
        }
        request = _fitting(Request, **wanted)
        self.scheduler.add_request(request)
        self._requests.append(request)
        return request

    @property
    def preempted(self) -> int:
        """Preemptions so far, as vLLM counts them in its requests."""
        return sum(int(request.num_preemptions) for request in self._requests)

    def run(self, steps: int, check: Callable[[], None] | None = None) -> None:
        """So many steps with requests that need more than there is; `check` is called after each."""
        draw = self.random
        for _ in range(steps):
            if draw.random() < 0.5 and len(self.scheduler.requests) < 16:
                self.add(draw.randint(1, 150), draw.randint(1, 60), family=draw.randint(0, 2))
            self.step()
            if check is not None:
                check()

    def step(self) -> None:
        """Schedule; once enough steps are in flight, take in the oldest one's output."""
        begin = time.perf_counter_ns()
        self._outputs.append(self.scheduler.schedule())
        self.nanoseconds += time.perf_counter_ns() - begin
        while len(self._outputs) >= self._in_flight:
            self.take_in()

    def take_in(self) -> None:
        """The oldest step that is in flight has run."""
        output = self._outputs.pop(0)
        sampled = []
        for rid, count in output.num_scheduled_tokens.items():
            request = self.scheduler.requests.get(rid)
            done = request is not None and self._writes_all(request, output, rid, count)
            sampled.append([hash((rid, len(self.tokens.get(rid, ())))) % 500 + 3] if done else [])
            if done:
                self.tokens.setdefault(rid, []).extend(sampled[-1])
        answer = self._model_output(list(output.num_scheduled_tokens), sampled)
        begin = time.perf_counter_ns()
        result = self.scheduler.update_from_output(output, answer)
        self.nanoseconds += time.perf_counter_ns() - begin
        for outputs in result.values():
            stats = outputs.scheduler_stats
            if stats is not None and stats.prefix_cache_stats is not None:
                seen = stats.prefix_cache_stats
                self.queries += seen.queries + getattr(seen, "preempted_queries", 0)
                self.hits += seen.hits + getattr(seen, "preempted_hits", 0)

    def in_flight(self) -> dict[str, int]:
        """Tokens of each request in steps that have not run yet."""
        tokens: dict[str, int] = {}
        for output in self._outputs:
            for rid, count in output.num_scheduled_tokens.items():
                tokens[rid] = tokens.get(rid, 0) + count
        return tokens

    def drain(self) -> None:
        """Take in everything that is in flight."""
        while self._outputs:
            self.take_in()

    @staticmethod
    def _writes_all(request: Any, output: Any, rid: str, count: int) -> bool:
        """Whether this step computed the last token that the request has."""
        for new in output.scheduled_new_reqs:
            if new.req_id == rid:
                return bool(new.num_computed_tokens + count >= request.num_tokens)
        cached = output.scheduled_cached_reqs
        at = list(cached.req_ids).index(rid)
        return bool(cached.num_computed_tokens[at] + count >= request.num_tokens)

    @staticmethod
    def _model_output(ids: list[str], sampled: list[list[int]]) -> Any:
        from vllm.v1.outputs import ModelRunnerOutput

        return _fitting(
            ModelRunnerOutput,
            req_ids=ids,
            req_id_to_index={rid: at for at, rid in enumerate(ids)},
            sampled_token_ids=sampled,
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )
