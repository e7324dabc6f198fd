"""A real Prometheus whose past is that of scenario runs: what their exporters said, backfilled at their intervals.

`promtool` makes the blocks, Prometheus serves them; the only thing added is what Prometheus itself adds to a scrape
(`job`, `instance`, `up`, how many samples). A series that a page no longer has is gone at the next look, as it is in a
Prometheus that scrapes: the look-back is as long as an interval.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.conftest import PrometheusBinaries
from tests.dashboards.asking import JOB, PanelServer
from tests.rules.scenario_series import INTERVAL_S, Scraped
from tests.servers import fetch, free_port, wait_for

__all__ = ["BEGIN_S", "History", "history", "instance_of"]

BEGIN_S = 1_700_006_400  # on the boundary of a block


class History(PanelServer):
    """Answers about the past, which begins at `begins_s` and ends at `ends_s` of the clock on the wall."""

    def __init__(self, port: int, ends_s: float) -> None:
        super().__init__(port)
        self.begins_s, self.ends_s = float(BEGIN_S), ends_s


def instance_of(engine: str) -> str:
    """The exporter that followed an engine."""
    return f"{engine}.example:10490"


@contextlib.contextmanager
def history(binaries: PrometheusBinaries, place: Path, runs: Mapping[str, Scraped]) -> Iterator[History]:
    """A Prometheus that has scraped these runs, each from an exporter of its own, all beginning at once."""
    source, data = place / "runs.openmetrics", place / "data"
    with source.open("w", encoding="utf-8") as file:
        for engine, run in runs.items():
            file.writelines(_lines(instance_of(engine), run))
        file.write("# EOF\n")
    subprocess.run(
        [binaries.promtool, "tsdb", "create-blocks-from", "openmetrics", source, data], check=True, capture_output=True
    )
    config, port = place / "history.yml", free_port()
    config.write_text("{}", encoding="ascii")
    options = [f"--config.file={config}", f"--storage.tsdb.path={data}", "--storage.tsdb.retention.time=100y"]
    options += ["--log.level=error", f"--web.listen-address=127.0.0.1:{port}"]
    options.append(f"--query.lookback-delta={INTERVAL_S - 1}s")
    process = subprocess.Popen([binaries.prometheus, *options], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: fetch(f"http://127.0.0.1:{port}/-/ready") != b"", "Prometheus is not ready")
        yield History(port, BEGIN_S + max(run.times_s[-1] for run in runs.values()))
    finally:
        process.kill()
        process.wait()


def _lines(instance: str, run: Scraped) -> Iterator[str]:
    target = f'instance="{instance}",job="{JOB}"'
    for time_s, page in zip(run.times_s, run.pages, strict=True):
        when = f"{BEGIN_S + time_s:.3f}"
        for series, value in page.items():
            name, _, labels = series.partition("{")
            yield f"{name}{{{target}{',' + labels if labels else '}'} {value!r} {when}\n"
        yield f"up{{{target}}} 1 {when}\n"
        yield f"scrape_samples_scraped{{{target}}} {len(page)} {when}\n"
