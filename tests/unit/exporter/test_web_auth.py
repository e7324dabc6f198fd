"""Passwords: right, wrong, remembered, and never in the way of anything else."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Callable

import bcrypt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmon.exporter.web import auth
from kvmon.exporter.web.auth import Passwords, Verdict, credentials

CHEAP = bcrypt.gensalt(4)
USERS = {b"me": bcrypt.hashpw(b"secret", CHEAP), "žofie".encode(): bcrypt.hashpw("tajné".encode(), CHEAP)}


class Checks:
    """The real check, counted; it waits while it is held."""

    def __init__(self, check: Callable[[bytes, bytes], bool]) -> None:
        self.against: list[bytes] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self._check = check

    def __call__(self, password: bytes, hashed: bytes) -> bool:
        """As bcrypt's."""
        self.against.append(hashed)
        self.may_go_on.wait(10)
        return self._check(password, hashed)


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Checks:
    """Every check from now on."""
    checks = Checks(bcrypt.checkpw)
    monkeypatch.setattr(auth.bcrypt, "checkpw", checks)
    return checks


@pytest.mark.parametrize(
    ("user", "password", "verdict"),
    [
        (b"me", b"secret", Verdict.RIGHT),
        ("žofie".encode(), "tajné".encode(), Verdict.RIGHT),
        (b"me", b"Secret", Verdict.WRONG),
        (b"me", b"", Verdict.WRONG),
        (b"me", b"sec\0ret", Verdict.WRONG),
        (b"me", b"secret" + b"x" * 100, Verdict.WRONG),
        (b"you", b"secret", Verdict.WRONG),
        (b"", b"", Verdict.WRONG),
    ],
)
def test_a_pair_is_right_or_wrong(user: bytes, password: bytes, verdict: Verdict) -> None:
    """The second time as the first."""

    async def twice() -> list[Verdict]:
        passwords = Passwords()
        return [await passwords.check(USERS, user, password) for _ in range(2)]

    assert asyncio.run(twice()) == [verdict, verdict]


def test_what_was_checked_is_not_checked_again(checks: Checks) -> None:
    """Neither what was right nor what was wrong; nor by many that ask at once."""

    async def ask() -> None:
        passwords = Passwords()
        for _ in range(3):
            await passwords.check(USERS, b"me", b"secret")
            await passwords.check(USERS, b"me", b"wrong")
        assert len(checks.against) == 2
        await asyncio.gather(*(passwords.check(USERS, b"me", b"together") for _ in range(50)))
        assert len(checks.against) == 3

    asyncio.run(ask())


def test_a_new_hash_ends_what_was_remembered(checks: Checks) -> None:
    """A password that was changed, and a user who is gone, are refused at once."""

    async def ask() -> None:
        passwords = Passwords()
        assert await passwords.check(USERS, b"me", b"secret") is Verdict.RIGHT
        changed = {b"me": bcrypt.hashpw(b"other", CHEAP)}
        assert await passwords.check(changed, b"me", b"secret") is Verdict.WRONG
        assert await passwords.check({b"you": USERS[b"me"]}, b"me", b"secret") is Verdict.WRONG
        assert await passwords.check(USERS, b"me", b"secret") is Verdict.RIGHT

    asyncio.run(ask())


def test_an_unknown_user_costs_what_a_known_one_costs(checks: Checks) -> None:
    """The same work, at the cost of the costliest user, so that time tells nothing."""
    users = {b"me": bcrypt.hashpw(b"a", bcrypt.gensalt(4)), b"you": bcrypt.hashpw(b"b", bcrypt.gensalt(6))}
    asyncio.run(Passwords().check(users, b"nobody", b"x"))
    assert [hashed.split(b"$")[2] for hashed in checks.against] == [b"06"]


def test_who_guesses_does_not_push_out_who_knows(checks: Checks) -> None:
    """After any number of guesses what was right is still remembered, and what is kept of the guesses is bounded."""

    async def ask() -> None:
        passwords = Passwords()
        await passwords.check(USERS, b"me", b"secret")
        for number in range(120):
            await passwords.check(USERS, b"me", str(number).encode())
        done = len(checks.against)
        assert await passwords.check(USERS, b"me", b"secret") is Verdict.RIGHT
        assert len(checks.against) == done
        assert sum(map(len, passwords._known.values())) <= 200

    asyncio.run(ask())


def test_too_many_checks_are_turned_away_and_those_who_are_known_are_not(checks: Checks) -> None:
    """While sixteen are at it one more is told to try again; a scraper that is known passes at once."""

    async def ask() -> None:
        passwords = Passwords()
        await passwords.check(USERS, b"me", b"secret")
        checks.may_go_on.clear()
        waiting = [asyncio.create_task(passwords.check(USERS, b"me", str(number).encode())) for number in range(16)]
        await asyncio.sleep(0.05)
        assert await passwords.check(USERS, b"me", b"more") is Verdict.BUSY
        assert await passwords.check(USERS, b"me", b"secret") is Verdict.RIGHT
        checks.may_go_on.set()
        assert set(await asyncio.gather(*waiting)) == {Verdict.WRONG}
        assert await passwords.check(USERS, b"me", b"more") is Verdict.WRONG

    asyncio.run(ask())


def test_a_client_that_hangs_up_does_not_end_the_check_of_another(checks: Checks) -> None:
    """Two ask the same; one goes."""

    async def ask() -> None:
        passwords = Passwords()
        checks.may_go_on.clear()
        going, staying = (asyncio.create_task(passwords.check(USERS, b"me", b"secret")) for _ in range(2))
        await asyncio.sleep(0.05)
        going.cancel()
        checks.may_go_on.set()
        assert await staying is Verdict.RIGHT

    asyncio.run(ask())


def test_the_loop_goes_on_during_a_check() -> None:
    """A check of a tenth of a second, and ticks of a millisecond beside it."""
    users = {b"me": bcrypt.hashpw(b"secret", bcrypt.gensalt(11))}

    async def ask() -> tuple[int, float]:
        passwords, ticks, start = Passwords(), 0, time.perf_counter()
        check = asyncio.create_task(passwords.check(users, b"me", b"secret"))
        while not check.done():
            await asyncio.sleep(0.001)
            ticks += 1
        return ticks, time.perf_counter() - start

    ticks, seconds = asyncio.run(ask())
    assert ticks > 10 * seconds


@pytest.mark.parametrize(
    "header", ["", "Basic", "Bearer bWU6c2VjcmV0", "Basic !!!!", "Basic bWU=", "Basicbwu6c2VjcmV0", "Basic bWU6c2VjcmV"]
)
def test_what_has_no_name_and_password_is_nothing(header: str) -> None:
    """Another scheme, no base64, no colon."""
    assert credentials(header.encode()) is None


@given(
    user=st.text().filter(lambda text: ":" not in text), password=st.text(), scheme=st.sampled_from(["Basic", "basic"])
)
def test_any_name_and_password_are_read_as_they_were_sent(user: str, password: str, scheme: str) -> None:
    """A password may have colons, a name none."""
    encoded = base64.b64encode(f"{user}:{password}".encode()).decode()
    assert credentials(f"{scheme} {encoded}".encode()) == (user.encode(), password.encode())


@given(st.binary())
def test_any_header_is_read_or_nothing(header: bytes) -> None:
    """Never an error."""
    assert credentials(header) is None or header.lower().startswith(b"basic")
