"""What happens to blocks: hooks around one cache, its pool and its allocators, on the instances.

Blocks leave the pool by `get_free_blocks` and are named to a request by the call around it. They come back through
their allocator's ledger, which counts references and keeps what has content; each change of a count is one record.
`can_store_request_tokens` and `get_free_blocks` are called for every request in every step: those two wrappers do
nothing unless a block moved or a request was refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from kvmon.adapters.transformers.hooks import Function, Hooks
from kvmon.adapters.transformers.layout import Group, Layout
from kvmon.adapters.transformers.live import Live, Requests
from kvmon.adapters.transformers.refusals import Refusals
from kvmon.events.kinds import FinishReason
from kvmon.probe import PoolProbe, StreamProbe

__all__ = ["BlockHooks", "give_back"]

Postpone = Callable[[str, Group, list[int], list[int]], bool]


class BlockHooks:
    """The hooks of one cache.

    `postpone` is offered what an offloaded request gives back and takes it where its preemption must be told first;
    `computed` gives the tokens of a request that are written when the open step closes.
    """

    def __init__(
        self,
        cache: Any,
        layout: Layout,
        probe: StreamProbe,
        pool: PoolProbe,
        requests: Requests,
        refusals: Refusals,
        *,
        postpone: Postpone,
        computed: Callable[[Live], int],
    ) -> None:
        self._cache, self._layout, self._probe, self._pool = cache, layout, probe, pool
        self._requests, self._refusals, self._postpone, self._computed = requests, refusals, postpone, computed
        self._base = layout.base
        self._by_index = layout.by_index
        self._taken: list[tuple[Group, list[int]]] = []
        self._replaced: dict[int, int] = {}  # what has the content already -> what is given back for it
        self.group_of_sector: dict[int, Group] = {}

    def install(self, hooks: Hooks) -> None:
        """Put them on."""
        pool = self._cache.pool
        hooks.wrap(pool, "get_free_blocks", partial(self._taking, hooks))
        hooks.wrap(self._cache, "can_store_request_tokens", partial(self._storing, hooks))
        hooks.hook(self._cache, "search_prefix_match", after=self.matched)
        hooks.hook(self._cache, "prepare_fork_request", after=self.forked)
        for group in self._layout.groups:
            allocator, ledger = group.allocator, group.allocator.ledger
            hooks.hook(allocator, "free_blocks", before=partial(self.freeing, group))
            hooks.wrap(allocator, "mark_complete_blocks", partial(self._completing, hooks, group))
            hooks.hook(ledger, "register_new_hash", after=partial(self.registered, group))
            hooks.hook(ledger, "evict_cached_blocks", before=self.evicting, after=partial(self.evicted, group))
            hooks.hook(ledger, "reset", before=partial(self.forgetting, group))
        if len(self._layout.groups) > 1:
            self._find_sectors()
            hooks.hook(pool, "allocate_sector", before=self.giving_sector)
            hooks.hook(pool, "reset", after=self.sectors_back)

    # -- the hottest --

    def _taking(self, hooks: Hooks, original: Function) -> Function:
        took, taken = hooks.body("CachePool.get_free_blocks", self.took), self._taken

        def get_free_blocks(index: int, num_blocks: int) -> Any:
            blocks = original(index, num_blocks)
            if blocks:
                took(blocks, index)
            return blocks

        taken.clear()
        return get_free_blocks

    def _storing(self, hooks: Hooks, original: Function) -> Function:
        stored, taken = hooks.body("PagedAttentionCache.can_store_request_tokens", self.stored), self._taken

        def can_store_request_tokens(state: Any, request_len: int, dry_run: bool = False) -> Any:
            fits = original(state, request_len, dry_run)
            if taken or not fits:
                stored(fits, state, request_len, dry_run)
                taken.clear()
            return fits

        return can_store_request_tokens

    def took(self, blocks: list[int], index: int) -> None:
        """Blocks left the pool; who has them is known when the call around returns."""
        group = self._by_index[index]
        if group.slices == 1 and len(blocks) == 1:
            self._pool.alloc_one(blocks[0] - self._base)
        else:
            self._pool.alloc(group.units(blocks, self._base))
        self._taken.append((group, blocks))

    def stored(self, fits: object, state: Any, request_len: int, dry_run: bool = False) -> None:
        """A request was given blocks, or refused them."""
        one = None if dry_run else self._requests.find(state.request_id)
        if one is None:  # a warm-up's
            return
        if not fits:
            self._refusals.refused(one, state, request_len)
            return
        if not one.running:
            self._requests.admit(one)
        one.refused = False
        for group, blocks in self._taken:
            self._assign(one, group, blocks)

    # -- the rest --

    def matched(self, result: int, request_id: str, prompt_ids: Sequence[int]) -> None:
        """The prefix cache was asked; what it had is shared with the request, which runs from then on."""
        one = self._requests.find(request_id)
        if one is None:
            return
        one.lookup = (result, len(prompt_ids))
        if result > 0:
            tables = [(group, group.allocator.block_table[request_id]) for group in self._layout.groups]
            for group, blocks in tables:
                self._pool.share(group.units(blocks, self._base))
            self._requests.admit(one)
            for group, blocks in tables:
                self._assign(one, group, blocks)
            self._probe.progress(one.number, result, False)

    def forked(self, result: Sequence[str], src_state: Any, *args: Any, **kwargs: Any) -> None:
        """Children share their parent's full blocks; the others were taken for them and are copied."""
        self._taken.clear()
        parent = self._requests.find(src_state.request_id)
        if parent is None:
            return
        for name in result:
            child = self._requests.fork(parent, name)
            for group in self._layout.groups:
                source, blocks = (group.allocator.block_table[key] for key in (src_state.request_id, name))
                shared = next((k for k, block in enumerate(blocks) if block != source[k]), len(blocks))
                self._pool.share(group.units(blocks[:shared], self._base))
                self._assign(child, group, blocks)
            self._probe.progress(child.number, int(src_state.current_len()), False)

    def freeing(self, group: Group, request_id: str, no_cache: bool = False) -> None:
        """A request's references go; blocks with content stay in the cache, unless the engine says otherwise."""
        blocks = group.allocator.block_table.get(request_id)
        if not blocks:
            return
        ledger = group.allocator.ledger
        dropped = []
        if no_cache:
            counts = ledger.shared_ref_counts
            dropped = [block for block in blocks if block in ledger.block_to_hash and counts.get(block, 1) == 1]
        if self._postpone(request_id, group, list(blocks), dropped):
            return
        one = self._requests.find(request_id)
        if one is not None and one.running:  # nobody said that it ended: it was cancelled
            self._requests.finish(one, FinishReason.ABORT)
        give_back(self._pool, group.units(blocks, self._base), group.units(dropped, self._base))

    def _completing(self, hooks: Hooks, group: Group, original: Function) -> Function:
        replaced, told = self._replaced, hooks.body("CacheAllocator.mark_complete_blocks", self.completed)

        def mark_complete_blocks(*args: Any, **kwargs: Any) -> Any:
            replaced.clear()
            result = original(*args, **kwargs)
            if replaced:
                told(group, *args, **kwargs)
            return result

        return mark_complete_blocks

    def registered(self, group: Group, result: int | None, block_id: int, *args: Any, **kwargs: Any) -> None:
        """A full block can be found again, unless another one with this content is there."""
        if result is not None:
            self._replaced[result] = block_id
        elif group.slices == 1:
            self._pool.cache_one(block_id - self._base)
        else:
            self._pool.cache(group.units((block_id,), self._base))

    def completed(self, group: Group, request_id: str, *args: Any, **kwargs: Any) -> None:
        """Blocks whose content was there already were replaced: the table is told again from the first of them on."""
        blocks, base = group.allocator.block_table[request_id], self._base
        first = next(k for k, block in enumerate(blocks) if block in self._replaced)
        before = [self._replaced.get(block, block) for block in blocks[first:]]
        self._pool.share(group.units(self._replaced, base))
        one = self._requests.find(request_id)
        if one is not None:
            self._pool.truncate(one.number, self._computed(one), group.units(before, base))
        self._pool.unshare(group.units(self._replaced.values(), base))
        if one is not None:
            self._assign(one, group, blocks[first:])

    def evicting(self) -> None:
        """What was refused was refused before this."""
        self._refusals.tell()

    def evicted(self, group: Group, result: Sequence[int]) -> None:
        """Everything that was cached and unreferenced is free."""
        self._pool.evict(group.units(result, self._base))

    def forgetting(self, group: Group) -> None:
        """Every content of a group is about to be forgotten."""
        self._pool.evict(group.units(list(group.allocator.ledger.block_to_hash), self._base))

    # -- which group has a sector, for the audit --

    def giving_sector(self, index: int) -> None:
        """The pool hands out the sector at the end of its list."""
        self.group_of_sector[self._cache.pool.free_sectors[-1]] = self._by_index[index]

    def sectors_back(self, result: object) -> None:
        """None belongs to anybody."""
        self.group_of_sector.clear()

    def _find_sectors(self) -> None:
        """Who has which, as it was before the recording."""
        for group in self._layout.groups:
            allocator, size = group.allocator, group.blocks_per_sector
            for blocks in [*allocator.block_table.values(), allocator.ledger.block_to_hash]:
                self.group_of_sector.update((block // size, group) for block in blocks)
            self.group_of_sector.update((root, group) for root in self._cache.pool._free_blocks[group.index].trees)

    def _assign(self, one: Live, group: Group, blocks: Sequence[int]) -> None:
        if group.slices == 1:
            base = self._base
            self._pool.assign(one.number, [block - base for block in blocks], group.first_slice)
            return
        for table, units in group.tables(blocks, self._base):
            self._pool.assign(one.number, units, table)


def give_back(pool: PoolProbe, units: list[int], dropped: list[int]) -> None:
    """One reference less each; the content of `dropped` is forgotten with the last one."""
    if dropped:
        pool.evict(dropped)
    pool.unshare(units)
