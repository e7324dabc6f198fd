"""The journal of an allocator that is used alone: grown before each call, drained when somebody wants it.

Invariant: there is always room for what the next call may write; an allocator without a journal pays nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvmon.allocators.journal import ON, USED, Journal, new_journal

__all__ = ["OwnJournal"]


class OwnJournal:
    """A growing journal; `kernel_state` is what kernels append to."""

    def __init__(self, wanted: bool) -> None:
        self.kernel_state: Journal = new_journal(256 if wanted else 0)

    @property
    def wanted(self) -> bool:
        """Whether entries are kept."""
        return bool(self.kernel_state.state[ON])

    def make_room(self, words: int) -> None:
        """Be ready for `words` more words."""
        journal = self.kernel_state
        used = int(journal.state[USED])
        if not self.wanted or used + words <= journal.words.size:
            return
        grown = np.empty(2 * (used + words), np.int64)
        grown[:used] = journal.words[:used]
        self.kernel_state = Journal(grown, journal.state)

    def drain(self) -> npt.NDArray[np.int64]:
        """Everything since the last drain (a copy)."""
        journal = self.kernel_state
        words: npt.NDArray[np.int64] = journal.words[: journal.state[USED]].copy()
        journal.state[USED] = 0
        return words
