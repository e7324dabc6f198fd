"""Arrow columns and tables from numpy arrays, by the schema. Needs pyarrow; the only module here that makes its types.

Invariant: a table has the columns of its schema, in their order and no others; in an array of integers a negative
number is nothing, in one of floats NaN is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kvmon.errors import ConfigError
from kvmon.replay.export.schema import SCHEMA_VERSION, TABLES, Column

__all__ = ["arrow", "arrow_schema", "constant", "floats", "integers", "table_of", "times", "words"]

Ints = npt.NDArray[np.int64]


def arrow() -> Any:
    """The module pyarrow. Raises ConfigError without it."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("Parquet needs pyarrow: pip install 'kvmon[export]'") from None
    return pyarrow


def arrow_schema(pa: Any, table: str, metadata: Mapping[str, str]) -> Any:
    """The schema of a table with `metadata`; units and meanings stand at the columns."""
    fields = []
    for column in TABLES[table]:
        said = {"unit": column.unit, "meaning": column.meaning}
        kept = {key: text for key, text in said.items() if text}
        fields.append(pa.field(column.name, _type(pa, column), metadata=kept or None))
    described = {"kvmon.table": table, "kvmon.schema": str(SCHEMA_VERSION), **metadata}
    return pa.schema(fields, metadata=described)


def table_of(pa: Any, schema: Any, count: int, columns: Mapping[str, Any]) -> Any:
    """A table of `count` rows; a column that is not given is absent throughout."""
    arrays = []
    for field in schema:
        array = columns.get(field.name)
        arrays.append(pa.nulls(count, field.type) if array is None else array)
    return pa.Table.from_arrays(arrays, schema=schema)


def integers(pa: Any, values: npt.NDArray[Any], type_: Any = None) -> Any:
    """A column of numbers of 64 bits, or of another type; a negative one is nothing."""
    return _masked(pa, values, values < 0, type_ or pa.int64())


def floats(pa: Any, values: npt.NDArray[np.float64]) -> Any:
    """A column of floats; NaN is nothing."""
    return _masked(pa, values, np.isnan(values), pa.float64())


def times(pa: Any, values: Ints, known: bool) -> Any:
    """A column of moments, ns since 1970."""
    return pa.array(values, pa.int64()).cast(_time(pa)) if known else pa.nulls(len(values), _time(pa))


def words(pa: Any, codes: npt.NDArray[Any], names: Sequence[str]) -> Any:
    """A column of words: the names of codes; a code that has no name is nothing."""
    there = (codes >= 0) & (codes < len(names))
    places = _masked(pa, codes, ~there, pa.int32())
    return pa.DictionaryArray.from_arrays(places, pa.array(names, pa.string()))


def constant(pa: Any, count: int, word: str) -> Any:
    """A column of the same word."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([word], pa.string()))


def _masked(pa: Any, values: npt.NDArray[Any], nothing: npt.NDArray[np.bool_], type_: Any) -> Any:
    plain = values.astype(type_.to_pandas_dtype(), copy=True)  # an array of Arrow keeps the memory it was given
    return pa.array(plain, type_, mask=nothing) if nothing.any() else pa.array(plain, type_)


def _time(pa: Any) -> Any:
    return pa.timestamp("ns", tz="UTC")


def _type(pa: Any, column: Column) -> Any:
    return {
        "word": pa.dictionary(pa.int32(), pa.string()),
        "text": pa.string(),
        "int": pa.int64(),
        "small": pa.int32(),
        "float": pa.float64(),
        "bool": pa.bool_(),
        "time": _time(pa),
    }[column.type]
