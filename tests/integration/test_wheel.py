"""What `pip install kvmon` brings: one package, typed, whose probe needs nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from kvmon import __version__

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that the checkout stays clean."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("kvmon", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    target = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        target,
        source,
    ]
    subprocess.run(command, check=True)
    return next(target.glob("kvmon-*.whl"))


@pytest.fixture(scope="module")
def empty_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a virtual environment that holds the wheel and nothing else."""
    folder = tmp_path_factory.mktemp("empty")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True)
    return python


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    """The only top-level package is kvmon, every source file and the typing marker are in it, and no test is."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0] for name in names} == {"kvmon", f"kvmon-{__version__}.dist-info"}
    assert "kvmon/py.typed" in names
    assert not [name for name in names if "test_" in name]
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "kvmon").rglob("*.py")}
    assert sources <= names


def test_the_probe_imports_without_any_dependency(empty_python: Path, tmp_path: Path) -> None:
    """In an empty environment `kvmon.probe` imports, from the wheel."""
    code = "import kvmon, kvmon.probe; print(kvmon.__file__)"
    done = subprocess.run([empty_python, "-I", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(empty_python.parents[1]) in done.stdout


def test_the_console_script_runs_with_the_dependencies(empty_python: Path, tmp_path: Path) -> None:
    """With the dependencies beside it the installed `kvmon` prints its help."""
    # The path of this environment's packages, read without its .pth files: kvmon itself comes from the wheel.
    packages = str(Path(pytest.__file__).parents[1])
    done = subprocess.run(
        [empty_python.with_name("kvmon"), "--help"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": packages},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: kvmon")
