"""Keyed hashes of prefix pages."""

from __future__ import annotations

import os
import stat
from hashlib import blake2b
from pathlib import Path
from threading import Barrier, Thread

import pytest

from kvmon.probe import PageHasher

PAGES = [bytes([number]) * 64 for number in range(20)]


def test_hashes_are_keyed_blake2b(tmp_path: Path) -> None:
    """Two words a page, low half first, of the BLAKE2b of the page under the directory's key."""
    words = PageHasher(tmp_path).words(PAGES, 100)
    key = (tmp_path / "key").read_bytes()
    assert len(key) == 32
    for number, page in enumerate(PAGES):
        expected = int.from_bytes(blake2b(page, key=key, digest_size=8).digest(), "little")
        assert words[2 * number] | words[2 * number + 1] << 32 == expected


def test_key_is_private_and_kept(tmp_path: Path) -> None:
    """The key is made once, for its owner alone; nothing else is left in the directory."""
    first = PageHasher(tmp_path).words(PAGES, 9)
    assert PageHasher(tmp_path).words(PAGES, 9) == first
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["key"]


def test_other_directories_have_other_keys(tmp_path: Path) -> None:
    """The same page has another name in another recording."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    assert PageHasher(one).words(PAGES, 1) != PageHasher(two).words(PAGES, 1)


def test_key_is_made_once_by_many(tmp_path: Path) -> None:
    """However many begin at the same moment, all of them hash alike."""
    barrier, results = Barrier(8), []

    def begin() -> None:
        barrier.wait()
        results.append(PageHasher(tmp_path).words(PAGES, 4).tolist())

    threads = [Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all(result == results[0] for result in results)


def test_limit_is_kept_and_counted(tmp_path: Path) -> None:
    """No more pages than the limit are hashed, and not one more is asked for than it takes to know that there are
    more.
    """
    hasher, asked = PageHasher(tmp_path), []

    def pages() -> object:
        for page in PAGES:
            asked.append(page)
            yield page

    assert len(hasher.words(pages(), 5)) == 10  # type: ignore[arg-type]
    assert len(asked) == 6
    assert hasher.cut == 1
    assert len(hasher.words(PAGES, len(PAGES))) == 2 * len(PAGES)
    assert hasher.cut == 1


@pytest.mark.parametrize("spoil", ["missing", "short", "readable", "symlink", "directory"])
def test_no_key_no_hashes(tmp_path: Path, spoil: str) -> None:
    """A directory that cannot hold a key, or holds one that others could know, gives no hashes, and that is counted."""
    directory, key = tmp_path / "d", tmp_path / "d" / "key"
    if spoil != "missing":
        directory.mkdir()
    if spoil == "short":
        key.write_bytes(b"x")
        key.chmod(0o600)
    elif spoil == "readable":
        key.write_bytes(bytes(32))
        key.chmod(0o644)
    elif spoil == "symlink":
        (tmp_path / "planted").write_bytes(bytes(32))
        (tmp_path / "planted").chmod(0o600)
        key.symlink_to(tmp_path / "planted")
    elif spoil == "directory":
        key.mkdir()
    hasher = PageHasher(directory)
    assert not hasher.available
    assert len(hasher.words(PAGES, 9)) == 0
    assert hasher.refused == 1


def test_pages_that_are_no_bytes(tmp_path: Path) -> None:
    """A hook that passes nonsense is counted, not raised at."""
    hasher = PageHasher(tmp_path)
    assert len(hasher.words(["text"], 9)) == 0  # type: ignore[list-item]
    assert len(hasher.words(None, 9)) == 0  # type: ignore[arg-type]
    assert hasher.refused == 2
