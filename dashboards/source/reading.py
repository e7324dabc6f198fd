"""Reads the sources: YAML without Python tags, every key once, every component of a kind that exists.

    - name: kvmon-pool          how others refer to it
      dashboard: {...}          its kind and its data

Invariant: nothing is skipped. A file, a kind or a name that cannot be used is an error that says where it stands.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from kvmon.dashboards.source.trouble import SourceError, nearest, within
from kvmon.dashboards.source.upstream import ComponentRegistry, get_component_type

__all__ = ["Registry", "Verbatim", "spelled_out"]


_TOP = ("project", "dashboard", "rows", "panels", "targets", "templates", "annotations", "links")


class Verbatim:
    """Text with braces. The library would format it; PromQL and legends are full of braces that mean themselves."""

    def __init__(self, text: str) -> None:
        self.text = text


def spelled_out(value: Any) -> Any:
    """The same data with plain text for every `Verbatim`."""
    if isinstance(value, Verbatim):
        return value.text
    if isinstance(value, dict):
        return {key: spelled_out(part) for key, part in value.items()}
    return [spelled_out(part) for part in value] if isinstance(value, list) else value


class _Loader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, and text with braces stays as it is."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key '{key.value}' stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def text(self, node: yaml.ScalarNode) -> str | Verbatim:
        """A string, opaque where it has braces."""
        value = str(self.construct_scalar(node))
        return Verbatim(value) if "{" in value or "}" in value else value


_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.text)


class Registry(ComponentRegistry):
    """Components by kind and name, and the file that each stands in."""

    def __init__(self) -> None:
        super().__init__()
        self._files: dict[tuple[str, str], str] = {}

    def read(self, path: Path, called: str) -> None:
        """Add what a file holds; messages call it `called`. Raises SourceError for what cannot be used."""
        try:
            content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        except (OSError, UnicodeDecodeError) as error:
            raise SourceError(f"cannot be read: {error}", file=called) from None
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise SourceError(f"line {line}: {error.problem or error.context}", file=called) from None
        if not isinstance(content, list):
            raise SourceError("is not a list of components: begin each with '- name:'", file=called)
        for number, component in enumerate(content, 1):
            with within(f"component {number}", called):
                self._take(component, called)

    def children(self, container: Any, items: Any) -> list[Any]:
        """The JSON of a list of inline and named components, such as the panels of a row."""
        kind = get_component_type(container)
        if not isinstance(items, list):
            raise SourceError(f"'{kind}' is not a list")
        made: list[Any] = []
        for item in items:
            name = item if isinstance(item, str) else next(iter(item)) if isinstance(item, dict) and item else None
            if name is None or (isinstance(item, dict) and len(item) != 1):
                raise SourceError(f"an item of '{kind}' wants one key, the kind of what it is, or a name, not {item!r}")
            kinds = self._kinds_in(container)
            if name in kinds:
                made += self.create_component(container, {kind: [item]}).gen_json()
                continue
            known = {there for what, there in self._files if what == kind}
            if name not in known:
                raise SourceError(f"there is no '{name}' among '{kind}': {nearest(name, known | kinds)}")
            with within(f"{kind} '{name}'", self._files[kind, name]):
                made += self.children(container, self.get_component(container, name).data)
        return made

    def _take(self, component: Any, called: str) -> None:
        if not isinstance(component, dict) or len(component) != 2 or not isinstance(component.get("name"), str):
            raise SourceError("wants two keys: 'name', and its kind with its data")
        kind = next(key for key in component if key != "name")
        if kind not in _TOP:
            raise SourceError(f"there is no kind '{kind}': {nearest(str(kind), _TOP)}")
        if (kind, component["name"]) in self._files:
            there = self._files[kind, component["name"]]
            raise SourceError(f"there is a {kind} '{component['name']}' in {there} already: give it another name")
        self._files[kind, component["name"]] = called
        self.add(component)

    def file_of(self, kind: str, name: str) -> str:
        """The file that a named component stands in."""
        return self._files[kind, name]

    def _kinds_in(self, container: Any) -> set[str]:
        """Kinds of items that kvmon has for a container; the library's own make what Grafana no longer draws."""
        kind = get_component_type(container)
        items = self.create_component(container, {kind: []}).component_item_types
        return {item for item in items if hasattr(self._types[item], "required")}
