"""A reference engine out of options: model, pool, scheduler, and its recording. Wiring only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvmon.errors import ConfigError

if TYPE_CHECKING:
    from kvmon.allocators import AllocatorConfig
    from kvmon.engine import Engine, ModelConfig

__all__ = ["build_engine"]

_DEFAULT_TOKENS = 16_384
_DEFAULT_BLOCK = 16
_DEFAULT_CHUNK = 64
_OUT_OF_MEMORY = 1  # kind of an engine error


def build_engine(
    *,
    layout: str = "paged",
    model: Path | None = None,
    seed: int = 0,
    dtype: str | None = None,
    device: str = "auto",
    capacity_tokens: int | None = None,
    capacity_bytes: int | None = None,
    memory_share: float | None = None,
    block_size: int | None = None,
    reserve: str | None = None,
    placement: str | None = None,
    prefix_cache: bool = True,
    max_sequences: int = 64,
    token_budget: int = 2048,
    max_model_len: int | None = None,
    admit_by: str = "prompt",
    preemption: str = "recompute",
    host_tokens: int = 0,
    directory: Path | None = None,
    name: str = "reference",
    eos_tokens: tuple[int, ...] | None = None,
    vocabulary: int | None = None,
) -> Engine:
    """Build it in the thread that will run it; closing the engine ends its recording.

    Options that exclude each other are refused before, where they are read. `model` None: the tiny random model of
    `vocabulary` tokens. Raises ConfigError for options that cannot work together, InputError for a model that cannot be
    used, SystemRefused where the machine has no room.
    """
    from kvmon.engine import Decoder, Engine, load_weights, random_weights, read_config, tiny_config
    from kvmon.engine.devices import chosen_device
    from kvmon.serving import SchedulerConfig
    from kvmon.serving.faults import Faults

    device = chosen_device(device)
    if model is not None:
        config = read_config(model, dtype)
    else:
        config = tiny_config(**_given(vocabulary=vocabulary, dtype=dtype))
    pool = _pool(layout, block_size, reserve, placement, prefix_cache)
    scheduler = SchedulerConfig(
        token_budget=token_budget,
        max_sequences=max_sequences,
        admit_by=admit_by,
        preemption=preemption,
        host_tokens=host_tokens,
    )
    weights = random_weights(config, seed, device) if model is None else load_weights(config, model, device)
    units = _units(config, device, pool.unit_tokens, capacity_tokens, capacity_bytes, memory_share)
    engine = Engine(
        Decoder(config, weights),
        pool.resized(units),
        scheduler,
        # What the engine itself says it has, once a second, so that a reader can hold it against the events.
        faults=Faults(claims_every_ns=1_000_000_000),
        max_model_len=max_model_len,
        eos=eos_tokens,
        seed=seed,
    )
    if directory is not None:
        _record(engine, directory, name, config)
    return engine


def _given(**options: Any) -> dict[str, Any]:
    """Those that were given; the others have their defaults elsewhere."""
    return {name: value for name, value in options.items() if value is not None}


def _pool(
    layout: str, block_size: int | None, reserve: str | None, placement: str | None, prefix_cache: bool
) -> AllocatorConfig:
    """The pool's policy at the smallest size that any has."""
    from kvmon.allocators import ContiguousConfig, PagedConfig
    from kvmon.allocators.config import parse_reserve

    block = _DEFAULT_BLOCK if block_size is None else block_size
    if block < 1:
        raise ConfigError(f"a block of {block} tokens is none: choose at least 1")
    if layout == "paged":
        return PagedConfig(1, block, prefix_cache=prefix_cache)
    policy, chunk = parse_reserve(reserve or f"chunk:{_DEFAULT_CHUNK}")
    units = -(-(chunk or 1) // block)
    return ContiguousConfig(units, block, reserve=policy, chunk_tokens=chunk, placement=placement or "first-fit")


def _units(
    config: ModelConfig,
    device: str,
    unit_tokens: int,
    tokens: int | None,
    amount: int | None,
    share: float | None,
) -> int:
    """Units of the pool, from the one size that was given."""
    from kvmon.engine.devices import free_memory
    from kvmon.engine.kvstore import units_in

    if share is not None:
        if not 0 < share <= 1:
            raise ConfigError(f"{share!r} is no share of the free memory: give more than 0 and at most 1")
        amount = int(free_memory(device) * share)
    if amount is not None:
        return units_in(amount, config.token_bytes, unit_tokens)
    tokens = _DEFAULT_TOKENS if tokens is None else tokens
    if tokens < unit_tokens:
        raise ConfigError(f"a pool of {tokens} tokens holds no block of {unit_tokens}: enlarge it")
    return tokens // unit_tokens


def _record(engine: Engine, directory: Path, name: str, config: ModelConfig) -> None:
    from kvmon import __version__
    from kvmon.adapters.attach import attach
    from kvmon.engine.device_memory import DeviceSampler, asked_bytes, bytes_of

    weights = bytes_of(engine.model.weights.tensors(), engine.model.device)
    described: dict[str, Any] = {
        "engine_version": __version__,
        "model": {
            "layers": config.layers,
            "kv_heads": config.kv_heads,
            "head_dim": config.head_dim,
            "dtype": config.dtype,
        },
        "weight_bytes": weights,
    }
    recording = attach(engine, directory, name, config=described)
    engine.closers.append(recording.close)
    recording.check()
    if engine.model.device.type == "cuda":
        sampler = DeviceSampler(
            recording.probe.device_sample,
            engine.model.device,
            kv_pool=engine.store.bytes,
            weights=weights,
        )
        # Before the adapter writes the step, so that the sample stands in its frame.
        engine.observers.insert(0, lambda words: sampler.sample())

        def tell(error: BaseException) -> None:
            sampler.sample_now()
            if sampler.seen is not None:
                slack = sampler.seen.reserved - sampler.seen.allocated
                recording.probe.engine_error(_OUT_OF_MEMORY, asked_bytes(error), sampler.seen.free, slack)
            recording.probe.tick()

        engine.out_of_memory.append(tell)
