"""What a module promises: `__all__` lists its public names, and each of them says what it is."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import kvmon

PACKAGE = Path(kvmon.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in MODULES]


def public_names(tree: ast.Module, *, package: bool) -> tuple[set[str], set[str]]:
    """Public names that a module must list (functions, classes, a package's re-exports) and may list (constants)."""
    must: set[str] = set()
    may: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            must.add(node.name)
        elif isinstance(node, ast.Assign):
            may |= {name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            may.add(node.target.id)
        elif package and isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kvmon."):
            must |= {alias.asname or alias.name for alias in node.names}
    return {name for name in must if not name.startswith("_")}, may


def declared(tree: ast.Module) -> list[str] | None:
    """The value of `__all__`, None where there is none."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    return None


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_all_names_what_is_public(path: Path) -> None:
    """`__all__` lists every public function, class and re-export, and nothing that is not there."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = path.name == "__init__.py"
    must, may = public_names(tree, package=package)
    names = declared(tree)
    if names is None:
        assert not (package and must), "a package that has public names lists them in __all__"
        return
    assert len(names) == len(set(names)), "a name stands in __all__ twice"
    # These packages resolve their names on first use, so their source does not bind them.
    lazy = set(names) if path in (PACKAGE / "__init__.py", PACKAGE / "engine" / "__init__.py") else set()
    assert must <= set(names)
    assert set(names) <= must | may | lazy


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_public_objects_say_what_they_are(path: Path) -> None:
    """The module, and each public function, class and method has a docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert path.name == "__init__.py" or ast.get_docstring(tree), "the module has no docstring"
    silent = []
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            silent.append(node.name)
        if isinstance(node, ast.ClassDef):
            silent += [
                f"{node.name}.{method.name}"
                for method in node.body
                if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef)
                and not method.name.startswith("_")
                and not ast.get_docstring(method)
            ]
    assert not silent


def test_names_of_the_package_resolve_on_first_use() -> None:
    """Every name of `kvmon.__all__` exists, and an unknown one is an AttributeError."""
    for name in kvmon.__all__:
        assert getattr(kvmon, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = kvmon.no_such_name
