"""Files that are whole or not there."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmon.errors import InputError, SystemRefused
from kvmon.files import NewFile, write_whole


def test_it_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    """Until then there is no file of that name, and afterwards nothing beside it; only its owner reads it."""
    path = tmp_path / "x"
    file = NewFile(path, "it", force=False)
    file.write(b"one ", b"two")
    assert not path.exists()
    file.close()
    assert path.read_bytes() == b"one two"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("force", [False, True])
def test_only_a_file_is_ever_replaced(tmp_path: Path, force: bool) -> None:
    """A file with force alone; a directory, a pipe and a missing place never."""
    there, pipe = tmp_path / "there", tmp_path / "pipe"
    there.write_text("mine")
    os.mkfifo(pipe)
    for path, says in (
        (tmp_path, "no file"),
        (pipe, "no file"),
        (tmp_path / "no" / "x", "no directory .* for the map"),
    ):
        with pytest.raises(InputError, match=says):
            NewFile(path, "the map", force=force)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    if force:
        write_whole(there, ["yours"], "the map", force=True)
        assert there.read_text() == "yours"
    else:
        with pytest.raises(InputError, match="--force"):
            write_whole(there, ["yours"], "the map", force=False)
        assert there.read_text() == "mine"


@pytest.mark.parametrize("force", [False, True])
def test_a_link_is_not_replaced(tmp_path: Path, force: bool) -> None:
    """Neither one to a file nor one that leads nowhere, and no place is a name."""
    (tmp_path / "real").write_text("mine")
    for name, target in (("link", "real"), ("dangling", "nowhere")):
        (tmp_path / name).symlink_to(target)
        with pytest.raises(InputError, match="is a link"):
            NewFile(tmp_path / name, "it", force=force)
        assert (tmp_path / name).is_symlink()
    for place in (Path(), Path("/"), Path("..")):
        with pytest.raises(InputError, match="no file"):
            NewFile(place, "it", force=force)


def test_a_name_that_is_taken_meanwhile_stays(tmp_path: Path) -> None:
    """What came into being while the file was written is not replaced either."""
    path = tmp_path / "x"
    file = NewFile(path, "it", force=False)
    path.write_text("mine")
    with pytest.raises(InputError, match="exists"):
        file.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"] and path.read_text() == "mine"


def test_parts_that_fail_leave_nothing(tmp_path: Path) -> None:
    """An error between two parts is the caller's, and no file is left."""

    def parts() -> Iterator[str]:
        yield "one"
        raise ValueError("two")

    with pytest.raises(ValueError, match="two"):
        write_whole(tmp_path / "x", parts(), "it", force=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_may_not_be_written(tmp_path: Path) -> None:
    """The machine's refusal is its own error."""
    tmp_path.chmod(0o500)
    with pytest.raises(SystemRefused, match="cannot write"):
        NewFile(tmp_path / "x", "it", force=False)
    tmp_path.chmod(0o700)
