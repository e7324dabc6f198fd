"""Nobody can find in a bundle what its source was marked with: not as text, not as a number, in no part of the file."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmon.capture import CaptureReader, CaptureWriter, Frames, Hole, StreamFacts, Tail
from kvmon.capture.columns import merge_planes
from kvmon.capture.copying import began_ns, copy_capture, copy_recording
from kvmon.capture.layout import CHUNK_BYTES, FILE_BYTES, ChunkHeader, ChunkKind
from kvmon.capture.share_said import (
    _CONFIG_NUMBERS,
    _POOL_LISTS,
    _POOL_NUMBERS,
    _POOL_WORDS,
    _TABLES,
    _VERSIONS,
    _WORDS,
    shared_config,
    shared_pool,
)
from kvmon.capture.sharing import Sharer
from kvmon.capture.verification import verify_path
from kvmon.events import FIELDS, Kind, encode
from kvmon.events.wire import LONG
from kvmon.recording import find_streams, headers
from kvmon.state import StreamState, scan
from tests.unit.capture.traffic import frame, record

CONFIG_KEYS = sorted({*_CONFIG_NUMBERS, *_WORDS, *_VERSIONS, *_TABLES, "reserve", "model", "quotas", "priorities"})
_FOLDED = {"capacity_units", "unit_tokens", "unit_bytes", "groups", "window_tokens"}  # what a fold wants as numbers
POOL_KEYS = sorted({*_POOL_NUMBERS, *_POOL_LISTS, *_POOL_WORDS, "group_kinds"} - _FOLDED)
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"


class Marks:
    """Unique words and numbers, and where they can be found again."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.words: list[str] = []
        self.numbers: list[int] = []

    def word(self) -> str:
        """One that nobody else has written."""
        self.words.append("q" + "".join(self._random.choices(_ALPHABET, k=11)))
        return self.words[-1]

    def number(self, least: int = 1 << 59) -> int:
        """One of 60 bits."""
        self.numbers.append(self._random.randrange(least, 1 << 60))
        return self.numbers[-1]

    def value(self) -> Any:
        """Something that an engine could say, with a mark in it."""
        word = self.word()
        shapes = [
            word, f"3.11.2+{word}", f"1.0.{word}", f"chunk:{word}", f"/home/{word}/model", [word], {word: 1},
            {"model_type": word}, {"layers": word}, {"0": word}, [[word]], {"errors": [[word]]}, f"paged {word}",
            f"kv\n{word}", {"a": {"b": [word, 1]}},
        ]  # fmt: skip
        return self._random.choice(shapes)

    def text(self, keys: list[str], **said: Any) -> str:
        """A description with a mark under each key, and keys that are marks."""
        chosen = self._random.sample(keys, k=min(len(keys), 12))
        return json.dumps(
            {
                **{key: self.value() for key in chosen},
                **said,
                self.word(): self.word(),
                "served_model_name": self.word(),
            }
        )

    def found_in(self, data: bytes) -> list[str]:
        """The marks that stand in these bytes."""
        found = []
        lower = data.lower()
        for word in self.words:
            raw = word.encode()
            forms = (raw, word.encode("utf-16-le"), word.encode("utf-16-be"), raw.hex().encode(), raw[::-1])
            found += [word for form in forms if form in lower]
        for number in self.numbers:
            wide = (number & 0x7FFFFFFF) + 1 | (number >> 31) + 1 << 32
            forms = (
                number.to_bytes(8, "little"), number.to_bytes(8, "big"), wide.to_bytes(8, "little"),
                str(number).encode(), f"{number:x}".encode(), number.to_bytes(8, "little").hex().encode(),
            )  # fmt: skip
            found += [str(number) for form in forms if form in lower or form in data]
        return found


