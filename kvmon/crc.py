"""CRC-32 of words, compiled: the checksum of a frame for whoever reads or writes many of them.

The same number as `zlib.crc32` over the bytes of little-endian words, which the probe uses for its one frame at a time.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvmon.jit import kernel

__all__ = ["CRC_TABLES", "crc32"]


def _crc_tables() -> npt.NDArray[np.uint32]:
    tables = np.zeros((8, 256), np.uint32)
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (0xEDB88320 if value & 1 else 0)
        tables[0, byte] = value
    for row in range(1, 8):
        tables[row] = (tables[row - 1] >> 8) ^ tables[0][tables[row - 1] & 0xFF]
    return tables


CRC_TABLES = _crc_tables()
"""Eight tables of 256 entries, to be handed to `crc32`."""


@kernel
def crc32(words: npt.NDArray[np.uint32], start: int, end: int, tables: npt.NDArray[np.uint32]) -> int:
    """CRC-32 (as zlib's) of little-endian words, eight bytes at a time (slicing by eight)."""
    crc = np.uint32(0xFFFFFFFF)
    at = start
    while at + 1 < end:
        one = crc ^ words[at]
        two = words[at + 1]
        crc = (
            tables[7, one & 0xFF]
            ^ tables[6, (one >> 8) & 0xFF]
            ^ tables[5, (one >> 16) & 0xFF]
            ^ tables[4, one >> 24]
            ^ tables[3, two & 0xFF]
            ^ tables[2, (two >> 8) & 0xFF]
            ^ tables[1, (two >> 16) & 0xFF]
            ^ tables[0, two >> 24]
        )
        at += 2
    if at < end:
        one = crc ^ words[at]
        crc = (
            tables[3, one & 0xFF] ^ tables[2, (one >> 8) & 0xFF] ^ tables[1, (one >> 16) & 0xFF] ^ tables[0, one >> 24]
        )
    return int(crc ^ np.uint32(0xFFFFFFFF))
