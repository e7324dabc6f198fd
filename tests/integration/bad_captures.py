"""Captures and recordings that are not as they should be, each by name: for the tests of what every verb says of them.

`Inputs` makes one from a small sound capture or recording when it is asked for, and keeps it.
"""

from __future__ import annotations

import gzip
import os
import shutil
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvmon.allocators import PagedConfig
from kvmon.capture import CaptureReader, CaptureWriter, Hole, StreamFacts
from kvmon.capture.layout import FILE_BYTES, TRAILER_BYTES, VERSION, ChunkHeader, ChunkKind
from kvmon.events import Kind, encode
from kvmon.events.wire import FORMAT_VERSION
from kvmon.recording.layout import HEADER_BYTES, LIVE_AT
from kvmon.serving.scenarios import find
from kvmon.state import scan
from tests.unit.capture.traffic import record
from tests.unit.replay.replaying import words_of
from tests.unit.replay.written import Written

__all__ = ["DAMAGED", "NOTHING_THERE", "UNUSABLE", "Inputs"]

Words = npt.NDArray[np.uint32]
WALL_NS = 1_700_000_000_000_000_000
_FRAMES, _CHUNKS = 400, 6
_FILE_CRC_AT, _SEGMENT_CRC_AT = 60, 1020
_SOCKET = "socket"

#: What no verb can use, and what the one line says of it.
UNUSABLE = {
    "missing": "no file|no directory|is not there|^kvmon: no ",
    "empty": "is empty",
    "an empty directory": "holds no stream",
    "a picture": "is no kvmon capture",
    "a text": "is no kvmon capture",
    "a zip": "is no kvmon capture",
    "a gzip": "is no kvmon capture",
    "two bytes": "is no kvmon capture",
    "nearly the magic": "is no kvmon capture",
    "a part of the magic": "is no kvmon capture",
    "a segment": "is no kvmon capture",
    "a damaged magic": "is no kvmon capture",
    "a newer capture": "has capture format 2, this kvmon reads up to 1: upgrade kvmon",
    "a newer recording": "has format 2, this kvmon reads up to 1: upgrade kvmon",
    "/dev/null": "neither a capture nor a directory",
    "/dev/zero": "neither a capture nor a directory",
    "a pipe": "neither a capture nor a directory",
    _SOCKET: "neither a capture nor a directory",
    "a loop of links": "no file|no such path|is not there|^kvmon: no ",
    "a link to nothing": "no file|no directory|is not there|^kvmon: no ",
    "below a file": "no file|is not there|^kvmon: no ",
    "a name that is too long": "no such path",
}
#: What is a capture or a recording, and nothing of it can be read.
NOTHING_THERE = (
    "empty segments",
    "no segments",
    "the magic alone",
    "cut in the header",
    "cut behind the header",
    "cut in the first chunk's header",
    "cut in the description",
)
#: What can be read in part.
DAMAGED = (
    "cut in the frames",
    "cut before the index",
    "cut in the index",
    "a byte short",
    "flipped: the file's header",
    "flipped: STREAM",
    "flipped: FRAMES",
    "flipped: HOLE",
    "flipped: TAIL",
    "flipped: INDEX",
    "flipped: the trailer",
    "flipped: the first frames",
    "flipped: a recording",
    "flipped: the first segment",
)


