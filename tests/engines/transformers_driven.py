"""Real processors of transformers' continuous batching over tiny random models, driven step by step.

The cache, the allocators, the scheduler and the offloading manager are transformers' own. A *scripted* processor
computes no model: its tokens are a function of those before, so that hundreds of steps take a second, and batches can
be in flight as they are on a GPU.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.requests import RequestState

__all__ = ["EOS", "Driven", "Traffic", "manager_of", "tiny"]

EOS = 2
_SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "attn_implementation": "paged|eager",
    "pad_token_id": 0,
    "eos_token_id": EOS,
}
_SLIDING = "sliding_attention"
_FULL = "full_attention"
LAYERS = {
    "llama": ("Llama", [_FULL] * 2),
    "gemma3": ("Gemma3", [_SLIDING, _SLIDING, _SLIDING, _FULL]),  # blocks of three slices, and of one
    "gemma3-even": ("Gemma3", [_SLIDING, _FULL, _SLIDING, _FULL]),  # blocks of one size
    "gemma3-slices": ("Gemma3", [_SLIDING] * 6 + [_FULL] * 4),  # three slices and two, of two layers each
    "gemma3-deep": ("Gemma3", [_SLIDING] * 9 + [_FULL]),  # a sector of one group is nine blocks of the other
    "gemma3-window": ("Gemma3", [_SLIDING] * 2),  # nothing but windows
}
WINDOW = 24
_models: dict[str, Any] = {}


def tiny(name: str) -> Any:
    """A model with random weights, always the same ones."""
    if name not in _models:
        family, layers = LAYERS[name]
        sizes = dict(_SIZES, num_hidden_layers=len(layers))
        torch.manual_seed(7)
        if family == "Llama":
            _models[name] = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval()
        else:
            config = transformers.Gemma3TextConfig(
                **sizes, sliding_window=WINDOW, layer_types=layers, query_pre_attn_scalar=16
            )
            _models[name] = transformers.Gemma3ForCausalLM(config).eval()
    return _models[name]


def manager_of(name: str, *, blocks: int = 24, page: int = 4, budget: int = 32, **options: Any) -> Any:
    """A manager over a tiny model; `options` are fields of its configuration."""
    generation = GenerationConfig(max_new_tokens=20, do_sample=False, eos_token_id=EOS, pad_token_id=0)
    generation.num_return_sequences = options.pop("returns", 1)
    settings: dict[str, Any] = {
        "page_size": page,
        "num_blocks": blocks,
        "max_batch_tokens": budget,
        "max_memory_percent": 0.9,
        "use_async_batching": False,
        "use_cuda_graph": False,
        "max_requests_per_batch": 16,
        "max_blocks_per_request": 0,
    }
    batching = ContinuousBatchingConfig(**{**settings, **options})
    return tiny(name).init_continuous_batching(generation_config=generation, continuous_batching_config=batching)


class ScriptedIO:
    """Stands in for the inputs and outputs of a batch: keeps the books that the real ones keep, and makes tokens up."""

    compute_stream = None

    def __init__(self) -> None:
        self._batches: deque[list[Any]] = deque()

    def prepare_batch_tensors(self, requests_in_batch: list[Any], **others: Any) -> None:
        """As the real ones: positions move on, and a request that will have a token waits for it."""
        for future in requests_in_batch:
            future.state.position_offset += future.query_length
            if future.has_new_token:
                future.state.tokens_to_process = [-1]
        self._batches.append(list(requests_in_batch))

    def prepare_batch_update(self) -> tuple[list[Any], list[int], None]:
        """The oldest batch and its tokens."""
        futures = self._batches.popleft()
        return futures, [_next(future.state) for future in futures if future.has_new_token], None

    def reset(self) -> None:
        """Nothing is in flight."""
        self._batches.clear()


def _next(state: Any) -> int:
    tokens = state.initial_tokens + state.generated_tokens
    mixed = (sum(tokens) * 31 + len(tokens) * 17 + tokens[-1] * 7) % 89
    return EOS if mixed == 5 else 3 + mixed


@contextmanager
def _unpinned() -> Iterator[None]:
    """Host memory cannot be pinned without a GPU."""
    real = torch.empty

    def empty(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("pin_memory", None)
        return real(*args, **kwargs)

    torch.empty = empty
    try:
        yield
    finally:
        torch.empty = real


class Driven:
    """One manager whose loop is turned by hand, in the calling thread. `scripted` computes no model; `flying` keeps a
    batch in flight, as asynchronous batching does."""

    def __init__(
        self, name: str, *, scripted: bool = True, flying: bool = False, host_sectors: int = 0, **options: Any
    ) -> None:
        self.manager = manager_of(name, **options)
        if host_sectors:
            probe = manager_of(name, **options)._create_batch_processor()
            space = (host_sectors + 0.5) * probe.cache.bytes_per_sector / (1 << 30)
            self.manager.continuous_batching_config.cpu_offload_space = space
        with _unpinned():
            self.processor = self.manager._create_batch_processor()
        self.manager.batch_processor = self.processor
        self.model, self.scripted, self.flying = self.manager.model, scripted, flying
        self.outputs: dict[str, Any] = {}
        self.died: BaseException | None = None
        self._bootstrapping = flying
        if scripted:
            self.processor.inputs_and_outputs = ScriptedIO()
            self.processor.use_async_batching = flying

    def add(self, name: str, tokens: list[int], new: int) -> None:
        """A request, as a client hands it over."""
        state = RequestState(
            request_id=name,
            initial_tokens=list(tokens),
            num_children=self.manager.num_return_sequences - 1,
            max_new_tokens=new,
            eos_token_id=EOS,
        )
        self.manager.input_queue.put(state)

    def cancel(self, name: str) -> None:
        """A client loses interest."""
        self.manager.cancel_request(name)

    def step(self) -> bool:
        """What the generation loop does in one turn, its end after an error too; whether anything was computed."""
        try:
            ready = bool(self.processor.prepare_next_batch())
            if ready:
                if not self.scripted:
                    with torch.no_grad():
                        self.processor._generation_step(self.model)
                if self._bootstrapping:
                    self._bootstrapping = False
                else:
                    self.processor.update_batch()
        except Exception as error:
            self.died, ready = error, False
            self.manager._fail_all_remaining_requests(error, self.processor)
        self._collect()
        return ready

    def run(self, most: int = 2000) -> None:
        """Until nobody waits or runs."""
        for _ in range(most):
            if not self.step() and not self.processor.has_pending_requests() and self.manager.input_queue.empty():
                return
        raise AssertionError("the requests never end")

    def _collect(self) -> None:
        queue = self.manager.output_router.output_queue
        while not queue.empty():
            output = queue.get()
            self.outputs[output.request_id] = output

    @property
    def tokens(self) -> dict[str, list[int]]:
        """What every request that has ended generated."""
        return {name: list(output.generated_tokens) for name, output in self.outputs.items()}


class Traffic:
    """Random requests for a driven engine: shared prefixes, repeated prompts, cancellations; the same for a seed."""

    def __init__(self, driven: Driven, seed: int, *, longest: int = 40, cancels: float = 0.05) -> None:
        self.driven, self._random, self._longest, self._cancels = driven, random.Random(seed), longest, cancels
        self._prefixes = [[self._random.randint(3, 120) for _ in range(longest)] for _ in range(3)]
        self._count = 0

    def arrive(self) -> None:
        """Some requests, and now and then one that is cancelled."""
        draw = self._random
        for _ in range(draw.choice((0, 0, 1, 1, 2))):
            self._count += 1
            shared = draw.choice(self._prefixes)[: draw.randint(0, self._longest)]
            tokens = shared + [draw.randint(3, 120) for _ in range(draw.randint(0 if shared else 1, 8))]
            self.driven.add(f"client-{self._count}", tokens, draw.randint(1, 24))
        if self._count and draw.random() < self._cancels:
            self.driven.cancel(f"client-{draw.randint(max(1, self._count - 8), self._count)}")
