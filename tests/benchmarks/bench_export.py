"""A capture into Parquet and into a trace: unit-operations a second, bytes, and memory at two lengths.

The traffic is that of `bench_capture`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from kvmon.capture import CaptureWriter, StreamFacts
from kvmon.replay.export.parquet import export_parquet
from kvmon.replay.export.perfetto import export_perfetto
from tests.benchmarks.bench_capture import Engine
from tests.benchmarks.table import Row

OPERATIONS = 1_000_000
TIMES = 4  # of the longer capture
RUNS = 3


def rows() -> list[Row]:
    """Figures of captures of 1 M and 4 M unit-operations on 65,536 units."""
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        short, long = _capture(folder / "short.kvmon", OPERATIONS), _capture(folder / "long.kvmon", TIMES * OPERATIONS)
        found = []
        for every_ns, name in ((1_000_000_000, "1 s"), (0, "frame")):
            best, count, size = 0.0, 0, 0
            for _ in range(RUNS):
                begin = time.perf_counter()
                (done,) = export_parquet([short], folder / "out", every_ns=every_ns, force=True)
                count, size = sum(done.rows.values()), done.bytes
                best = max(best, OPERATIONS / (time.perf_counter() - begin))
            figure = f"{best / 1e6:.2f} M unit-operations/s, {size / count:.2f} bytes a row"
            found.append(Row(f"export: Parquet, states every {name}", figure))
        begin = time.perf_counter()
        trace = export_perfetto(short, folder / "x.json", force=True)
        took = time.perf_counter() - begin
        figure = f"{OPERATIONS / took / 1e6:.2f} M unit-operations/s, {trace.json_bytes / OPERATIONS:.1f} bytes each"
        found.append(Row("export: trace for Perfetto", figure))
        peaks = [_peak_mib(path, folder / "out") for path in (short, long)]
        flat = peaks[1] < 1.25 * peaks[0]
        found.append(
            Row(
                f"export: memory at {TIMES} times the length",
                f"{peaks[0]:.0f} and {peaks[1]:.0f} MiB",
                "the same",
                flat,
            )
        )
    return found


def _capture(path: Path, operations: int) -> Path:
    engine = Engine()
    while engine.operations < operations:
        engine.step()
    with CaptureWriter(path, force=True) as writer:
        writer.add_stream(StreamFacts("bench")).write(np.array(engine.words, np.uint32))
    return path


def _peak_mib(capture: Path, out: Path) -> float:
    """Most memory of a process that does nothing else."""
    code = (
        "import sys, resource; from pathlib import Path; "
        "from kvmon.replay.export.parquet import export_parquet; "
        "export_parquet([Path(sys.argv[1])], Path(sys.argv[2]), force=True); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(capture), str(out)], capture_output=True, text=True, check=True
    )
    return int(done.stdout) / 1024
