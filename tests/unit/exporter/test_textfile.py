"""A page as a file: whole, readable by others, and never something half."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvmon.errors import ConfigError, InputError
from kvmon.exporter.textfile import write_page


def test_the_file_is_replaced_and_everyone_may_read_it(tmp_path: Path) -> None:
    """0644 even under a strict umask, because node_exporter is somebody else; an old page gives way."""
    file = tmp_path / "kvmon.prom"
    before = os.umask(0o077)
    try:
        write_page(file, b"a 1\n")
        write_page(file, b"b 2\n")
    finally:
        os.umask(before)
    assert file.read_bytes() == b"b 2\n"
    assert file.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["kvmon.prom"]


@pytest.mark.parametrize("name", ["kvmon.txt", "kvmon", ".prom", "kvmon.prom.new"])
def test_a_name_that_node_exporter_does_not_read_is_refused(tmp_path: Path, name: str) -> None:
    """A page under another name would be written each minute and read by nobody."""
    with pytest.raises(ConfigError, match=r"does not end in \.prom: node_exporter would not read it"):
        write_page(tmp_path / name, b"a 1\n")
    assert list(tmp_path.iterdir()) == []


def test_a_link_and_a_missing_directory_are_refused(tmp_path: Path) -> None:
    """What a link points to is not replaced, and nothing is left behind."""
    target, link = tmp_path / "target", tmp_path / "kvmon.prom"
    target.write_text("mine")
    link.symlink_to(target)
    with pytest.raises(InputError, match="is a link"):
        write_page(link, b"a 1\n")
    with pytest.raises(InputError, match="no directory"):
        write_page(tmp_path / "none" / "kvmon.prom", b"a 1\n")
    assert target.read_text() == "mine" and len(list(tmp_path.iterdir())) == 2


def test_while_it_is_written_its_name_is_not_one_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """node_exporter reads `*.prom`: a page in the making has another name, and a failed one vanishes."""
    seen: list[str] = []

    def failing(fd: int) -> None:
        seen.extend(path.name for path in tmp_path.iterdir())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(Exception, match="the disk is full"):
        write_page(tmp_path / "kvmon.prom", b"a 1\n")
    assert len(seen) == 1 and not seen[0].endswith(".prom")
    assert list(tmp_path.iterdir()) == []