def parts_of(path: Path) -> Iterator[tuple[str, bytes]]:
    """Everything in a capture: as it is, decompressed, put together, and as texts without the tops of their words."""
    raw = path.read_bytes()
    yield "file", raw
    at = FILE_BYTES
    while (header := ChunkHeader.unpack(raw[at : at + CHUNK_BYTES], at)) is not None:
        payload = zstandard.ZstdDecompressor().decompress(
            raw[header.payload_at : header.payload_at + header.stored_bytes], max_output_size=header.raw_bytes
        )
        yield f"chunk {header.kind}", payload
        if header.kind == ChunkKind.CHECKPOINT:
            words = np.empty(len(payload) // 4, np.uint32)
            merge_planes(np.frombuffer(payload, np.uint8), 4, words)
            yield "checkpoint", words.tobytes()
        at = header.end
    with CaptureReader(path) as reader:
        for stream in reader.streams:
            for piece in reader.pieces(stream):
                if isinstance(piece, Frames | Tail):
                    data = piece.words.tobytes()
                    yield "words", data
                    for top in range(4):
                        kept = np.ones(len(data), bool)
                        kept[top::4] = False
                        yield "texts", np.frombuffer(data, np.uint8)[kept].tobytes()


def marked_records(marks: Marks) -> list[list[int]]:
    """Every kind with a text or names; kinds of a newer kvmon; known kinds with a field of a newer one behind."""
    device = dict.fromkeys(("used", "free", "total", "reserved", "allocated", "inactive"), 5)
    text = marks.text(CONFIG_KEYS)
    records = [
        encode(Kind.ENGINE_CONFIG, text=text),
        encode(Kind.POOL_ATTACHED, pool=1, restated=0, text=json.dumps({"capacity_units": 64, "unit_tokens": 4})),
        encode(Kind.POOL_ATTACHED, pool=2, restated=1, text=marks.text(POOL_KEYS, capacity_units=9)),
        encode(Kind.ENGINE_CONFIG, text=f"no JSON, {marks.word()}"),
        encode(Kind.ENGINE_CONFIG, text=json.dumps([marks.word()])),
        encode(Kind.DEVICE_SAMPLE, device=0, **device, uuid=f"GPU-{marks.word()}"),
        encode(Kind.REQUEST_HASHES, request=4, hash_tokens=16, first_page=0, hashes=[marks.number() for _ in range(5)]),
    ]
    strange = encode(Kind.ENGINE_CONFIG, text=marks.word())[1:]
    records.append([LONG << 27 | 120 << 19 | len(strange), *strange])
    for kind in Kind:
        if kind > 9 and kind not in (Kind.STEP, Kind.TICK, Kind.CHECKPOINT, Kind.GAP):
            values = {field.name: _plain(field.type) for field in FIELDS[kind]}
            words = encode(kind, **values)
            if FIELDS[kind] and FIELDS[kind][-1].type in ("units", "status"):
                continue  # all that follows is units
            behind = encode(Kind.ENGINE_CONFIG, text=marks.word())[1:]
            records.append([words[0] + len(behind), *words[1:], *behind])
    return records


def _plain(type_: str) -> Any:
    return {"text": "{}", "hashes": (3, 4), "units": (1,), "status": (1 << 31,)}.get(type_, 1)


def marked_capture(path: Path, marks: Marks) -> StreamFacts:
    """Two lives: one that begins with a state, and one with holes, an open frame, and a chunk that is damaged."""
    facts = [
        StreamFacts(
            marks.word(), rank, marks._random.randbytes(16), marks._random.randbytes(16), marks.number(),
            wall_ns=marks.number(), mono_ns=10**9,
        )
        for rank in range(2)
    ]  # fmt: skip
    state = StreamState()
    before = _words(frame(0, 40, marked_records(marks)))
    state.apply_frames(before, scan(before))
    with CaptureWriter(path, checkpoint_operations=1) as writer:
        sink = writer.add_stream(facts[0], state=state)
        sink.write(_words(frame(1, 50, marked_records(marks))))
        sink = writer.add_stream(facts[1])
        for number in range(3):
            sink.write(_words(frame(number, 50 + number, [*marked_records(marks), encode(Kind.ALLOC, units=[1, 2])])))
            sink.add(Hole(f"{marks.word()} is lost", number, 1, damaged=True))
        sink.add(Tail(_words([word for one in marked_records(marks) for word in one])))
    chunks = [one for one in CaptureReader(path).streams[1].chunks if one.kind == ChunkKind.FRAMES]
    data = bytearray(path.read_bytes())
    data[chunks[1].payload_at + 20] ^= 0xFF
    path.write_bytes(data)
    return facts[0]


def _words(words: list[int]) -> npt.NDArray[np.uint32]:
    return np.array(words, np.uint32)


@given(st.integers(0, 1 << 32), st.sampled_from(CONFIG_KEYS), st.sampled_from([*POOL_KEYS, *_FOLDED]))
def test_no_key_lets_a_word_pass(seed: int, key: str, pool_key: str) -> None:
    """Whatever stands under it."""
    marks = Marks(seed)
    for _ in range(10):
        for kept, _ in (shared_config({key: marks.value()}), shared_pool(7, {pool_key: marks.value()})):
            assert marks.found_in(json.dumps(kept).encode()) == []


@settings(max_examples=5)
@given(st.integers(0, 1 << 32))
def test_no_mark_of_a_capture_is_in_its_bundle(seed: int) -> None:
    """Whatever an engine, a newer kvmon or a damaged file put anywhere; and the bundle is sound."""
    marks = Marks(seed)
    with tempfile.TemporaryDirectory() as folder:
        source, bundle = Path(folder) / "x.kvmon", Path(folder) / "y.kvmon"
        facts = marked_capture(source, marks)
        sharer = Sharer(began_ns(source))
        with CaptureWriter(bundle, wall=lambda: 0, checkpoint_operations=1) as writer:
            copied = copy_capture(source, writer, share=sharer)
        assert any(marks.found_in(part) for _, part in parts_of(source))
        for what, part in parts_of(bundle):
            assert marks.found_in(part) == [], what
            assert facts.boot_id not in part and facts.epoch.hex().encode() not in part, what
        assert [len(one.holes) for one in copied] == [0, 4]
        assert verify_path(bundle).damage == []
        again = Path(folder) / "z.kvmon"
        other = Sharer(0)
        with CaptureWriter(again, wall=lambda: 0, checkpoint_operations=1) as writer:
            copy_capture(bundle, writer, share=other)
        assert other.shared.records == sharer.shared.records and not other.shared.engine_keys + other.shared.pool_keys
        assert [one.said for one in other.shared.streams] == [one.said for one in sharer.shared.streams]
        assert {what for what, count in other.shared.removed.items() if count} <= {
            "names of pages: others that mean nothing, equal ones stay equal"
        }


def test_no_mark_of_a_recording_is_in_its_bundle(tmp_path: Path) -> None:
    """Of the engine's name, the machine, the process and the key; with frames that are damaged, and an open end."""
    name = "acme-prod-eu7"
    record(tmp_path, 900, name=name, budget=1 << 20, close=False)
    (stream,) = find_streams(tmp_path)
    marks = Marks(0)
    marks.words.append(name)
    known = list(headers(stream))
    marks.numbers += [header.wall_ns for header in known]
    secrets = [part for header in known for part in (header.boot_id, header.epoch) if any(part)]
    secrets += [file.read_bytes() for file in tmp_path.rglob("key")]
    newest = sorted(stream.glob("*.seg"))[-1]
    data = bytearray(newest.read_bytes())
    data[len(data) // 64] ^= 0xFF
    newest.write_bytes(data)
    for last_ns in (None, 10**8):
        bundle = tmp_path / f"{last_ns}.kvmon"
        with CaptureWriter(bundle, wall=lambda: 0) as writer:
            copy_recording([stream], writer, last_ns=last_ns, share=Sharer(began_ns(tmp_path)))
        for what, part in parts_of(bundle):
            assert marks.found_in(part) == [], what
            assert not any(secret in part or secret.hex().encode() in part for secret in secrets), what
