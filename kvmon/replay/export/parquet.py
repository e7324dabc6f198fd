"""Captures and recordings as Parquet: one file a table, for DuckDB and whatever else reads it.

    OUT/events.parquet ... OUT/streams.parquet              of one capture
    OUT/NAME/events.parquet ... OUT/NAME/streams.parquet    of each of several

The tables are those of `schema.py`. Files are compressed with zstd and written in row groups as the capture is read:
memory does not depend on its length. Invariant: the directory has its name only when all of it is whole; the source is
read and never changed; the same source gives the same rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from kvmon.errors import ConfigError, InputError
from kvmon.replay.export.columns import arrow, arrow_schema
from kvmon.replay.export.directory import NewDirectory
from kvmon.replay.export.following import Follower
from kvmon.replay.export.life_rows import LifeRows
from kvmon.replay.export.schema import TABLES
from kvmon.replay.export.window import Window
from kvmon.replay.lives import open_lives

__all__ = ["FILES", "Exported", "capture_names", "export_parquet"]

FILES = tuple(f"{table}.parquet" for table in TABLES)
"""Names of the files of one capture."""
_ROWS, _CELLS = 1 << 17, 1 << 23  # of a row group, at most
_PARTS = 64  # tables that wait apart: a small one takes far more memory than its rows
_DELTAS = ("time_ns", "frame", "word", "request", "unit", "units", "begin_ns")


@dataclass
class Exported:
    """What came out of one source: rows by table, lives, and what is missing of it, in words."""

    source: Path
    name: str
    rows: dict[str, int] = field(default_factory=dict)
    lives: int = 0
    missing: list[str] = field(default_factory=list)
    bytes: int = 0


def export_parquet(
    sources: Sequence[Path],
    out: Path,
    *,
    every_ns: int = 1_000_000_000,
    window: Window | None = None,
    tables: Collection[str] = tuple(TABLES),
    force: bool = False,
    progress: Callable[[int], None] = lambda words: None,
) -> list[Exported]:
    """Write the directory `out` from capture files or recording directories.

    every_ns    interval of the states, 0 = every frame
    window      only what is in it
    tables      only these (of `schema.TABLES`)
    progress    is told words as they are read

    Raises ConfigError without pyarrow, for a table that is none and for a window that no source has anything in,
    InputError where a source is neither capture nor recording or `out` is taken, SystemRefused where it cannot be
    written.
    """
    unknown = [table for table in tables if table not in TABLES]
    if unknown:
        raise ConfigError(f"'{unknown[0]}' is no table: choose {', '.join(TABLES)}")
    pa = arrow()
    names = capture_names(sources)
    done = []
    with NewDirectory(out, FILES, force=force) as directory:
        for source, name in zip(sources, names, strict=True):
            folder = directory.folder(name if len(sources) > 1 else "")
            try:
                done.append(_export(pa, source, name, folder, every_ns, window, tables, progress))
            except OSError as error:
                raise directory.refused(error) from None
        if window is not None and not any(exported.lives for exported in done):
            raise ConfigError(
                f"nothing was recorded {window}: 'kvmon replay' says from when to when there is something"
            )
    return done


def capture_names(sources: Sequence[Path]) -> list[str]:
    """A name for each source: of its file, with as many folders before it as tell all of them apart.

    Raises ConfigError where two are the same.
    """
    paths = [source.absolute() for source in sources]
    plain = [path.with_suffix("") if path.suffix == ".kvmon" else path for path in paths]
    for depth in range(1, max(len(path.parts) for path in plain) + 1):
        names = ["-".join(part for part in path.parts[-depth:] if part != path.anchor) for path in plain]
        if len(set(names)) == len(names):
            return names
    twice = next(source for place, source in enumerate(sources) if plain[place] in plain[:place])
    raise ConfigError(f"{twice} is given twice, or beside a recording of its name: give each source once")


def _export(
    pa: Any,
    source: Path,
    name: str,
    folder: Path,
    every_ns: int,
    window: Window | None,
    tables: Collection[str],
    progress: Callable[[int], None],
) -> Exported:
    done = Exported(source, name)
    with open_lives(source) as lives, _Files(pa, folder, name, tables) as files:
        bounds = [(None, None)] * len(lives.lives) if window is None else window.of(lives.lives)
        for life, within in zip(lives.lives, bounds, strict=True):
            if within is None:
                continue
            done.lives += 1
            follower = Follower(life, every_ns=every_ns, begin_ns=within[0], end_ns=within[1], progress=progress)
            rows = LifeRows(pa, name, life, follower, files.schemas)
            for batch in follower.batches():
                for table, part in rows.of_batch(batch):
                    files.add(table, part)
            for table, part in rows.at_the_end():
                files.add(table, part)
            done.missing += follower.missing()
        if not lives.lives:
            raise InputError(f"{source} holds nothing that can be read: 'kvmon verify {source}' says what is there")
        done.rows = files.rows
    done.bytes = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    return done


class _Files:
    """The files of one capture: rows wait until they fill a row group.

    A context manager. What it raises at the end is about files that are not whole; nothing of them stays open.
    """

    def __init__(self, pa: Any, folder: Path, name: str, tables: Collection[str]) -> None:
        from kvmon import __version__

        described = {"kvmon.version": __version__, "kvmon.capture": name}
        self.schemas: Mapping[str, Any] = {
            table: arrow_schema(pa, table, described) for table in TABLES if table in tables
        }
        self.rows = dict.fromkeys(self.schemas, 0)
        self._pa = pa
        self._waiting: dict[str, list[Any]] = {table: [] for table in self.schemas}
        self._files: dict[str, BinaryIO] = {}
        self._writers: dict[str, Any] = {}
        try:
            for table, schema in self.schemas.items():
                place = os.open(folder / f"{table}.parquet", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                self._files[table] = os.fdopen(place, "wb")
                self._writers[table] = self._writer(table, schema)
        except BaseException:
            self._let_go()
            raise

    def add(self, table: str, part: Any) -> None:
        """Rows of a table."""
        if table not in self.schemas or not part.num_rows:
            return
        self.rows[table] += part.num_rows
        waiting = self._waiting[table]
        waiting.append(part)
        if sum(one.num_rows for one in waiting) >= self._group(table):
            self._write(table, all_=False)
        elif len(waiting) >= _PARTS:
            waiting[:] = [self._joined(table).combine_chunks()]

    def _writer(self, table: str, schema: Any) -> Any:
        pa = self._pa
        of_words = [field.name for field in schema if pa.types.is_dictionary(field.type)]
        deltas = {name: "DELTA_BINARY_PACKED" for name in _DELTAS if name in schema.names}
        return pa.parquet.ParquetWriter(
            self._files[table],
            schema,
            compression="zstd",
            use_dictionary=of_words,
            column_encoding=deltas,
            version="2.6",
            data_page_version="2.0",
        )

    def _write(self, table: str, *, all_: bool) -> None:
        """Whole row groups, at the end the rest too: a writer keeps something of each until the end."""
        waiting, group = self._waiting[table], self._group(table)
        if waiting:
            joined = self._joined(table)
            rest = 0 if all_ else joined.num_rows % group
            self._writers[table].write_table(joined.slice(0, joined.num_rows - rest), row_group_size=group)
            waiting[:] = [joined.slice(joined.num_rows - rest)] if rest else []
            self._pa.default_memory_pool().release_unused()

    def _group(self, table: str) -> int:
        """Rows of a row group."""
        return min(_ROWS, _CELLS // len(self.schemas[table]))

    def _joined(self, table: str) -> Any:
        return self._pa.concat_tables(self._waiting[table]).unify_dictionaries()

    def __enter__(self) -> _Files:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                for table, writer in self._writers.items():
                    self._write(table, all_=True)
                    writer.close()
                for file in self._files.values():
                    file.flush()
                    os.fsync(file.fileno())
        finally:
            self._let_go()

    def _let_go(self) -> None:
        """Close what is open, whether or not it can be written."""
        for writer in self._writers.values():
            with suppress(OSError, ValueError):  # an ArrowInvalid is a ValueError
                writer.close()
            writer.is_open = False  # or it is closed again when it is collected, and says aloud that it cannot be
        for file in self._files.values():
            with suppress(OSError):
                file.close()
