"""What happens to blocks: hooks around one `BlockPool`, on the instance, so that no other pool is touched.

Unit numbers are vLLM's own block ids: block 0, the null block, stands for "no block" and is never recorded. There is no
hook for evictions that make room: an allocation of a unit that holds content *is* the eviction. Each hook runs the
original first, with the caller's arguments, and records what the blocks then are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kvmon.adapters.vllm.held import Held
from kvmon.probe import Patches, PoolProbe

__all__ = ["BlockHooks"]

Function = Callable[..., Any]


class BlockHooks:
    """The hooks of one pool. `broken` is called with the name of a hook whose body failed; the engine goes on.

    `leave` is told (request id, units) what a window has passed while others still hold it.
    """

    def __init__(
        self,
        scheduler: Any,
        pool: PoolProbe,
        held: Held,
        leave: Callable[[str, list[int]], None],
        broken: Callable[[str], None],
    ) -> None:
        self._manager = scheduler.kv_cache_manager
        self._blocks = self._manager.block_pool
        self._pool, self._held, self._leave, self._broken = pool, held, leave, broken
        self._sliding: str | None = None
        self.patches = Patches(broken)

    def install(self) -> None:
        """Patch the pool, and what changes references behind its back."""
        pool, patches = self._blocks, self.patches
        groups = self._manager.coordinator.single_type_managers
        patches.wrap(pool, "get_new_blocks", self._allocating)
        patches.wrap(pool, "free_blocks", self._freeing)
        patches.wrap(pool, "touch", self._touching)
        patches.wrap(pool, "cache_full_blocks", self._caching)
        patches.hook(pool, "reset_prefix_cache", after=self._after_reset)
        if hasattr(pool, "cache_partial_block"):
            patches.hook(pool, "cache_partial_block", after=self._after_partial)
        if hasattr(pool, "unpin_blocks"):
            patches.wrap(pool, "unpin_blocks", self._unpinning)
        if hasattr(pool, "move_block_hashes"):
            patches.hook(pool, "move_block_hashes", after=self._after_move)
        if any(type(group).__name__ == "MambaManager" for group in groups):
            # forgets checkpoints one by one, past evict_blocks
            patches.hook(pool, "_maybe_evict_cached_block", after=self._after_evict)
        elif hasattr(pool, "evict_blocks"):
            patches.wrap(pool, "evict_blocks", self._evicting)
        for group in groups:
            if hasattr(group, "_apply_cow"):
                patches.hook(group, "_apply_cow", after=self._after_cow)
            if _slides(group):
                patches.hook(group, "remove_skipped_blocks", before=self._before_slide, after=self._after_slide)

    # -- the hottest --

    def _allocating(self, original: Function) -> Function:
        alloc, alloc_one, broken = self._pool.alloc, self._pool.alloc_one, self._broken

        def get_new_blocks(num_blocks: int) -> Any:
            blocks = original(num_blocks)
            try:
                if len(blocks) == 1:
                    alloc_one(blocks[0].block_id)
                elif blocks:
                    alloc([block.block_id for block in blocks])
            except Exception:  # a guest: whatever the body met, the engine goes on
                broken("BlockPool.get_new_blocks")
            return blocks

        return get_new_blocks

    def _freeing(self, original: Function) -> Function:
        unshare, held, broken, own = self._pool.unshare, self._held, self._broken, self._blocks
        several = any(group.block_pool is not own for group in self._manager.coordinator.single_type_managers)

        def free_blocks(ordered_blocks: Iterable[Any], *args: Any, **kwargs: Any) -> Any:
            blocks = ordered_blocks if type(ordered_blocks) is list else list(ordered_blocks)
            result = original(blocks, *args, **kwargs)
            try:
                mine = [block for block in blocks if block.pool is own] if several else blocks
                if held.units:
                    held.freed(mine)
                else:
                    unshare([unit for block in mine if (unit := block.block_id)])
                if self._sliding is not None:
                    still = [block.block_id for block in mine if block.block_id and block.ref_cnt > 0]
                    if still:
                        self._leave(self._sliding, still)
            except Exception:  # a guest, as above
                broken("BlockPool.free_blocks")
            return result

        return free_blocks

    def _touching(self, original: Function) -> Function:
        share, held, broken = self._pool.share, self._held, self._broken

        def touch(blocks: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
            result = original(blocks, *args, **kwargs)
            try:
                flat = blocks
                if blocks and not hasattr(blocks[0], "block_id"):  # up to 0.13: a list for each group
                    flat = [block for group in blocks for block in group]
                units = [unit for block in flat if (unit := block.block_id)]
                if held.units:
                    held.touched(units)
                share(units)
            except Exception:  # a guest, as above
                broken("BlockPool.touch")
            return result

        return touch

    def _caching(self, original: Function) -> Function:
        cache, cache_one, broken = self._pool.cache, self._pool.cache_one, self._broken
        names = list(inspect.signature(original).parameters)
        at, first, last = (names.index(name) for name in ("blocks", "num_cached_blocks", "num_full_blocks"))

        def cache_full_blocks(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            try:
                blocks = kwargs["blocks"] if at >= len(args) else args[at]
                begin = kwargs["num_cached_blocks"] if first >= len(args) else args[first]
                end = kwargs["num_full_blocks"] if last >= len(args) else args[last]
                if end - begin == 1:  # the page that a decode has filled
                    if blocks[begin]._block_hash is not None:
                        cache_one(blocks[begin].block_id)
                else:
                    cache([block.block_id for block in blocks[begin:end] if block._block_hash is not None])
            except Exception:  # a guest, as above
                broken("BlockPool.cache_full_blocks")
            return result

        return cache_full_blocks

    # -- the rare --

    def _evicting(self, original: Function) -> Function:
        def evict_blocks(block_ids: Iterable[int], *args: Any, **kwargs: Any) -> Any:
            ids = block_ids if isinstance(block_ids, set | frozenset | list | tuple) else list(block_ids)
            blocks, known = self._blocks.blocks, []
            try:
                known = [unit for unit in ids if blocks[unit]._block_hash is not None]
            except Exception:  # an id that does not exist is the engine's to complain about
                known = []
            result = original(ids, *args, **kwargs)
            try:
                self._pool.evict([unit for unit in known if blocks[unit]._block_hash is None])
            except Exception:  # a guest, as above
                self._broken("BlockPool.evict_blocks")
            return result

        return evict_blocks

    def _unpinning(self, original: Function) -> Function:
        def unpin_blocks(blocks: Iterable[Any], *args: Any, **kwargs: Any) -> Any:
            listed = list(blocks)
            result = original(listed, *args, **kwargs)
            try:
                self._pool.unshare([unit for block in listed if (unit := block.block_id)])
            except Exception:  # a guest, as above
                self._broken("BlockPool.unpin_blocks")
            return result

        return unpin_blocks

    def _after_reset(self, done: object, *args: Any, **kwargs: Any) -> None:
        if done:
            self._pool.reset()

    def _after_partial(self, result: object, *args: Any, **kwargs: Any) -> None:
        block = kwargs["block"] if "block" in kwargs else next(one for one in args if hasattr(one, "ref_cnt"))
        if block.block_id and block._block_hash is not None:
            self._pool.cache_one(block.block_id)

    def _after_move(self, result: object, src_block: Any, dst_block: Any, *args: Any, **kwargs: Any) -> None:
        """The prefix cache keeps a private copy; the source stays with its request, retained once more for the copy."""
        self._pool.evict_one(src_block.block_id)
        if dst_block._block_hash is not None:
            self._pool.cache_one(dst_block.block_id)
        self._pool.share_one(src_block.block_id)

    def _after_evict(self, evicted: object, block: Any, *args: Any, **kwargs: Any) -> None:
        if evicted and block.block_id:
            self._pool.evict_one(block.block_id)

    def _after_cow(self, result: object, *args: Any, **kwargs: Any) -> None:
        """The private copy of a partial hit is retained once more until the copy has run."""
        block = kwargs["cow_block"] if "cow_block" in kwargs else args[3]
        self._pool.share_one(block.block_id)

    def _before_slide(self, request_id: str, *args: Any, **kwargs: Any) -> None:
        self._sliding = request_id

    def _after_slide(self, result: object, *args: Any, **kwargs: Any) -> None:
        self._sliding = None


def _slides(group: Any) -> bool:
    """Whether a group gives blocks back before its request ends."""
    base = next((kind for kind in type(group).__mro__ if kind.__name__ == "SingleTypeKVCacheManager"), None)
    names = ("get_num_skipped_tokens", "remove_skipped_blocks")
    return base is None or any(getattr(type(group), name, None) is not getattr(base, name, None) for name in names)
