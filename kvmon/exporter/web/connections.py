"""Who is connected, how long each may take for what it owes, and who goes when one more wants in.

Invariant: there are at most `most` connections, or all but the newest are being served; a client that sends nothing, or
a byte a second, is cut off at its deadline and can never keep another one out. It knows no sockets and no HTTP.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Connections", "Guest", "Phase"]


class Phase(enum.Enum):
    """What a connection is at."""

    ARRIVING = "arriving"
    """The client has said nothing yet, or is agreeing on TLS."""
    ASKING = "asking"
    """It owes a request, or the rest of its headers."""
    SENDING = "sending"
    """It owes the rest of the body of a request that is being answered."""
    SERVED = "served"
    """A request is being answered: the client owes nothing."""
    TAKING = "taking"
    """The client has more of an answer to take than is kept for it."""
    KEPT = "kept"
    """Between two requests."""
    LEAVING = "leaving"
    """It was closed here, and the client has not let go."""


class Guest(Protocol):
    """A connection, as it is seen here."""

    @property
    def phase(self) -> Phase:
        """What it is at now."""

    @property
    def progress(self) -> int:
        """Grows whenever the client has done what it owed; patience begins anew."""

    @property
    def known(self) -> bool:
        """Whether it has made a whole request before."""

    def hang_up(self) -> None:
        """Close it now, whatever is unsent."""


@dataclass(slots=True)
class _Seen:
    phase: Phase
    progress: int
    since: float


# Who goes first when there is no room; who is being served stays.
_STRANGER, _IDLE, _SLOW, _STAYS = range(4)
_ANSWERED = (Phase.SENDING, Phase.SERVED, Phase.TAKING)


class Connections:
    """The connections of a server; not for more than one thread.

    `patience`: seconds that a phase may last; one that is not named may last forever.
    """

    def __init__(self, most: int, patience: Mapping[Phase, float], clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._patience = patience
        self._clock = clock
        self._guests: dict[Guest, _Seen] = {}

    def __len__(self) -> int:
        return len(self._guests)

    def admit(self, guest: Guest) -> None:
        """Take one in. Where there is no room, those go that have waited longest, of those that owe the most.

        Where all are being served the new one is taken in beside them, and goes first when another comes.
        """
        while len(self._guests) >= self._most and self.make_room():
            pass
        self._guests[guest] = _Seen(guest.phase, guest.progress, self._clock())

    def leave(self, guest: Guest) -> None:
        """It has gone; nothing where it is not known."""
        self._guests.pop(guest, None)

    def take_over(self, guest: Guest, successor: Guest) -> bool:
        """`successor` is the same connection from now on, in another role; False where it was let go meanwhile."""
        if self._guests.pop(guest, None) is None:
            return False
        self._guests[successor] = _Seen(successor.phase, successor.progress, self._clock())
        return True

    def make_room(self) -> bool:
        """Let one go; False where all are being served."""
        first: Guest | None = None
        lowest = _STAYS
        for guest in self._guests:
            rank = _rank(guest)
            if rank < lowest:
                first, lowest = guest, rank
                if rank == _STRANGER:
                    break
        if first is None:
            return False
        self._let_go(first)
        return True

    def look(self) -> None:
        """Let go whose patience has run out; called several times a second."""
        now = self._clock()
        overdue = []
        for guest, seen in self._guests.items():
            phase, progress = guest.phase, guest.progress
            if (phase, progress) != (seen.phase, seen.progress):
                seen.phase, seen.progress, seen.since = phase, progress, now
            elif now - seen.since >= self._patience.get(phase, float("inf")):
                overdue.append(guest)
        for guest in overdue:
            self._let_go(guest)

    def let_waiting_go(self) -> None:
        """Let all go that have no answer to get or to take; the server ends."""
        for guest in [guest for guest in self._guests if guest.phase not in _ANSWERED]:
            self._let_go(guest)

    def _let_go(self, guest: Guest) -> None:
        del self._guests[guest]
        guest.hang_up()


def _rank(guest: Guest) -> int:
    phase = guest.phase
    if phase is Phase.SERVED:
        return _STAYS
    if phase is Phase.TAKING:
        return _SLOW
    return _IDLE if guest.known and phase is not Phase.LEAVING else _STRANGER
