"""Where keys and values are: preallocated tensors, one slot a token, addressed by the units of the allocator.

    data     (layers, 2, slots, kv_heads, head_dim)     slot = (unit - 1) * unit_tokens + place in the unit

A contiguous block is one slice of slots and is read as a view; a page is `unit_tokens` slots anywhere, and a block
table says which. With a window group its layers have the slots of the same tensors (layer k of either group in tensor
k), or tensors of their own where the group has its own pool. The host tier has the same shape on the CPU.

Invariant: the store never decides where something goes. It copies when it is told to, all layers at once, and counts
every byte that it copies in `copied`, by why.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import torch

from kvmon.allocators import AllocatorConfig, PagedConfig
from kvmon.engine.config import ModelConfig
from kvmon.engine.devices import free_memory
from kvmon.engine.weights import torch_dtype
from kvmon.errors import ConfigError, SystemRefused
from kvmon.units import format_bytes

__all__ = ["KVStore", "units_in"]

Slots = npt.NDArray[np.int64]


def units_in(amount: int, token_bytes: int, unit_tokens: int) -> int:
    """Units of `unit_tokens` tokens in so many bytes. Raises ConfigError when not even one fits."""
    units = amount // (token_bytes * unit_tokens)
    if units < 1:
        raise ConfigError(
            f"{format_bytes(amount)} hold no block of {unit_tokens} tokens at {token_bytes:,} bytes each: enlarge the "
            "pool"
        )
    return units


class KVStore:
    """Keys and values of every layer of one model over one allocator's pool, on one device.

    Raises ConfigError where pool and model do not belong together, SystemRefused where the device has no room.
    """

    def __init__(
        self, model: ModelConfig, allocator: AllocatorConfig, *, host_tokens: int = 0, device: str = "cpu"
    ) -> None:
        self.model = model
        self.unit_tokens = allocator.unit_tokens
        self.paged = isinstance(allocator, PagedConfig)
        self.copied: Counter[str] = Counter()
        self._device = device
        window = allocator.window_tokens if isinstance(allocator, PagedConfig) else 0
        own = allocator.window_pool_units if isinstance(allocator, PagedConfig) else 0
        sliding = [layer for layer, width in enumerate(model.windows) if width and window]
        if window and {model.windows[layer] for layer in sliding} != {window}:
            raise ConfigError(
                f"{model.name} has no layers with a window of {window} tokens: the window group is for those"
            )
        whole = [layer for layer in range(model.layers) if layer not in sliding]
        #: Group and tensor of each layer: 0 keeps every token, 1 is the window group.
        self.place = {layer: (0, k) for k, layer in enumerate(whole)}
        self.place |= {layer: (1, k) for k, layer in enumerate(sliding)}
        tensors = max(len(whole), 1) if own else max(len(whole), len(sliding))
        slots = allocator.capacity_units * self.unit_tokens
        self.token_bytes = tensors * model.layer_token_bytes
        self.window_token_bytes = len(sliding) * model.layer_token_bytes if own else 0
        window_slots = own * self.unit_tokens
        needed = slots * self.token_bytes + window_slots * self.window_token_bytes
        self._check_room("the pool", needed, device)
        # On a GPU a unit behind the pool takes what rows of a CUDA graph write that are nobody's.
        behind = self.unit_tokens if device.startswith("cuda") else 0
        self.data = self._empty(tensors, slots + behind, device)
        self.window = self._empty(len(sliding), window_slots + behind, device) if own else self.data
        host_slots = host_tokens // self.unit_tokens * self.unit_tokens
        self._check_room("the host tier", host_slots * self.token_bytes, "cpu")
        self.host = self._empty(tensors, host_slots, "cpu")
        self.bytes = needed

    # -- what attention reads and writes --

    def write(self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Keep keys and values (n, kv_heads, head_dim) of one layer in `slots` (n)."""
        pool = self.pool(layer)
        pool[0].index_copy_(0, slots, keys)
        pool[1].index_copy_(0, slots, values)

    def pool(self, layer: int) -> torch.Tensor:
        """Keys and values of one layer in every slot: a view (2, slots, kv_heads, head_dim)."""
        group, tensor = self.place[layer]
        return self.window[tensor] if group else self.data[tensor]

    def block(self, layer: int, first_unit: int, tokens: int) -> torch.Tensor:
        """Keys and values of a contiguous block's first `tokens`: a view (2, tokens, kv_heads, head_dim)."""
        start = (first_unit - 1) * self.unit_tokens
        return self.pool(layer)[:, start : start + tokens]

    def gather(self, layer: int, pages: torch.Tensor) -> torch.Tensor:
        """Keys and values of `pages` (n, from 0) in that order: a copy (2, n * unit_tokens, kv_heads, head_dim)."""
        pool = self.pool(layer)
        heads, width = pool.shape[2:]
        found = pool.view(2, -1, self.unit_tokens * heads * width).index_select(1, pages)
        return found.view(2, -1, heads, width)

    # -- what the allocator's decisions move --

    def move(self, why: str, source: int, target: int, tokens: int) -> None:
        """Copy `tokens` from slot `source` on to slot `target` on, as memmove does where they overlap."""
        read = self.data[:, :, source : source + tokens]
        if abs(source - target) < tokens:
            read = read.clone()
        self.data[:, :, target : target + tokens] = read
        self._count(why, tokens)

    def swap_out(self, slots: Slots, host_slot: int) -> None:
        """Copy the tokens in `slots` to the host tier, from `host_slot` on."""
        index = torch.from_numpy(slots).to(self._device)
        self.host[:, :, host_slot : host_slot + len(slots)] = self.data.index_select(2, index).cpu()
        self._count("swap out", len(slots))

    def swap_in(self, host_slot: int, slots: Slots) -> None:
        """Copy tokens from `host_slot` of the host tier on back into `slots`."""
        index = torch.from_numpy(slots).to(self._device)
        read = self.host[:, :, host_slot : host_slot + len(slots)].to(self._device)
        self.data.index_copy_(2, index, read)
        self._count("swap in", len(slots))

    def poison(self, units: npt.NDArray[np.int64], *, window: bool = False) -> None:
        """Write NaN over every layer of `units`, so that whoever reads a token that is not there is found out."""
        pool = self.window if window else self.data
        pool.view(pool.shape[0], 2, -1, self.unit_tokens, *pool.shape[3:])[:, :, torch.from_numpy(units - 1)] = float(
            "nan"
        )

    def _count(self, why: str, tokens: int) -> None:
        self.copied[why] += tokens * self.token_bytes

    def _empty(self, tensors: int, slots: int, device: str) -> torch.Tensor:
        shape = (tensors, 2, slots, self.model.kv_heads, self.model.head_dim)
        try:
            # Written now: a page fault in the middle of a step would be measured as attention.
            return torch.empty(shape, dtype=torch_dtype(self.model.dtype), device=device).zero_()
        except (torch.OutOfMemoryError, RuntimeError) as error:
            size = format_bytes(tensors * slots * self.model.layer_token_bytes)
            raise SystemRefused(f"{device} has no room for a pool of {size}: choose a smaller one") from error

    @staticmethod
    def _check_room(what: str, needed: int, device: str) -> None:
        if needed and needed > (free := free_memory(device)):
            where = "the GPU" if device.startswith("cuda") else "this machine"
            raise SystemRefused(
                f"{what} takes {format_bytes(needed)} and {where} has {format_bytes(free)} free: choose a smaller one"
            )
