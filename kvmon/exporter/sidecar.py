"""The exporter's working half: a thread that follows recordings, and the answers that the HTTP side asks for.

The thread folds one piece of one stream at a time and then lets a waiting scrape in, so that no scrape waits for more
than a piece. Kernels are compiled or loaded before the first look, never in a scrape. Ready:
everything that was recorded when it began has been read once. Healthy: the thread lives and looked around lately.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from kvmon.catalog import SERIES_BUDGET
from kvmon.exporter.collectors import COLLECTORS
from kvmon.exporter.follow import DEFAULT_STALL_SECONDS, DirectoryFollower
from kvmon.exporter.news import News
from kvmon.exporter.page import Page, Snapshot
from kvmon.exporter.resident import give_memory_back
from kvmon.exporter.source import View, view
from kvmon.exporter.statefile import StateFiles
from kvmon.exporter.turns import Turns
from kvmon.exporter.warmup import compile_apart, warm_up

__all__ = ["Sidecar"]

_LOG = logging.getLogger(__name__)
_POLL_SECONDS = 0.5
_SURVEY_SECONDS = 1.0  # how old a look at every unit may be in a scrape
_SAVE_SECONDS = 5.0
_SILENT_SECONDS = 30.0
_STOP_SECONDS = 5.0  # a thread that compiles cannot be interrupted; it ends with the process


class Sidecar:
    """Follows `directories` in a thread between `start` and `stop`, and renders pages.

    `collectors`: names of those that run, all of them where not given; what only the others need is not worked out.
    `series_budget`: series that a rank with one pool may have, `max_series`: the whole page, 0 for no limit.
    `state_dir`: where cumulative numbers are kept; beside the recordings where not given. `compile_apart`: a child
    process compiles, so that this one stays small. `clock` is the machine's monotonic clock in ns, which the engines
    share.
    """

    def __init__(
        self,
        directories: Sequence[Path],
        *,
        stall_seconds: float = DEFAULT_STALL_SECONDS,
        state_dir: Path | None = None,
        collectors: Collection[str] | None = None,
        series_budget: int = SERIES_BUDGET,
        max_series: int = 0,
        poll_seconds: float = _POLL_SECONDS,
        survey_seconds: float = _SURVEY_SECONDS,
        compile_apart: bool = False,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        chosen = [make for make in COLLECTORS if collectors is None or make.name in collectors]
        needs = {need for make in chosen for need in make.needs}
        self._surveying, self._diagnosing = "survey" in needs, "diagnosis" in needs
        self._files = StateFiles(state_dir)
        self.followers = DirectoryFollower(
            directories,
            fold_dead=False,
            diagnosing=self._diagnosing,
            stall_seconds=stall_seconds,
            continued=self._files.load,
            clock=clock,
        )
        self._budget = series_budget
        self._poll_seconds = poll_seconds
        self._compile_apart = compile_apart
        self._survey_age_ns = int(survey_seconds * 1e9)
        self._clock = clock
        self._lock = Turns()
        self._stopping = threading.Event()
        self._wanted = threading.Event()
        self._warm = self._first_pass_done = False
        self._last_look = clock()
        self._saved_at = clock()
        self._unsaved: set[Path] = set()
        self._news = News()
        self._page = Page(
            self._look,
            self._lock,
            missing=lambda: len(self.followers.problems),
            unreadable=lambda: sum(stream.problem is not None for stream in self.followers.streams),
            collectors=chosen,
            max_series=max_series,
        )
        self._thread = threading.Thread(target=self._run, name="kvmon-follow", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Stop following, keep the cumulative numbers, let every file go."""
        self._stopping.set()
        self._wanted.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)
        self._save()
        with self._lock:
            self.followers.close()

    def render(self, openmetrics: bool, collect: Sequence[str] = (), exclude: Sequence[str] = (), /) -> bytes:
        """The page of metrics as of now; `collect` or `exclude` choose among the collectors that run.

        Raises ConfigError for a choice that cannot be.
        """
        page = self._page.render(openmetrics, collect, exclude)
        self._saved_at = 0  # what Prometheus has seen is kept soon, so that a later life never says less
        return page

    def snapshot(self) -> Snapshot:
        """What the page is made of, as of now, for whom its text is not meant."""
        snapshot = self._page.snapshot()
        self._saved_at = 0
        return snapshot

    def read_once(self) -> None:
        """Read everything that is recorded by now, in this thread; for a page that is made once, instead of `start`."""
        self.poll()
        while not self.followers.caught_up:
            self.poll()

    def health(self) -> tuple[bool, str]:
        """Whether the recordings are being followed, and why not."""
        if not self._thread.is_alive():
            return False, "the thread that follows recordings has ended: see the log and restart the exporter"
        silent = (self._clock() - self._last_look) / 1e9
        if self._warm and silent > _SILENT_SECONDS:
            return False, f"the recordings have not been looked at for {silent:.0f} s: is the disk hanging?"
        return True, "the recordings are followed"

    def ready(self) -> tuple[bool, str]:
        """Whether everything that was there has been read once; an empty directory is."""
        if not self._warm:
            return False, "compiling or loading kernels"
        if not self._first_pass_done:
            return False, "reading what has been recorded before"
        return True, f"{len(self.followers.streams)} streams are followed"

    def poll(self) -> bool:
        """Look for streams and fold a piece of each; what the thread does all the time."""
        with self._lock:
            self.followers.look()
        moved = False
        for stream in self.followers.streams:
            with self._lock:
                if stream.poll().value:
                    moved = True
                    self._unsaved.add(stream.path)
        self._news.tell(self.followers)
        self._survey()
        if not self._first_pass_done and self.followers.caught_up:
            give_memory_back()
            self._first_pass_done = True
            _LOG.info("everything that was recorded before is read", extra={"streams": len(self.followers.streams)})
        self._last_look = self._clock()
        if self._last_look - self._saved_at > _SAVE_SECONDS * 1e9:
            self._save()
        return moved

    def _survey(self) -> None:
        """Look at every unit now and then, so that a scrape finds it done.

        One pool at a time, because it takes a while.
        """
        for stream in self.followers.streams:
            if stream.caught_up and self._diagnosing:
                with self._lock:
                    stream.diagnose(self._survey_age_ns)
            if self._surveying and stream.caught_up and stream.state.converged and stream.fidelity == "exact":
                for number in list(stream.state.pools):
                    with self._lock:
                        stream.survey(number, self._survey_age_ns)

    def _look(self) -> View:
        # twice as old: the thread had no time to look again while this scrape waited
        return view(self.followers.streams, self._budget, 2 * self._survey_age_ns)

    def _run(self) -> None:
        try:
            if self._compile_apart:
                compile_apart(self._stopping)
            warm_up()
            gc.collect()
            gc.freeze()  # what the compiler leaves is walked by every full collection otherwise: 30 ms in a scrape
            give_memory_back()
            self._warm = True
            while not self._stopping.is_set():
                if not self.poll() or self.followers.caught_up:
                    self._wanted.wait(self._poll_seconds)
        except Exception:
            _LOG.exception("following the recordings ended")

    def _save(self) -> None:
        self._saved_at = self._clock()
        for stream in self.followers.streams:
            if stream.path in self._unsaved and stream.caught_up:
                with self._lock:
                    saved = stream.saved()
                if saved is not None:
                    self._files.save(stream.path, saved)
        self._unsaved.clear()
