"""The fold in memory: paged with and without detail, contiguous blocks with detail, the scan that comes before it, and
the diagnosis beside it.
"""

from __future__ import annotations

import json
import time
from array import array

import numpy as np
import numpy.typing as npt

from kvmon.allocators import PagedConfig
from kvmon.diagnosis import Diagnosis
from kvmon.events import Kind, checksum, encode
from kvmon.replay.simulated import record_setup
from kvmon.serving.scenarios import find
from kvmon.serving.scenarios.scenario import Setup
from kvmon.serving.scenarios.traffic import at_load
from kvmon.serving.workloads import SharedPrefixes
from kvmon.state import StreamState, scan
from tests.benchmarks.table import Row, best_of

CAPACITY = 65_536
STEPS = 6000
Words = npt.NDArray[np.uint32]


class Recording:
    """Frames as a probe writes them."""

    def __init__(self, contiguity: str) -> None:
        self.words = array("I")
        self.start = self.frame = self.operations = 0
        info = {"capacity_units": CAPACITY, "unit_tokens": 16, "fresh": True, "contiguity": contiguity}
        self.words.extend(encode(Kind.POOL_ATTACHED, pool=1, restated=0, text=json.dumps(info)))

    def say(self, kind: Kind, units: list[int] | range) -> None:
        """One record."""
        self.words.extend(encode(kind, units=units))
        self.operations += len(units)

    def close(self) -> None:
        """One frame."""
        size = len(self.words) - self.start + 17
        numbers = dict.fromkeys(("start", "duration", "prefill", "decode", "context", "running", "waiting"), 1)
        step = encode(
            Kind.STEP, seq=self.frame, words=size, time=self.frame * 1_000_000, head_need=None, checksum=1, **numbers
        )
        self.words.extend(step[:-1])
        self.words.append(checksum(self.words[self.start :]))
        self.start, self.frame = len(self.words), self.frame + 1

    def array(self) -> Words:
        """The words."""
        return np.array(self.words, np.uint32)


def paged() -> tuple[Words, int]:
    """A pool kept 70 % full by groups of 1 to 21 scattered units, some of them shared; 12 groups a step."""
    rng = np.random.default_rng(1)
    recording = Recording("none")
    free: list[int] = (rng.permutation(CAPACITY) + 1).tolist()
    held: list[list[int]] = []
    for _ in range(STEPS):
        for _ in range(12):
            count = int(rng.integers(1, 22))
            if len(free) < CAPACITY * 3 // 10 and rng.random() < 0.5:
                which = int(rng.integers(len(held)))
                held[which], held[-1] = held[-1], held[which]
                group = held.pop()
                recording.say(Kind.UNSHARE, group)
                free[:0] = group
            else:
                group = free[-count:]
                del free[-count:]
                recording.say(Kind.ALLOC, group)
                held.append(group)
                if rng.random() < 0.3:
                    recording.say(Kind.SHARE, group)
                    recording.say(Kind.UNSHARE, group)
        recording.close()
    return recording.array(), recording.operations


def contiguous() -> tuple[Words, int]:
    """Blocks of 16 to 256 units cut off the first free run that holds them; records, not units, are counted."""
    rng = np.random.default_rng(2)
    recording, records = Recording("required"), 0
    runs, held = [(1, CAPACITY)], []
    for _ in range(STEPS):
        for _ in range(6):
            size = int(rng.integers(16, 257))
            at = next((index for index, (_, length) in enumerate(runs) if length >= size), None)
            if at is None or (len(held) > 300 and rng.random() < 0.5):
                start, size = held.pop(int(rng.integers(len(held))))
                recording.say(Kind.FREE, range(start, start + size))
                runs = merged([*runs, (start, size)])
            else:
                start, length = runs[at]
                recording.say(Kind.ALLOC, range(start, start + size))
                held.append((start, size))
                runs[at : at + 1] = [(start + size, length - size)] if length > size else []
            records += 1
        recording.close()
    return recording.array(), records


def merged(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted runs, neighbours joined."""
    joined: list[tuple[int, int]] = []
    for start, length in sorted(runs):
        if joined and sum(joined[-1]) == start:
            joined[-1] = (joined[-1][0], joined[-1][1] + length)
        else:
            joined.append((start, length))
    return joined


def seconds(words: Words, *, detail: bool) -> float:
    """Best time to fold frames that were scanned before."""
    table = scan(words)

    def run() -> None:
        state = StreamState(detail=detail)
        state.apply_frames(words, table)
        assert state.fault_count == 0

    run()
    return best_of(15, run)


def recorded(setup: Setup) -> Words:
    """The words of a simulated run."""
    pieces: list[Words] = []
    record_setup(lambda words: pieces.append(words.copy()), setup)
    return np.concatenate(pieces)


def healthy() -> Words:
    """A busy engine that nothing is wrong with: 3,000 requests in 8,192 pages, never full."""
    pool = PagedConfig(8_192, 16)
    lengths = "uniform:200-1500/gamma:300,0.87"
    work = at_load(1, 3000, lengths, pool_tokens=131_072, load=0.25, prefixes=SharedPrefixes(8, 320))
    return recorded(Setup(work, pool))


def diagnosed_share(words: Words) -> float:
    """What a diagnosis adds to the fold of these words, of the fold; both in turns."""
    table = scan(words)

    def run(follow: bool) -> float:
        state, diagnosis = StreamState(), Diagnosis()
        if follow:
            diagnosis.follow(state)
        start = time.perf_counter()
        state.apply_frames(words, table)
        state.drain()
        if follow:
            diagnosis.findings()
        return time.perf_counter() - start

    run(True)
    pairs = [(run(False), run(True)) for _ in range(25)]
    plain, followed = (min(column) for column in zip(*pairs, strict=True))
    return followed / plain - 1


DIAGNOSIS_LIMIT = (
    "each window of five seconds is judged in Python, about 100 us where something is wrong; to try next: only windows "
    "in which a number has changed since the last one"
)
FOLD_LIMIT = (
    "one look at a unit beyond the first-level cache and a branch for each; to try next: check a whole list first, "
    "then store it without branches"
)


def rows() -> list[Row]:
    """Fold rates of a core."""
    words, operations = paged()
    plain = operations / seconds(words, detail=False) / 1e6
    full = operations / seconds(words, detail=True) / 1e6
    checked = operations / best_of(15, lambda: scan(words)) / 1e6
    runs, records = contiguous()
    blocks = records / seconds(runs, detail=True) / 1e6
    calm, storm = diagnosed_share(healthy()), diagnosed_share(recorded(find("preemption-storm").setups(0)[0][""]))
    return [
        Row("diagnosis beside the fold, all well", f"{calm:.1%} of the fold", "3 %", calm <= 0.03, DIAGNOSIS_LIMIT),
        Row("diagnosis beside the fold, a preemption storm", f"{storm:.0%} of the fold"),
        Row(
            "fold in memory, paged, states only",
            f"{plain:.0f} M unit-operations/s",
            "300 M/s",
            plain >= 300,
            FOLD_LIMIT,
        ),
        Row("fold in memory, paged, with detail", f"{full:.0f} M unit-operations/s"),
        Row("find frames and check their checksums", f"{checked:.0f} M unit-operations/s"),
        Row("fold in memory, contiguous blocks, with detail", f"{blocks:.2f} M blocks/s"),
    ]
