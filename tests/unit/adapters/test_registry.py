"""What users call: settings by name, and no engine that is kept by whoever watches it."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

from kvmon.adapters import registry
from kvmon.adapters.base import Attachment, Declaration
from kvmon.adapters.settings import Settings
from kvmon.errors import ConfigError


class Engine:
    """Has one method that could be patched."""

    watched: Any = None


class _Attached(Attachment):
    grade, why = "exact", ""

    def __init__(self, engine: Any, settings: Settings) -> None:
        self.settings, self.detached = settings, 0
        self.engine = weakref.ref(engine)
        engine.watched = self  # as a hook would keep it

    def detach(self) -> list[str]:
        self.detached += 1
        return []


class _Adapter:
    declaration = Declaration("toy", "Toy", (), "toy", (1,), (2,), "an Engine", {})

    def recognises(self, engine: object) -> bool:
        return isinstance(engine, Engine)

    def attach(self, engine: object, settings: Settings) -> Attachment:
        return _Attached(engine, settings)


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "adapters", lambda: iter([_Adapter()]))
    monkeypatch.setattr(registry, "_attached", [])


def test_settings_by_name(tmp_path: Path) -> None:
    """Each field of `Settings`, and a line for one that is not there."""
    made = registry.attach(Engine(), tmp_path, "name", budget=1 << 21, class_by="length", group_readable=True)
    assert isinstance(made, _Attached)
    assert made.settings == Settings(tmp_path, "name", 1 << 21, group_readable=True, class_by="length")
    wrong: dict[str, Any] = {"budgets": 1}
    with pytest.raises(ConfigError, match="knows no setting 'budgets'"):
        registry.attach(Engine(), tmp_path, **wrong)


def test_detached_by_engine_by_attachment_or_all(tmp_path: Path) -> None:
    """Each once; what is not attached is said."""
    engines = [Engine() for _ in range(4)]
    made = [registry.attach(engine, tmp_path) for engine in engines]
    assert registry.attached() == made
    registry.detach(engines[2])
    registry.detach(made[0])
    with pytest.raises(ConfigError, match="is not attached"):
        registry.detach(engines[2])
    registry.detach()
    assert [one.detached for one in made if isinstance(one, _Attached)] == [1, 1, 1, 1]
    assert registry.attached() == []


def test_an_engine_that_its_owner_lets_go_is_gone(tmp_path: Path) -> None:
    """And with it what watched it; an attachment that ended before its engine is detached without a word."""
    engine, ended = Engine(), Engine()
    gone = weakref.ref(engine)
    registry.attach(engine, tmp_path)
    registry.attach(ended, tmp_path)
    del engine, ended.watched
    gc.collect()
    assert gone() is None and registry.attached() == []
    assert registry.detach(ended) == []
