"""Compiled kernels: one decorator over `numba.njit`, with types that survive `mypy --strict`.

Purpose: `@kernel` compiles a function over plain numpy arrays, releases the GIL and keeps the machine code on disk.
Four things numba alone does not do:

- Without a home directory on a read-only file system numba refuses to cache and raises while the module is imported.
  Here the kernel is compiled for this process instead.
- numba drops cached code when the file of the kernel itself changes, but not when a kernel that it calls changes. Here
  the stamp covers every source file beside the kernel, and the stamps of the kernels it calls.
- A kernel that is called with an int32 here and an int64 there would be compiled twice, with everything it calls. Here
  integers of any width reach another kernel as int64.
- Arrays inside NamedTuples cost two atomic operations each time one is taken out (measured: 3 quarters of the
simulator's
  time). Kernels here own nothing: they allocate no array and return none, so numba's reference counting is off. A
  kernel that does allocate fails to compile; let the caller hand it a buffer.

Invariant: a decorated function means the same compiled or not. This module imports numba only when the first kernel is
declared, reads no environment and never changes numba's global settings.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

__all__ = ["inlined", "inner", "is_cached", "kernel"]

P = ParamSpec("P")
R = TypeVar("R")

_Stamp = tuple[int, int]
_STAMP_NAME = "kvmon_source_stamp"


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile `function` with numba (`nogil`, cached on disk where that is possible).

    Kernels call kernels, take numpy arrays, integers, floats and NamedTuples of those, and return numbers. Arithmetic
    errors follow numpy, so a division by zero is the kernel's own duty to avoid.
    """
    return _compiled(function, {}, widened=True)


def inner(function: Callable[P, R]) -> Callable[P, R]:
    """A kernel that only kernels call: without the door for Python that takes a quarter of its time to compile."""
    return _compiled(function, {"no_cpython_wrapper": True}, widened=True)


def inlined(function: Callable[P, R]) -> Callable[P, R]:
    """A kernel that becomes a part of each kernel that calls it: where a call costs more than what it does.

    Each array handed over is seven values, so a call with many of them for one unit is slow. Use it where there are
    few callers.
    """
    return _compiled(function, {"forceinline": True}, widened=False)


def _compiled(function: Callable[P, R], more: dict[str, bool], *, widened: bool) -> Callable[P, R]:
    import numba

    njit: Any = numba.njit
    options = {"nogil": True, "error_model": "numpy", "_nrt": False, "no_cfunc_wrapper": True, **more}
    try:
        compiled = njit(cache=True, **options)(function)
    except RuntimeError:  # numba found no place for cached code: "no locator available"
        compiled = njit(**options)(function)
        if widened:
            _widen_integers(compiled)
        return cast("Callable[P, R]", compiled)
    if widened:
        _widen_integers(compiled)
    stamp = _source_stamp(function)
    setattr(compiled, _STAMP_NAME, stamp)
    _mend_cache(compiled, stamp)
    return cast("Callable[P, R]", compiled)


def _widen_integers(compiled: Any) -> None:
    """Let other kernels call this one with int64 for every shorter integer, so that there is one version of it.

    Not a public interface: where it has changed, there are more versions.
    """
    numba: Any = import_module("numba")
    template = getattr(compiled, "get_call_template", None)
    if template is None:
        return

    def widened_template(args: Any, kws: Any) -> Any:
        return template(tuple(widen(arg) for arg in args), kws)

    def widen(arg: Any) -> Any:
        plain = numba.types.unliteral(arg)
        short = isinstance(plain, numba.types.Integer) and plain.bitwidth < 64
        return numba.types.int64 if short else plain

    compiled.get_call_template = widened_template


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


def _mend_cache(compiled: Any, stamp: _Stamp) -> None:
    """Give numba's cache our stamp, and let a full or failing disk cost the cache entry, not the run.

    Not a public interface: where it has changed, numba's own behaviour stands.
    """
    cache = getattr(compiled, "_cache", None)
    cache_file: Any = getattr(cache, "_cache_file", None)
    if hasattr(cache_file, "_source_stamp"):
        cache_file._source_stamp = stamp
    save = getattr(cache, "save_overload", None)
    if cache is None or save is None:
        return

    def save_if_possible(signature: Any, result: Any) -> None:
        with suppress(OSError):
            save(signature, result)

    cache.save_overload = save_if_possible
