"""A capture on disk: its size, the way from the file to the folded state, and the way to the state at a time.

The traffic is that of a paged engine whose free list is first in, first out: prompts take lists of units, decoding
takes one unit a page, ended requests give their tables back from the end, audits ship 128 units a step.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from array import array
from collections import deque
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvmon.capture import CaptureReader, CaptureWriter, StreamFacts
from kvmon.events import Kind, checksum, encode, status_word
from kvmon.state import scan
from tests.benchmarks.table import Row, best_of

CAPACITY, RUNNING, PAGE = 65_536, 256, 16
OPERATIONS = 3_000_000
Words = npt.NDArray[np.uint32]


class Engine:
    """A paged engine that writes frames as a probe does."""

    def __init__(self) -> None:
        self.words = array("I")
        self.operations = self.start = self.frame = self.audited = 0
        self.now, self.last_id = 10**12, 0
        self.free, self.held = deque(range(1, CAPACITY + 1)), bytearray(CAPACITY + 1)
        self.running: dict[int, tuple[list[int], list[int]]] = {}
        self.random = random.Random(1)
        info = {"name": "gpu", "capacity_units": CAPACITY, "unit_tokens": PAGE, "fresh": True}
        self.words.extend(encode(Kind.POOL_ATTACHED, pool=1, restated=0, text=json.dumps(info)))

    def step(self) -> None:
        """Requests end, come and decode; then a slice of the audit, and the frame is closed."""
        for request in [request for request, (_, left) in self.running.items() if left[0] <= 0]:
            units = self.running.pop(request)[0][::-1]
            self.words.extend(encode(Kind.REQUEST_FINISHED, request=request, reason=1, output=300))
            self._units(Kind.UNSHARE, units)
            self.free.extend(units)
        while len(self.running) < RUNNING:
            self._arrive()
        for request, (units, left) in self.running.items():
            left[0] -= 1
            if left[0] % PAGE == 0:
                unit = self.free.popleft()
                self._units(Kind.ALLOC, [unit])
                self.words.extend(encode(Kind.ASSIGN, request=request, group=0, units=(unit,)))
                self._units(Kind.CACHE_INSERT, [units[-1]])
                units.append(unit)
        self._close()

    def _arrive(self) -> None:
        self.last_id += 1
        pages = min(max(2, int(self.random.lognormvariate(3.6, 1.0))), 150)
        units = [self.free.popleft() for _ in range(pages)]
        arrived = {"at": self.now, "class_id": 0, "prompt": pages * PAGE, "limit": 512}
        self.words.extend(encode(Kind.REQUEST_ARRIVED, request=self.last_id, **arrived))
        self.words.extend(encode(Kind.REQUEST_ADMITTED, request=self.last_id))
        self._units(Kind.ALLOC, units)
        self.words.extend(encode(Kind.ASSIGN, request=self.last_id, group=0, units=tuple(units)))
        self._units(Kind.CACHE_INSERT, units[:-1])
        self.words.extend(encode(Kind.REQUEST_PROGRESS, request=self.last_id, computed=pages * PAGE - 1, decoding=1))
        self.running[self.last_id] = (units, [self.random.randint(10, 500)])

    def _units(self, kind: Kind, units: list[int]) -> None:
        self.words.extend(encode(kind, units=units))
        self.operations += len(units)
        for unit in units:
            if kind is Kind.CACHE_INSERT:
                self.held[unit] |= 2
            else:
                self.held[unit] = 1 if kind is Kind.ALLOC else self.held[unit] & 2

    def _close(self) -> None:
        first = self.audited % CAPACITY + 1
        status = [status_word(held & 1, cached=held > 1) for held in self.held[first : first + 128]]
        self.words.extend(encode(Kind.AUDIT_SLICE, start=first, status=status))
        self.audited += 128
        began, took = self.now + self.random.randint(20_000, 90_000), self.random.randint(18_000_000, 25_000_000)
        self.now = began + took + self.random.randint(1_000, 9_000)
        closing = encode(
            Kind.STEP,
            seq=self.frame,
            words=len(self.words) - self.start + 17,
            time=self.now,
            start=began,
            duration=took,
            prefill=self.random.randint(0, 2000),
            decode=len(self.running),
            context=len(self.running) * 900 + self.random.randint(0, 5000),
            running=len(self.running),
            waiting=3,
            checksum=1,
        )
        self.words.extend(closing[:-1])
        self.words.append(checksum(self.words[self.start :]))
        self.start, self.frame = len(self.words), self.frame + 1


DISK_LIMIT = (
    "decompressing, joining of columns and folding share two cores and only partly overlap; to try next: join in the "
    "second thread while the first one folds"
)
SEEK_LIMIT = (
    "the worst of many seeks lies just before a checkpoint and folds all of a chunk; to try next: smaller chunks, "
    "which cost bytes"
)


def rows() -> list[Row]:
    """Figures of a capture of 3 M unit-operations on 65,536 units."""
    engine = Engine()
    while engine.operations < OPERATIONS:
        engine.step()
    words = np.array(engine.words, np.uint32)
    table, million = scan(words), engine.operations / 1e6
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "x.kvmon"

        def write() -> None:
            with CaptureWriter(path, force=True) as writer:
                writer.add_stream(StreamFacts("bench")).write(words, table)

        write()
        writing = best_of(3, write)
        size = path.stat().st_size / engine.operations
        with CaptureReader(path) as reader:
            (stream,) = reader.streams
            plain, full = (
                million / best_of(7, lambda detail=detail: reader.fold(stream, detail=detail))
                for detail in (False, True)
            )
            rng = random.Random(2)
            seeks = []
            for _ in range(40):
                time_ns = rng.randint(int(table.times[0]), int(table.times[-1]))
                begin = time.perf_counter()
                reader.state_at(stream, time_ns)
                seeks.append((time.perf_counter() - begin) * 1e3)
    median, most = sorted(seeks)[20], max(seeks)
    return [
        Row("capture: size", f"{size:.2f} bytes a unit-operation", "2 at most", size <= 2),
        Row("capture: disk to folded state", f"{plain:.0f} M unit-operations/s", "100 M/s", plain >= 100, DISK_LIMIT),
        Row("capture: disk to folded state with detail", f"{full:.0f} M unit-operations/s"),
        Row(
            "capture: state at a time, with detail",
            f"{median:.0f} ms, worst {most:.0f} ms",
            "20 ms",
            most <= 20,
            SEEK_LIMIT,
        ),
        Row("capture: writing, with checkpoints", f"{million / writing:.0f} M unit-operations/s"),
    ]
