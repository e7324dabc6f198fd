"""Frames as columns, and back: what stands in a chunk before it is compressed.

    payload  7 numbers of 4 bytes (bits that tell units apart, then the length of each column), then the columns:

    ops      1 byte a record: its operation where that is below 31, else its kind (31: its header stands in `raw`)
    counts   lengths of lists, runs and long records, as the difference to the last one of the same operation;
             numbers of pools
    units    units of short records, lists and block tables, as the difference to a guess (`prediction`)
    fields   the fields of long records: by kind and by field, each as the difference to the same field of the
             last record of its kind; of a STEP the start to the end of the step before, the end to the start plus
             the duration
    status   status words of audits, as they are
    raw      hashes, text and all that is not known, as it is

All but `ops` and `raw` are numbers of 32 bits (differences zigzag) and stand as planes: 1 byte says how many there
are, then all lowest bytes, all second bytes, and so on as far as the largest number of the column needs. Invariant:
joining what was split gives the words, bit for bit, for everything that `frames.scan` passes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from kvmon.capture import column_kernels as kernels
from kvmon.capture.column_kernels import LEAST_FRAME_WORDS, SHAPES, make_book
from kvmon.capture.prediction import MOST_BITS, Learned, guess_bits
from kvmon.errors import CaptureError

__all__ = ["Joiner", "Splitter", "merge_planes", "split_planes"]

_NUMBERS = 7
_HEAD = 4 * _NUMBERS
_FOREVER = (1 << 63) - 1

Words = npt.NDArray[np.uint32]
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


class Splitter:
    """Makes payloads of frames; keeps its room between chunks, because touching new memory costs more than the work."""

    def __init__(self) -> None:
        self._ops, self._columns = np.empty(0, np.uint8), [np.empty(0, np.uint32) for _ in range(5)]
        self._learned = Learned.make()

    def split(self, words: Words) -> bytes:
        """The payload of a chunk that holds these whole frames, which `frames.scan` has passed.

        Raises CaptureError where a word begins no record.
        """
        if len(words) > len(self._ops):
            self._ops, self._columns = (
                np.empty(len(words), np.uint8),
                [np.empty(len(words), np.uint32) for _ in range(5)],
            )
        records, used = np.zeros(256, np.int64), np.zeros(8, np.int64)
        bits = guess_bits(kernels.survey(words, records))
        learned = self._learned.begin(bits)
        counts, units, fields, status, raw = self._columns
        if not kernels.split(
            words, SHAPES, self._ops, counts, units, fields, status, raw, used, learned, make_book(records)
        ):
            raise CaptureError(
                "these words are no whole frames: check them with kvmon.state.scan before they are written"
            )
        parts = [np.array([bits, *used[:6]], np.uint32).tobytes(), self._ops[: used[0]].tobytes()]
        for column, length in zip(self._columns[:4], used[1:5].tolist(), strict=True):
            planes = (int(column[:length].max()).bit_length() + 7) // 8 if length else 0
            parts += [bytes([planes]), split_planes(column[:length], planes)]
        return b"".join([*parts, self._columns[4][: used[5]].tobytes()])


class Joiner:
    """Makes frames of payloads; keeps its room between chunks."""

    def __init__(self) -> None:
        self._columns = [np.empty(0, np.uint32) for _ in range(4)]
        self._learned = Learned.make()

    def join(self, payload: bytes, out: Words, until_ns: int | None = None) -> Ints:
        """Fill `out` with the words of a payload; a table of their frames: rows of end (exclusive), number, time in ns.

        With `until_ns`, the first frame that ended later is the last one that is made.

        Raises CaptureError where the payload contradicts itself.
        """
        (table,) = self.parts(payload, out, until_ns, len(out))
        return table

    def parts(self, payload: bytes, out: Words, until_ns: int | None, words: int) -> Iterator[Ints]:
        """The same in parts of about so many words, as they are made: a table of the frames of each."""
        try:
            bits, ops, columns, raw = self._parse(payload, len(out))
        except (ValueError, IndexError) as error:
            raise CaptureError(f"a chunk's columns are no columns of kvmon: {error}") from None
        book = make_book(np.bincount(ops, minlength=256) * (np.arange(256) > 31))
        needed = int((np.bincount(ops, minlength=256) * SHAPES[:, 0]).sum())
        if not 0 < bits <= MOST_BITS or needed != len(columns[2]):
            raise CaptureError("a chunk's columns contradict each other")
        frames = np.empty((3, len(out) // LEAST_FRAME_WORDS + 1), np.int64)
        counts, units, fields, status = columns
        until = _FOREVER if until_ns is None else until_ns
        learned, cursor, got = self._learned.begin(bits), np.zeros(6, np.int64), 0
        while cursor[0] >= 0:
            got, count = kernels.join(
                ops,
                counts,
                units,
                fields,
                status,
                raw,
                SHAPES,
                out,
                frames,
                learned,
                book,
                until,
                got + words,
                cursor,
            )
            if got < 0 or (cursor[0] < 0 and got != len(out) and until_ns is None):
                raise CaptureError("a chunk's columns contradict each other")
            table: Ints = frames[:, :count].copy()
            yield table

    def _parse(self, payload: bytes, words: int) -> tuple[int, Bytes, list[Words], Words]:
        data = np.frombuffer(payload, np.uint8)
        bits, n_ops, *lengths, n_raw = np.frombuffer(payload, np.uint32, _NUMBERS).tolist()
        ops, at = data[_HEAD : _HEAD + n_ops], _HEAD + n_ops
        columns = []
        for which, length in enumerate(lengths):
            planes = int(data[at])
            if planes > 4 or length > words or at + 1 + planes * length > len(data):
                raise ValueError("a column ends beyond the payload")
            if len(self._columns[which]) < length:
                self._columns[which] = np.empty(length + length // 4, np.uint32)
            column = self._columns[which][:length]
            merge_planes(data[at + 1 :], planes, column)
            columns.append(column)
            at += 1 + planes * length
        return bits, ops, columns, data[at : at + 4 * n_raw].copy().view(np.uint32)


def split_planes(column: Words, planes: int = 4) -> bytes:
    """The lowest `planes` bytes of all numbers, plane by plane."""
    parts: Bytes = column.view(np.uint8).reshape(-1, 4).T[:planes]
    return parts.tobytes()


def merge_planes(data: Bytes, planes: int, out: Words) -> None:
    """The other way: fill `out` with numbers from their planes at the start of `data`."""
    n = len(out)
    parts = [data[n * plane : n * (plane + 1)] for plane in range(planes)]
    if planes == 4:
        kernels.merge_4(parts[0], parts[1], parts[2], parts[3], out)
    elif planes == 3:
        kernels.merge_3(parts[0], parts[1], parts[2], out)
    elif planes == 2:
        kernels.merge_2(parts[0], parts[1], out)
    elif planes == 1:
        kernels.merge_1(parts[0], out)
    else:
        out[:] = 0
