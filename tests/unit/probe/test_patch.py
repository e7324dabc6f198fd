"""Reversible patching."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest

from kvmon.probe import Patches


def make_engine() -> type:
    """A fresh engine class with every sort of function."""

    class Base:
        def inherited(self, units: int) -> int:
            return units + 1

    class Engine(Base):
        def allocate(self, count: int, *, strict: bool = False) -> list[int]:
            if count < 0:
                raise ValueError("negative")
            return [*range(count), int(strict)]

        @staticmethod
        def static(value: int) -> int:
            return value * 2

        @classmethod
        def of_class(cls, value: int) -> tuple[str, int]:
            return cls.__name__, value

    return Engine


NAMES = ("allocate", "inherited", "static", "of_class")


def use(engine: Any) -> list[object]:
    """What an engine answers."""
    return [
        engine.allocate(2),
        engine.allocate(count=1, strict=True),
        engine.inherited(4),
        engine.static(5),
        type(engine).static(6),
        engine.of_class(7),
    ]


def test_hooks_see_and_change_nothing() -> None:
    """Hooks get the caller's arguments and the result; the caller gets what it would have got."""
    engine, seen = make_engine(), []
    expected = use(engine())
    patches = Patches()
    for name in NAMES:
        patches.hook(
            engine,
            name,
            before=lambda *args, **kwargs: seen.append((args, kwargs)),
            after=lambda result, *args, **kwargs: seen.append(result),
        )
    patched = engine()
    assert use(patched) == expected
    assert seen[:2] == [((patched, 2), {}), [0, 1, 0]]
    assert seen[2:4] == [((patched,), {"count": 1, "strict": True}), [0, 1]]
    assert engine.allocate.__name__ == "allocate"


def test_undo_restores_exactly() -> None:
    """Afterwards every attribute is the object it was, and an inherited one is inherited again."""
    engine = make_engine()
    before = dict(vars(engine))
    patches = Patches()
    for name in NAMES:
        patches.hook(engine, name, before=lambda *a, **k: None)
        patches.wrap(engine, name, lambda original: lambda *a, **k: original(*a, **k))
    assert "inherited" in vars(engine)
    assert patches.undo() == []
    after = dict(vars(engine))
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    assert patches.undo() == []


def test_undo_leaves_what_somebody_put_on_top() -> None:
    """A patch under somebody else's stays, is named, and only forwards from then on."""
    engine, seen = make_engine(), []
    patches = Patches()
    patches.hook(engine, "allocate", before=lambda *a, **k: seen.append(a))
    patches.hook(engine, "inherited", before=lambda *a, **k: seen.append(a))
    ours = engine.allocate

    def theirs(self: object, *args: object, **kwargs: object) -> object:
        return ours(self, *args, **kwargs)

    engine.allocate = theirs
    assert patches.undo() == ["Engine.allocate"]
    assert engine.allocate is theirs
    assert "inherited" not in vars(engine)
    assert engine().allocate(1) == [0, 0]
    assert seen == []


def test_failing_body_is_switched_off_alone() -> None:
    """A body that raises is asked once, counted once, and leaves the others on."""
    engine, seen, failed = make_engine(), [], []
    patches = Patches(failed.append)

    def broken(*args: object, **kwargs: object) -> None:
        seen.append("broken")
        raise RuntimeError("not this version")

    patches.hook(engine, "allocate", before=broken, after=lambda *a, **k: seen.append("after"))
    patches.hook(engine, "inherited", after=lambda *a, **k: seen.append("inherited"))
    patches.hook(engine, "static", after=broken)
    expected = use(make_engine()())
    assert use(engine()) == expected
    assert use(engine()) == expected
    assert seen == ["broken", "inherited", "broken", "inherited"]
    assert failed == patches.failed == ["Engine.allocate", "Engine.static"]


def test_what_the_original_raises_is_raised() -> None:
    """The engine's own exceptions pass through, and no result is reported for them."""
    engine, seen = make_engine(), []
    patches = Patches()
    patches.hook(engine, "allocate", before=lambda *a: seen.append("before"), after=lambda *a: seen.append("after"))
    with pytest.raises(ValueError, match="negative"):
        engine().allocate(-1)
    assert seen == ["before"]
    assert patches.failed == []


def test_instances_and_modules() -> None:
    """One object or a module can be patched without touching its class."""
    engine, seen = make_engine(), []
    one, other = engine(), engine()
    module = types.ModuleType("m")
    function: Callable[[int], int] = lambda value: value + 1  # noqa: E731
    module.add = function  # type: ignore[attr-defined]
    patches = Patches()
    patches.hook(one, "allocate", after=lambda result, *a, **k: seen.append((result, a)))
    patches.hook(module, "add", before=lambda value: seen.append(value))
    assert one.allocate(1) == other.allocate(1) == [0, 0]
    assert module.add(3) == 4
    assert seen == [([0, 0], (1,)), 3]
    assert patches.undo() == []
    assert vars(one) == {}
    assert module.add is function


def test_name_that_is_not_there() -> None:
    """An engine of another version is told apart by an AttributeError, before anything is changed."""
    engine = make_engine()
    with pytest.raises(AttributeError):
        Patches().hook(engine, "gone", before=lambda *a: None)
