"""Give back memory that was needed once: what the allocator keeps, and the pages of the compiler's own code.

LLVM's library has 160 MB, of which loading kernels touches most and running them nothing. Its code is a file mapped for
reading: pages that are dropped are read again when somebody calls it. Invariant: only pages that are the file's own
are dropped, never one that was written to. Where the system is not Linux, or says no, nothing happens.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import re
from collections.abc import Iterable, Iterator

__all__ = ["give_memory_back", "trim"]

_COMPILER = "libllvmlite"
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ")
_WRITTEN = re.compile(r"(?:Anonymous|Private_Dirty|Swap): +(\d+) kB")


def trim() -> None:
    """Return to the system what is free, or hangs together in circles that nobody holds; tens of milliseconds."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # only glibc has it, and only glibc keeps so much


def give_memory_back() -> None:
    """The same, and the pages of the compiler."""
    trim()
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/self/smaps", encoding="ascii", errors="replace") as lines:
            untouched = list(_unwritten(lines))
        for start, end in untouched:
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def _unwritten(smaps: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Where the compiler's library is mapped for reading and every page of it is the file's."""
    place: tuple[int, int] | None = None
    for line in smaps:
        if mapping := _MAPPING.match(line):
            yield from [place] if place else []
            fitting = _COMPILER in line and mapping[3] in ("r--p", "r-xp")
            place = (int(mapping[1], 16), int(mapping[2], 16)) if fitting else None
        elif place and (written := _WRITTEN.match(line)) and written[1] != "0":
            place = None
    yield from [place] if place else []
