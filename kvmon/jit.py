"""Compiled kernels: one decorator over `numba.njit`, with types that survive `mypy --strict`.

Purpose: `@kernel` compiles a function over plain numpy arrays, releases the GIL and keeps the machine code on disk.
Three things numba alone does not do:

- Without a home directory on a read-only file system numba refuses to cache and raises while the module is imported.
  Here the kernel is compiled for this process instead.
- numba drops cached code when the file of the kernel itself changes, but not when a kernel that it calls changes. Here
  the stamp covers every source file beside the kernel, and the stamps of the kernels it calls.
- Arrays inside NamedTuples cost two atomic operations each time one is taken out (measured: 3 quarters of the
simulator's
  time). Kernels here own nothing: they allocate no array and return none, so numba's reference counting is off. A
  kernel that does allocate fails to compile ("NRT required but not enabled"); let the caller hand it a buffer.

Invariant: a decorated function means the same compiled or not. This module imports numba only when the first kernel is
declared, reads no environment and never changes numba's global settings.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

__all__ = ["is_cached", "kernel"]

P = ParamSpec("P")
R = TypeVar("R")

_Stamp = tuple[int, int]
_STAMP_NAME = "kvmon_source_stamp"


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile `function` with numba (`nogil`, cached on disk where that is possible).

    Kernels call kernels, take numpy arrays, integers, floats and NamedTuples of those, and return numbers. Arithmetic
    errors follow numpy, so a division by zero is the kernel's own duty to avoid.
    """
    import numba

    njit: Any = numba.njit
    options = {"nogil": True, "error_model": "numpy", "_nrt": False}
    try:
        compiled = njit(cache=True, **options)(function)
    except RuntimeError:  # numba found no place for cached code: "no locator available"
        compiled = njit(**options)(function)
        return cast("Callable[P, R]", compiled)
    stamp = _source_stamp(function)
    setattr(compiled, _STAMP_NAME, stamp)
    _widen_stamp(compiled, stamp)
    return cast("Callable[P, R]", compiled)


def is_cached(function: Callable[..., object]) -> bool:
    """Whether the machine code of a kernel is kept on disk between processes."""
    return hasattr(function, _STAMP_NAME)


def _source_stamp(function: Callable[..., object]) -> _Stamp:
    """Newest change (ns) and total size of the sources that `function` may have been compiled from."""
    newest, size = 0, 0
    try:
        for path in Path(function.__code__.co_filename).parent.glob("*.py"):
            status = path.stat()
            newest = max(newest, status.st_mtime_ns)
            size += status.st_size
    except OSError:
        return (0, 0)
    called = {getattr(value, _STAMP_NAME, None) for value in function.__globals__.values()}
    for stamp in called - {None}:
        if stamp is not None:
            newest = max(newest, stamp[0])
            size += stamp[1]
    return (newest, size)


def _widen_stamp(compiled: Any, stamp: _Stamp) -> None:
    """Give numba's cache file our stamp. Not a public interface: where it has changed, numba's own stamp stands."""
    cache_file = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
    if cache_file is not None and hasattr(cache_file, "_source_stamp"):
        cache_file._source_stamp = stamp
