"""What is wrong with a source, said in one line: which file, where in it, and what to write instead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

from kvmon.errors import InputError

__all__ = ["SourceError", "nearest", "within"]


class SourceError(InputError):
    """A source cannot be built. `file` is where it stands, `keys` lead to it from the outermost one."""

    def __init__(self, message: str, *, file: str = "", keys: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.message, self.file, self.keys = message, file, keys

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, " / ".join(filter(None, self.keys)), self.message) if part)


@contextmanager
def within(key: str, file: str = "") -> Iterator[None]:
    """Name the key (empty: none), and perhaps the file, in which whatever goes wrong inside the block stands.

    The innermost file counts: what a dashboard takes from another file is wrong there.
    """
    try:
        yield
    except SourceError as error:
        keys = error.keys if error.file else (key, *error.keys)
        raise SourceError(error.message, file=error.file or file, keys=keys) from None


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint at what was meant by a name that is not known."""
    names = sorted(known)
    near = get_close_matches(name, names, n=2, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else f"it may be {', '.join(names)}"
