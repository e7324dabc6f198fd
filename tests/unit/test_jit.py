"""The kernel decorator: caching where it can, compiling where it cannot, and never running stale code."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import kvmon
from kvmon.allocators import run_pool
from kvmon.jit import inner, is_cached, kernel

PACKAGE = Path(kvmon.__file__).parent

# A child without a home, as nobody where the parent is root, that sees only the copy of the package.
NOBODY = """
import os, sys
import numpy, numba
from collections import namedtuple
# What numba imports late must be loaded before the rights to read it may be gone.
numba.njit(lambda p: p.a[0] + p.b)(namedtuple("P", "a b")(numpy.arange(3), 2))
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
os.environ.pop("HOME", None)
sys.path.insert(0, sys.argv[1])
from kvmon.allocators import run_pool
from kvmon.jit import is_cached
assert run_pool.__file__.startswith(sys.argv[1]), run_pool.__file__
pool = run_pool.new_run_pool(64, 4)
start = run_pool.take_run(pool, run_pool.first_fit(pool, 8), 8)
print(start, run_pool.largest_run(pool), is_cached(run_pool.first_fit))
"""


@pytest.fixture
def read_only_copy() -> Iterator[Path]:
    """A copy of the package that anybody may read and nobody may write."""
    root = Path(tempfile.mkdtemp(prefix="kvmon-read-only-"))
    try:
        shutil.copytree(PACKAGE, root / "kvmon", ignore=shutil.ignore_patterns("__pycache__"))
        for directory, _, files in os.walk(root):
            os.chmod(directory, 0o555)
            for name in files:
                os.chmod(Path(directory) / name, 0o444)
        yield root
    finally:
        for directory, _, _ in os.walk(root):
            os.chmod(directory, 0o755)
        shutil.rmtree(root)


def test_kernels_run_without_home_on_a_read_only_file_system(read_only_copy: Path) -> None:
    """An unprivileged process without HOME compiles for itself where nothing can be written."""
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_CACHE_HOME")}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "NUMBA_CACHE_DIR": "", "HOME": "/nonexistent"}
    done = subprocess.run(
        [sys.executable, "-c", NOBODY, str(read_only_copy)],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["1", "56", "False"]


def test_a_full_disk_costs_the_cache_not_the_run(tmp_path: Path) -> None:
    """Where no file can grow, a kernel is compiled, runs, and is compiled again next time."""
    (tmp_path / "k.py").write_text("from kvmon.jit import kernel\n@kernel\ndef f(x):\n    return x + 1\nprint(f(1))\n")
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); import k"
    done = subprocess.run(
        [sys.executable, "-c", limited],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{PACKAGE.parent}", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "2"), done.stderr[-2000:]
    assert not list(tmp_path.rglob("*.nbc"))


def test_kernels_are_cached_here() -> None:
    """In a writable checkout the machine code is kept."""
    assert is_cached(run_pool.first_fit)


def test_a_changed_callee_is_compiled_again(tmp_path: Path) -> None:
    """When a kernel in another file changes, the kernels that call it do not run their old copy of it."""
    for folder in ("low", "high"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    caller = "from kvmon.jit import kernel\nfrom low.k import f\n@kernel\ndef g(x):\n    return f(x) + 1\nprint(g(1))\n"
    (tmp_path / "high" / "k.py").write_text(caller)
    printed = []
    for factor in (10, 20):
        (tmp_path / "low" / "k.py").write_text(
            f"from kvmon.jit import kernel\n@kernel\ndef f(x):\n    return x * {factor}\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", "import high.k"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{PACKAGE.parent}", "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        printed.append(done.stdout.strip())
    assert printed == ["11", "21"]


def test_a_kernel_that_allocates_does_not_compile() -> None:
    """Kernels own nothing: an allocation inside one is refused when it is compiled, not at run time."""

    @kernel
    def allocates(n: int) -> float:
        return float(np.zeros(n).sum())

    with pytest.raises(Exception, match="nopython"):
        allocates(3)


def test_a_kernel_is_compiled_once_for_integers_of_any_width() -> None:
    """int32 here and int64 there reach a called kernel as int64; the result is the same as without compiling."""

    @inner
    def doubled(n: int) -> int:
        return n * 2

    @kernel
    def both(short: npt.NDArray[np.int32], wide: npt.NDArray[np.int64]) -> int:
        return doubled(short[0]) + doubled(wide[0]) + doubled(1)

    assert both(np.array([2**31 - 1], np.int32), np.array([5], np.int64)) == 2 * (2**31 - 1) + 10 + 2
    assert len(doubled.signatures) == 1  # type: ignore[attr-defined]
