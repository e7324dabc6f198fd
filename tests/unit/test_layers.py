"""Who may import whom: the directions of the design, read from the source of every module, functions included."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "kvmon"

# Layer -> the layers that it may use directly; what those may use, it may use too.
DIRECTIONS: dict[str, set[str]] = {
    "errors": set(),
    "units": {"errors"},
    "jit": {"errors"},
    "crc": {"jit"},
    "files": {"errors"},
    "catalog": {"errors"},
    "events": {"errors"},
    "recording": {"events"},
    # a checkpoint in a capture is a state, so a capture folds what it writes
    "capture": {"recording", "state", "jit", "units", "files"},
    "probe": {"recording", "events"},
    "adapters": {"probe", "allocators", "serving", "crc"},
    "allocators": {"errors", "jit", "units"},
    "serving": {"allocators", "files"},
    "engine": {"serving"},
    "simulate": {"serving"},
    "state": {"events", "jit", "units", "crc"},
    "diagnosis": {"state"},
    # a replay simulates what was recorded, and is followed as events, which adapters make
    "replay": {"capture", "state", "diagnosis", "simulate", "adapters"},
    # a page for node_exporter is a file that is whole or not there
    "exporter": {"recording", "state", "diagnosis", "catalog", "alerts", "files"},
    "report": {"replay", "diagnosis"},
    "dashboards": {"catalog"},
    "alerts": {"catalog"},
}
# These may use every layer: the public names (resolved on first use), the command line, and the fakes for tests.
WIRING = {"kvmon", "cli", "__main__", "testing"}
# These live in the engine's process: the standard library alone.
GUESTS = {"events", "recording", "probe"}
# Heavy or optional packages, and the only layers that may name them.
OUTSIDE = {
    "torch": {"engine", "adapters"},
    "triton": {"engine"},
    "safetensors": {"engine"},
    "tokenizers": {"engine"},
    "jinja2": {"engine"},
    "vllm": {"adapters"},
    "sglang": {"adapters"},
    "transformers": {"adapters"},
    "prometheus_client": {"exporter", "cli"},
    "starlette": {"exporter", "engine"},
    "uvicorn": {"exporter", "engine"},
    "pynvml": {"exporter"},
    "numba": {"jit"},
    "click": {"cli"},
    "rich": {"cli", "report"},
    "bcrypt": {"exporter"},
    "markdown_it": {"exporter"},
    "yaml": {"exporter", "alerts", "dashboards"},
    "opentelemetry": {"exporter"},
    "grafana_dashboards": {"dashboards"},
    "pyarrow": {"cli", "replay"},
    "duckdb": {"cli", "replay"},
    "ray": {"cli", "replay"},
    "zstandard": {"capture"},
}
# What `import kvmon` and `kvmon --help` must not bring in.
HEAVY = (
    "numpy",
    "numba",
    "prometheus_client",
    "torch",
    "triton",
    "jinja2",
    "starlette",
    "uvicorn",
    "zstandard",
    "rich",
    "pynvml",
    "yaml",
    "bcrypt",
    "markdown_it",
    "opentelemetry",
)


def layer_of(module: str) -> str:
    """`kvmon.events.wire` is in layer `events`; `kvmon` itself in layer `kvmon`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "kvmon"


def modules() -> Iterator[tuple[str, Path]]:
    """Dotted name and path of every module of the package."""
    # alerts and dashboards are links to folders of the top level, which rglob does not enter
    linked = [path for folder in PACKAGE.iterdir() if folder.is_symlink() for path in folder.rglob("*.py")]
    for path in sorted([*PACKAGE.rglob("*.py"), *linked]):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(module: str, path: Path) -> Iterator[tuple[str, int]]:
    """Dotted name and line of everything that a module imports, wherever in the file."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            if base == "kvmon":
                yield from (
                    (f"kvmon.{alias.name}" if is_module(alias.name) else base, node.lineno) for alias in node.names
                )
            else:
                yield base, node.lineno


def is_module(name: str) -> bool:
    """Whether `from kvmon import name` names a module or package rather than a value."""
    return (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()


def reach(layer: str) -> set[str]:
    """Every layer that `layer` may import: its own, what it may use, and what those may use."""
    seen: set[str] = set()
    todo = [layer]
    while todo:
        current = todo.pop()
        if current not in seen:
            seen.add(current)
            todo.extend(DIRECTIONS[current])
    return seen


ALL = list(modules())


@pytest.mark.parametrize(("module", "path"), ALL, ids=[module for module, _ in ALL])
def test_a_module_imports_only_downwards(module: str, path: Path) -> None:
    """Every import of a kvmon module follows a direction of the design, also inside a function."""
    layer = layer_of(module)
    if layer in WIRING:
        return
    assert layer in DIRECTIONS, f"{module} is in no layer of the design: add '{layer}' to DIRECTIONS"
    allowed = reach(layer) | {"kvmon"}
    wrong = [
        f"{path.name}:{line} imports {target}"
        for target, line in imports(module, path)
        if target.split(".")[0] == "kvmon" and layer_of(target) not in allowed
    ]
    assert not wrong, f"layer {layer} may use {sorted(allowed)}: {wrong}"


@pytest.mark.parametrize(("module", "path"), ALL, ids=[module for module, _ in ALL])
def test_a_module_uses_outside_packages_only_where_they_belong(module: str, path: Path) -> None:
    """The engine's side is the standard library alone, and a heavy package is named by its own layers only."""
    layer = layer_of(module)
    wrong = []
    for target, line in imports(module, path):
        top = target.split(".")[0]
        if top in sys.stdlib_module_names or top == "kvmon":
            continue
        if layer in GUESTS or layer not in OUTSIDE.get(top, {layer}):
            wrong.append(f"{path.name}:{line} imports {target}")
    assert not wrong


def test_no_direction_leads_back() -> None:
    """The layers form no cycle."""
    for layer, uses in DIRECTIONS.items():
        assert all(layer not in reach(below) for below in uses), layer


@pytest.mark.parametrize("module", ["kvmon", "kvmon.cli.main", "kvmon.errors"])
def test_import_brings_in_nothing_heavy(module: str) -> None:
    """Importing the package or the command line leaves every heavy library alone."""
    code = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_import_kvmon_is_fast() -> None:
    """`import kvmon` stays under 50 ms; the best of six, because the machine is shared."""
    code = "import time; start = time.perf_counter(); import kvmon; print(time.perf_counter() - start)"
    seconds = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(6)
    ]
    assert min(seconds) < 0.050
