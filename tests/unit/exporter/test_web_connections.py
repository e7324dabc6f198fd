"""Who may stay connected, and who goes: with a clock that is told, and guests that do as they are told."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from kvmon.exporter.web.connections import Connections, Phase

PATIENCE = {Phase.ARRIVING: 10.0, Phase.ASKING: 10.0, Phase.SENDING: 10.0, Phase.TAKING: 30.0, Phase.LEAVING: 2.0}


class Guest:
    """A connection in the test's hands."""

    def __init__(self, phase: Phase = Phase.ARRIVING, *, known: bool = False) -> None:
        self.phase = phase
        self.progress = 0
        self.known = known
        self.gone = False

    def hang_up(self) -> None:
        """Note it."""
        assert not self.gone
        self.gone = True


class Clock:
    """Time, in the test's hands."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """The time now."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock."""
    return Clock()


@pytest.mark.parametrize("phase", list(PATIENCE))
def test_patience_runs_out_after_its_time(clock: Clock, phase: Phase) -> None:
    """Who owes something goes at its deadline, not before."""
    connections, guest = Connections(4, PATIENCE, clock), Guest(phase)
    connections.admit(guest)
    clock.now += PATIENCE[phase] - 0.1
    connections.look()
    assert not guest.gone
    clock.now += 0.2
    connections.look()
    assert guest.gone
    assert len(connections) == 0


def test_a_byte_a_second_does_not_help(clock: Clock) -> None:
    """Only progress, a whole request or what was taken of an answer, begins patience anew."""
    connections, dripping, working = Connections(4, PATIENCE, clock), Guest(Phase.ASKING), Guest(Phase.ASKING)
    connections.admit(dripping)
    connections.admit(working)
    for _ in range(12):
        clock.now += 1
        working.progress += 1
        connections.look()
    assert dripping.gone
    assert not working.gone


@pytest.mark.parametrize("phase", [Phase.SERVED, Phase.KEPT])
def test_who_owes_nothing_may_stay(clock: Clock, phase: Phase) -> None:
    """A long answer, and the time between two scrapes, are limited elsewhere."""
    connections, guest = Connections(4, PATIENCE, clock), Guest(phase)
    connections.admit(guest)
    clock.now += 3600
    connections.look()
    assert not guest.gone


def test_when_full_the_longest_waiting_stranger_goes_first(clock: Clock) -> None:
    """Before one that has scraped before, before one that takes an answer, and never one that is being served."""
    served, taking = Guest(Phase.SERVED), Guest(Phase.TAKING, known=True)
    kept, first, second = Guest(Phase.KEPT, known=True), Guest(Phase.ASKING), Guest()
    connections = Connections(5, PATIENCE, clock)
    for guest in (served, taking, kept, first, second):
        connections.admit(guest)
    newcomers = [Guest(Phase.SERVED) for _ in range(5)]
    for newcomer, goes in zip(newcomers, (first, second, kept, taking), strict=False):
        connections.admit(newcomer)
        assert goes.gone
    assert not served.gone
    connections.admit(newcomers[4])
    assert not any(guest.gone for guest in (served, *newcomers))
    assert len(connections) == 6


def test_a_successor_takes_the_place_only_while_there_is_one(clock: Clock) -> None:
    """A connection that was let go during its handshake does not come back by finishing it."""
    connections, arrival, protocol = Connections(1, PATIENCE, clock), Guest(), Guest(Phase.ASKING)
    connections.admit(arrival)
    assert connections.take_over(arrival, protocol)
    connections.admit(Guest())
    assert protocol.gone
    assert not connections.take_over(arrival, Guest())
    assert len(connections) == 1


def test_at_the_end_only_those_stay_that_are_answered(clock: Clock) -> None:
    """A server that ends does not wait for those who wait."""
    guests = {phase: Guest(phase) for phase in Phase}
    connections = Connections(10, PATIENCE, clock)
    for guest in guests.values():
        connections.admit(guest)
    connections.let_waiting_go()
    assert {phase for phase, guest in guests.items() if not guest.gone} == {
        Phase.SENDING,
        Phase.SERVED,
        Phase.TAKING,
    }


class Crowd(RuleBasedStateMachine):
    """Guests come, change, and go in any order; what was seen of each at the last look tells when it must go."""

    guests = Bundle("guests")
    most = 3

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.connections = Connections(self.most, PATIENCE, self.clock)
        self.seen: dict[Guest, tuple[Phase, int, float]] = {}

    @rule(target=guests, phase=st.sampled_from(Phase), known=st.booleans())
    def come(self, phase: Phase, known: bool) -> Guest:
        """One more gets in, and no more go for it than have to."""
        guest, before = Guest(phase, known=known), list(self.seen)
        self.connections.admit(guest)
        gone = [other for other in before if other.gone]
        assert not guest.gone
        assert all(other.phase is not Phase.SERVED for other in gone)
        others = len(before) - len(gone)
        assert others < self.most or all(other.phase is Phase.SERVED for other in before if not other.gone)
        assert not gone or others >= self.most - 1
        self.seen[guest] = (guest.phase, guest.progress, self.clock.now)
        self._forget_gone()
        return guest

    @rule(guest=guests, phase=st.sampled_from(Phase), progress=st.booleans())
    def change(self, guest: Guest, phase: Phase, progress: bool) -> None:
        """It is at something else."""
        guest.phase, guest.progress = phase, guest.progress + progress

    @rule(guest=consumes(guests))
    def leave(self, guest: Guest) -> None:
        """It goes by itself, perhaps after it was let go."""
        self.connections.leave(guest)
        self.seen.pop(guest, None)

    @rule(seconds=st.floats(0, 20))
    def look(self, seconds: float) -> None:
        """Time passes; those and only those go whose patience is over."""
        self.clock.now += seconds
        self.connections.look()
        for guest, (phase, progress, since) in list(self.seen.items()):
            if (phase, progress) != (guest.phase, guest.progress):
                self.seen[guest] = (guest.phase, guest.progress, self.clock.now)
                assert not guest.gone
            else:
                assert guest.gone == (self.clock.now - since >= PATIENCE.get(phase, float("inf")))
        self._forget_gone()

    @invariant()
    def nobody_is_lost(self) -> None:
        """It holds exactly those that have neither left nor been let go."""
        assert len(self.connections) == len(self.seen)

    def _forget_gone(self) -> None:
        for guest in [guest for guest in self.seen if guest.gone]:
            del self.seen[guest]


TestCrowd = Crowd.TestCase
TestCrowd.settings = settings(max_examples=40, stateful_step_count=25)
