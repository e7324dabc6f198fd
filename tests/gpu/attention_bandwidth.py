"""How much of the memory's bandwidth paged attention of decodes reaches, beside torch over a contiguous cache.

    python -m tests.gpu.attention_bandwidth

The share is of what a copy within the device reaches, measured first: a decode has to read keys and values once, and
does little else. Torch sees the same pool as a padded cache without pages, the most that an engine without paging could
hope for. The L2 cache is emptied before each run. The largest case takes 17 GB.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton

from kvmon.engine.paged_attention import paged_attention

BATCHES = (1, 8, 64, 256)
CONTEXTS = (512, 4096, 16384)
HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
UNIT_TOKENS = 16
DTYPE = torch.bfloat16
COPIED = 1 << 30


def seconds(call: Callable[[], object]) -> float:
    """Median time of a call on the device."""
    return float(triton.testing.do_bench(call, return_mode="median")) / 1000


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of a copy within the device."""
    source = torch.zeros(COPIED, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * COPIED / seconds(lambda: target.copy_(source))


def decode_seconds(keys: torch.Tensor, values: torch.Tensor, batch: int, context: int) -> tuple[float, float]:
    """Times of a decode of `batch` sequences of `context` tokens: these kernels over shuffled pages, and torch."""
    query = torch.randn((batch, HEADS, HEAD_DIM), dtype=DTYPE, device="cuda")
    pages = torch.randperm(batch * context // UNIT_TOKENS, device="cuda") + 1
    tables = pages.view(batch, -1).to(torch.int32)
    lengths = torch.full((batch,), context, dtype=torch.int32, device="cuda")
    starts = torch.arange(batch + 1, dtype=torch.int32, device="cuda")
    scale = HEAD_DIM**-0.5

    def paged() -> torch.Tensor:
        return paged_attention(
            query,
            keys,
            values,
            tables,
            lengths,
            starts,
            unit_tokens=UNIT_TOKENS,
            scale=scale,
            window=0,
            longest_query=1,
            longest_context=context,
        )

    padded = [
        pool[: batch * context].view(batch, context, KV_HEADS, HEAD_DIM).transpose(1, 2) for pool in (keys, values)
    ]

    def contiguous() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(
            query[:, :, None], *padded, scale=scale, enable_gqa=True
        )

    return seconds(paged), seconds(contiguous)


def main() -> None:
    """Print a row for each batch and context."""
    bandwidth = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}: a copy reads and writes {bandwidth / 1e9:.0f} GB/s")
    print(f"{HEADS} heads, {KV_HEADS} of keys, head_dim {HEAD_DIM}, {DTYPE}, pages of {UNIT_TOKENS} tokens")
    figures = f" {'us':>9} {'GB/s':>6} {'of copy':>7}"
    print(f"{'':13} {'paged':>9}{'':15} {'torch':>9}\n{'batch':>5} {'context':>7}{figures}{figures}")
    slots = max(BATCHES) * max(CONTEXTS)
    keys, values = (torch.randn((slots, KV_HEADS, HEAD_DIM), dtype=DTYPE, device="cuda") for _ in range(2))
    for batch in BATCHES:
        for context in CONTEXTS:
            read = 2 * batch * context * KV_HEADS * HEAD_DIM * DTYPE.itemsize
            row = f"{batch:5} {context:7}"
            for time in decode_seconds(keys, values, batch, context):
                row += f" {time * 1e6:9.1f} {read / time / 1e9:6.0f} {read / time / bandwidth:7.0%}"
            print(row)


if __name__ == "__main__":
    main()