class Inputs:
    """All of them, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[str, Path] = {}

    def __getitem__(self, name: str) -> Path:
        """The path of the input of this name."""
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    @cached_property
    def words(self) -> Words:
        """The first steps of a simulated run with a refused allocation."""
        words = np.concatenate(words_of(find("partition").setups(0)[0][""]))
        return words[: int(scan(words).ends[_FRAMES - 1])]

    @cached_property
    def chunks(self) -> tuple[ChunkHeader, ...]:
        """The chunks of `sound`."""
        with CaptureReader(self["sound"]) as reader:
            return reader.streams[0].chunks

    def first(self, kind: ChunkKind, place: int = 0) -> ChunkHeader:
        """A chunk of `sound` by its kind, and which of them."""
        return [chunk for chunk in self.chunks if chunk.kind == kind][place]

    def capture(
        self, path: Path, words: Words, *, hole: bool = False, engines: Sequence[tuple[str, int]] = (("sim", 0),)
    ) -> Path:
        """A capture with a few chunks of each kind; with a `hole`, a part of the frames is missing and said to be."""
        table = scan(words)
        with CaptureWriter(path, checkpoint_operations=100, wall=lambda: 0) as writer:
            for engine, rank in engines:
                sink = writer.add_stream(StreamFacts(engine, rank, wall_ns=WALL_NS))
                for place, part in enumerate(np.array_split(np.arange(len(table.ends)), min(_CHUNKS, len(table.ends)))):
                    if hole and place == _CHUNKS - 2:
                        sink.hole(Hole("frames are missing", int(table.numbers[part[0]]), len(part)))
                        continue
                    begin = int(table.ends[part[0] - 1]) if part[0] else 0
                    sink.write(words[begin : int(table.ends[part[-1]])])
                    sink.flush()
                    if place == 2:
                        sink.add_checkpoint()
                last = encode(Kind.REQUEST_ARRIVED, request=1 << 20, at=1, class_id=0, prompt=32, limit=20)
                sink.tail(np.array(last, np.uint32))
        return path

    def _make(self, name: str) -> Path:
        if name in _MAKERS:
            return _MAKERS[name](self, self._folder / name.replace("/", "-"))
        if name.startswith("/dev/"):
            return Path(name)
        path = self._folder / f"{name}.kvmon"
        data = bytearray(self._source(name).read_bytes())
        if name.startswith("flipped: "):
            data[self._flipped(name.removeprefix("flipped: "))] ^= 4
        else:
            del data[self._cut(name) :]
        path.write_bytes(data)
        return path

    def _source(self, name: str) -> Path:
        return self["a hole"] if name == "flipped: HOLE" else self["sound"]

    def _flipped(self, what: str) -> int:
        """Which byte of the capture is flipped."""
        size = self["sound"].stat().st_size
        if what == "HOLE":
            with CaptureReader(self["a hole"]) as reader:
                return next(one for one in reader.streams[0].chunks if one.kind == ChunkKind.HOLE).payload_at + 3
        if what.startswith("the header of "):
            return self.first(ChunkKind[what.removeprefix("the header of ")], -1).offset + 30
        places = {"the file's header": 20, "the trailer": size - TRAILER_BYTES + 2}
        if what in places:
            return places[what]
        if what == "INDEX":
            return self.chunks[-1].end + 100
        first = what == "the first frames"
        kind = ChunkKind.FRAMES if first else ChunkKind[what]
        return self.first(kind, 0 if first or kind != ChunkKind.FRAMES else 3).payload_at + 9

    def _cut(self, name: str) -> int:
        """Where the capture ends."""
        return {
            "cut in the header": 30,
            "cut behind the header": FILE_BYTES,
            "cut in the first chunk's header": FILE_BYTES + 50,
            "cut in the description": self.first(ChunkKind.STREAM).payload_at + 10,
            "cut in the frames": self.first(ChunkKind.FRAMES, 3).payload_at + 10,
            "cut before the index": self.chunks[-1].end,
            "cut in the index": self.chunks[-1].end + 110,
            "a byte short": self["sound"].stat().st_size - 1,
        }[name]


def _bytes(data: bytes) -> Callable[[Inputs, Path], Path]:
    def make(inputs: Inputs, path: Path) -> Path:
        path.write_bytes(data)
        return path

    return make


def _recording(steps: int = 60, **options: str | int) -> Callable[[Inputs, Path], Path]:
    def make(inputs: Inputs, path: Path) -> Path:
        path.mkdir()
        record(path, steps, **options)
        return path

    return make


def _changed_recording(change: Callable[[Path], None]) -> Callable[[Inputs, Path], Path]:
    def make(inputs: Inputs, path: Path) -> Path:
        shutil.copytree(inputs["recording"], path)
        for segment in path.glob("*/*.seg"):
            change(segment)
        return path

    return make


def _of_words(words: Callable[[Inputs], Words], **options: bool | Sequence[tuple[str, int]]) -> Callable[..., Path]:
    return lambda inputs, path: inputs.capture(path.with_suffix(".kvmon"), words(inputs), **options)


def _mixed(inputs: Inputs, path: Path) -> Path:
    path.mkdir()
    for name, rank in (("toy", 0), ("toy", 1), ("other", 0)):
        record(path, 50 + rank, name=name, rank=rank)
    return path


def _newer_capture(inputs: Inputs, path: Path) -> Path:
    data = bytearray(inputs["sound"].read_bytes())
    struct.pack_into("<I", data, 8, VERSION + 1)
    struct.pack_into("<I", data, _FILE_CRC_AT, zlib.crc32(bytes(data[:_FILE_CRC_AT])))
    path.write_bytes(data)
    return path


def _newer_segment(segment: Path) -> None:
    data = bytearray(segment.read_bytes())
    struct.pack_into("<I", data, 8, FORMAT_VERSION + 1)
    covered = bytes(data[:_SEGMENT_CRC_AT]) + bytes(data[2 * LIVE_AT : HEADER_BYTES])
    struct.pack_into("<I", data, _SEGMENT_CRC_AT, zlib.crc32(covered))
    segment.write_bytes(data)


def _flipped_segment(segment: Path) -> None:
    data = bytearray(segment.read_bytes())
    data[HEADER_BYTES + 6000] ^= 4
    segment.write_bytes(data)


def _emptied_segment(segment: Path) -> None:
    segment.write_bytes(b"")


def _zip(inputs: Inputs, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x", "y" * 100)
    return path


def _socket(inputs: Inputs, path: Path) -> Path:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)
    return path


def _link(target: str) -> Callable[[Inputs, Path], Path]:
    def make(inputs: Inputs, path: Path) -> Path:
        path.symlink_to(path.with_name(target) if target else path)
        return path

    return make


def _without_demand(inputs: Inputs) -> Words:
    with Written(PagedConfig(64, 16), config={"fidelity": "exact"}) as stream:
        for place in range(30):
            stream.step(1_000_000 * place, 500_000 + 1000 * place)
    return np.array(stream.words, np.uint32)


def _named(inputs: Inputs, path: Path) -> Path:
    path.mkdir()
    return shutil.copy(inputs["sound"], path / "x y \N{SNOWMAN}.kvmon")


def _first_segment_flipped(inputs: Inputs, path: Path) -> Path:
    shutil.copytree(inputs["several segments"], path)
    segments = sorted(path.glob("*/*.seg"))
    assert len(segments) > 1
    data = bytearray(segments[0].read_bytes())
    data[100] ^= 4
    segments[0].write_bytes(data)
    return path


def _pipe(inputs: Inputs, path: Path) -> Path:
    os.mkfifo(path)
    return path


def _directory(inputs: Inputs, path: Path) -> Path:
    path.mkdir()
    return path


_MAKERS: dict[str, Callable[[Inputs, Path], Path]] = {
    "sound": _of_words(lambda inputs: inputs.words),
    "a hole": _of_words(lambda inputs: inputs.words, hole=True),
    "recording": _recording(),
    "several segments": _recording(200, budget=4 << 20),
    "lost begin": _of_words(lambda inputs: inputs.words[int(scan(inputs.words).ends[5]) :]),
    "no demand": _of_words(_without_demand),
    "several engines": _of_words(lambda inputs: inputs.words, engines=(("a", 0), ("b", 0), ("b", 1))),
    "several recordings": _mixed,
    "fidelity counts": _recording(fidelity="counts"),
    "fidelity cache_only": _recording(fidelity="cache_only"),
    "a path of words \N{SNOWMAN}": _named,
    "missing": lambda inputs, path: path,
    "empty": _bytes(b""),
    "an empty directory": _directory,
    "a picture": _bytes(b"\x89PNG\r\n\x1a\n" + bytes(200)),
    "a text": _bytes(b"hello\n" * 30),
    "a zip": _zip,
    "a gzip": _bytes(gzip.compress(b"x" * 1000)),
    "two bytes": _bytes(b"hi"),
    "nearly the magic": _bytes(b"KVMONCAX" + bytes(300)),
    "a part of the magic": _bytes(b"KVMONC"),
    "the magic alone": _bytes(b"KVMONCAP"),
    "a segment": lambda inputs, path: shutil.copy(next(inputs["recording"].glob("*/*.seg")), path),
    "a damaged magic": lambda inputs, path: _bytes(b"\0" + inputs["sound"].read_bytes()[1:])(inputs, path),
    "a newer capture": _newer_capture,
    "a newer recording": _changed_recording(_newer_segment),
    "a pipe": _pipe,
    _SOCKET: _socket,
    "a loop of links": _link(""),
    "a link to nothing": _link("nothing"),
    "below a file": lambda inputs, path: inputs["sound"] / "x",
    "a name that is too long": lambda inputs, path: path.with_name("x" * 300),
    "empty segments": _changed_recording(_emptied_segment),
    "no segments": _changed_recording(Path.unlink),
    "flipped: the first segment": _first_segment_flipped,
    "flipped: a recording": _changed_recording(_flipped_segment),
}
