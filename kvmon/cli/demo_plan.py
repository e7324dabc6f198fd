"""What the demo serves and into how much memory: one file of numbers, read by the engines and by the text about them.

A pool of 32,768 tokens is 4 GiB for a model of the size of Llama 3 8B; the traffic keeps a contiguous pool at four
fifths of it.
"""

from __future__ import annotations

__all__ = [
    "ARRIVALS_PER_SECOND",
    "CAPACITY_TOKENS",
    "CHUNK_TOKENS",
    "PREFIX_TOKENS",
    "TOKEN_BYTES",
    "UNIT_TOKENS",
]

CAPACITY_TOKENS = 32_768
UNIT_TOKENS = 16
CHUNK_TOKENS = 64
"""By how much a block of the contiguous pool grows."""
TOKEN_BYTES = 131_072
"""Keys and values of one token: 32 layers, 8 heads, 128 wide, 2 bytes, twice."""
ARRIVALS_PER_SECOND = 2.2
PREFIX_TOKENS = 600
