"""Requests that lose their memory: copied to the CPU swap pool, or reset to be computed again.

`offload_requests` frees the blocks of its victims before it knows which of them fit on the host, and a preemption is
told before the units go back. So what is given back inside of that call is kept until it returns, and then told in
order: what was refused, the preemption, the copy, the units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from kvmon.adapters.transformers.blocks import give_back
from kvmon.adapters.transformers.hooks import Function, Hooks
from kvmon.adapters.transformers.layout import Group, Layout
from kvmon.adapters.transformers.live import Live, Requests
from kvmon.adapters.transformers.refusals import Refusals
from kvmon.probe import PoolProbe, StreamProbe

__all__ = ["HostHooks"]

_BASE = -1  # the host's sectors count from 0, and none is reserved


class HostHooks:
    """The hooks of one offloading manager. `pool` is the device's, `computed` gives the tokens of a request that are
    written."""

    def __init__(
        self,
        manager: Any,
        layout: Layout,
        probe: StreamProbe,
        pool: PoolProbe,
        requests: Requests,
        refusals: Refusals,
        computed: Callable[[Live], int],
    ) -> None:
        self._manager, self._layout, self._probe, self._pool = manager, layout, probe, pool
        self._requests, self._refusals, self._computed = requests, refusals, computed
        self._by_index = layout.by_index
        self._held: dict[int, set[int]] = {group.index: set() for group in layout.groups}
        self._victims: dict[str, list[tuple[Group, list[int], list[int]]]] = {}
        self._lost: dict[str, int] = {}
        self._restoring: list[tuple[Any, dict[str, int]]] = []
        self.host: PoolProbe | None = None
        self.offloading = False

    def attach_pool(self, fresh: bool) -> None:
        """Record the swap pool, where there is one."""
        if self._manager._cpu_pool is not None:
            info = self._layout.host_info(int(self._manager._cpu_pool.num_sectors))
            self.host = self._probe.attach_pool(info, fresh=fresh)

    def install(self, hooks: Hooks) -> None:
        """Put them on."""
        hooks.wrap(self._manager, "offload_requests", partial(self._offloading, hooks))
        if self.host is not None:
            pool = self._manager._cpu_pool
            for tables in self._manager._request_id_to_cpu_blocks.values():
                for name, blocks in tables.items():
                    self._held[self._named(name).index].update(blocks)
            hooks.hook(pool, "get_free_blocks", after=self.taken)
            hooks.hook(pool, "free_blocks", before=self.freed)
            hooks.hook(pool, "reset", before=self.emptied)
            hooks.hook(self._manager, "restore_scheduled_requests", before=self.restoring, after=self.restored)

    def postpone(self, name: str, group: Group, blocks: list[int], dropped: list[int]) -> bool:
        """Keep what a victim gives back; False where nobody is being offloaded."""
        if not self.offloading:
            return False
        self._victims.setdefault(name, []).append((group, blocks, dropped))
        one = self._requests.find(name)
        if one is not None:
            self._lost[name] = self._computed(one)
        return True

    def _offloading(self, hooks: Hooks, original: Function) -> Function:
        begin = hooks.body("OffloadingManager.offload_requests", self.begun)
        end = hooks.body("OffloadingManager.offload_requests", self.ended)

        def offload_requests(*args: Any, **kwargs: Any) -> Any:
            begin()
            try:
                return original(*args, **kwargs)
            finally:
                end()

        return offload_requests

    def begun(self) -> None:
        """Whoever gives memory back from here on loses it."""
        self.offloading = True

    def ended(self) -> None:
        """Tell what it came to."""
        self.offloading = False
        victims, self._victims = self._victims, {}
        lost, self._lost = self._lost, {}
        known = {name: one for name in victims if (one := self._requests.find(name)) is not None}
        if known:
            self._refusals.tell(frozenset(one.number for one in known.values()))
        for name, parts in victims.items():
            one = known.get(name)
            copied = self._manager._request_id_to_cpu_blocks.get(name) if self.host is not None else None
            if one is not None:
                self._requests.preempt(one, 0 if copied else lost.get(name, 0))
            for group, blocks, dropped in parts:
                units = group.units(blocks, self._layout.base)
                if one is not None and copied:
                    self._pool.offloaded(one.number, 2, units)
                give_back(self._pool, units, group.units(dropped, self._layout.base))
            if one is not None and copied:
                for group_name, blocks in copied.items():
                    self._assign(one, self._named(group_name), blocks)
                self._probe.progress(one.number, int(one.state.current_len()), False)

    def again(self, state: Any) -> None:
        """A victim was put back into the queue, perhaps as another object; it is told when the offload is over."""
        one = self._requests.find(state.request_id)
        if one is not None:
            one.state = state

    # -- the swap pool --

    def taken(self, result: Sequence[int], index: int, *args: Any, **kwargs: Any) -> None:
        """Blocks of the host were taken."""
        if result and self.host is not None:
            self._held[index].update(result)
            self.host.alloc(self._by_index[index].units(result, _BASE))

    def freed(self, index: int, block_ids: Sequence[int]) -> None:
        """They go back."""
        if block_ids and self.host is not None:
            self._held[index].difference_update(block_ids)
            self.host.unshare(self._by_index[index].units(block_ids, _BASE))

    def emptied(self) -> None:
        """All of them go back."""
        for index, blocks in self._held.items():
            self.freed(index, sorted(blocks))

    def restoring(self, requests_in_batch: Sequence[Any]) -> None:
        """Requests that were scheduled again are about to get their copies back."""
        tables = self._manager._request_id_to_cpu_blocks
        self._restoring = [
            (future.state, {name: len(blocks) for name, blocks in tables.get(future.state.request_id, {}).items()})
            for future in requests_in_batch
            if future.state.is_cpu_offloaded
        ]

    def restored(self, result: object, *args: Any, **kwargs: Any) -> None:
        """They did."""
        restoring, self._restoring = self._restoring, []
        for state, counts in restoring:
            one = self._requests.find(state.request_id)
            if one is None:
                continue
            for name, count in counts.items():
                group = self._named(name)
                blocks = group.allocator.block_table.get(state.request_id, [])[:count]
                self._pool.onboarded(one.number, 2, group.units(blocks, self._layout.base))

    def claim(self) -> None:
        """What the swap pool's own structures add up to."""
        if self.host is None:
            return
        named = sum(
            len(blocks) * self._named(name).slices
            for tables in self._manager._request_id_to_cpu_blocks.values()
            for name, blocks in tables.items()
        )
        self.host.claims(self._layout.free_units(self._manager._cpu_pool), 0, named, 0)

    def tables_of(self, name: str) -> list[tuple[int, int, list[int]]]:
        """(pool, table, units) of what a request has on the host."""
        found = self._manager._request_id_to_cpu_blocks.get(name, {}) if self.host is not None else {}
        return [
            (2, table, units)
            for group_name, blocks in found.items()
            for table, units in self._named(group_name).tables(blocks, _BASE)
        ]

    def _named(self, name: str) -> Group:
        return next(group for group in self._layout.groups if group.name == name)

    def _assign(self, one: Live, group: Group, blocks: Sequence[int]) -> None:
        if self.host is not None:
            for table, units in group.tables(blocks, _BASE):
                self.host.assign(one.number, units, table)
