"""Basic authentication against bcrypt hashes (RFC 7617), without holding anybody else up.

A check takes tens of milliseconds of processor time by design: it runs in a thread, one at a time, and what it found is
remembered, as exporter-toolkit does. Invariant: neither the answer nor its time tells whether a user exists; passwords
are kept nowhere, only hashes of them under a key that dies with the process.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import enum
import hashlib
import os
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import bcrypt

__all__ = ["Passwords", "Verdict", "credentials"]

_REMEMBERED = 100  # pairs of user and password, of those that are right, and of those that are wrong
_MOST_CHECKS = 16  # that run or wait; at 70 ms each the last one waits a second
_BCRYPT_BYTES = 72  # of a password that bcrypt looks at


class Verdict(enum.Enum):
    """What came of a check."""

    RIGHT = "right"
    WRONG = "wrong"
    BUSY = "busy"
    """There are too many others to check."""


def credentials(authorization: bytes) -> tuple[bytes, bytes] | None:
    """User and password of an `Authorization` header; None for anything else."""
    scheme, _, encoded = authorization.partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        user, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
    except binascii.Error:
        return None
    return (user, password) if colon else None


class Passwords:
    """Checks and remembers. Its methods belong to one event loop."""

    def __init__(self) -> None:
        self._key = os.urandom(32)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kvmon-password")
        # Apart, so that whoever guesses never pushes out what is known to be right.
        self._known: dict[Verdict, OrderedDict[bytes, None]] = {
            Verdict.RIGHT: OrderedDict(),
            Verdict.WRONG: OrderedDict(),
        }
        self._running: dict[bytes, asyncio.Future[bool]] = {}

    async def check(self, users: Mapping[bytes, bytes], user: bytes, password: bytes) -> Verdict:
        """Whether `users` (name to bcrypt hash, at least one) has this pair."""
        hashed = users.get(user)
        pair = self._digest(user, hashed or b"", password)
        for verdict, known in self._known.items():
            if pair in known:
                known.move_to_end(pair)
                return verdict
        running = self._running.get(pair)
        if running is None:
            if len(self._running) >= _MOST_CHECKS:
                return Verdict.BUSY
            against = hashed if hashed is not None else _nobodys(users)
            loop = asyncio.get_running_loop()
            running = self._running[pair] = loop.run_in_executor(self._thread, _matches, password, against)
            running.add_done_callback(lambda _: self._running.pop(pair, None))
        # Shielded: a client that hangs up does not stop the check for others that ask the same.
        right = await asyncio.shield(running) and hashed is not None
        verdict = Verdict.RIGHT if right else Verdict.WRONG
        self._remember(verdict, pair)
        return verdict

    def _remember(self, verdict: Verdict, pair: bytes) -> None:
        known = self._known[verdict]
        known[pair] = None
        if len(known) > _REMEMBERED:
            known.popitem(last=False)

    def _digest(self, *parts: bytes) -> bytes:
        digest = hashlib.blake2b(key=self._key)
        for part in parts:
            digest.update(len(part).to_bytes(8, "big") + part)
        return digest.digest()


def _matches(password: bytes, hashed: bytes) -> bool:
    try:
        return bcrypt.checkpw(password[:_BCRYPT_BYTES], hashed)
    except ValueError:  # what an older bcrypt refuses, such as a NUL, is nobody's password
        return False


def _nobodys(users: Mapping[bytes, bytes]) -> bytes:
    """A hash that no password has, as costly as the costliest of the users'."""
    cost = max(int(hashed.split(b"$")[2]) for hashed in users.values())
    return bcrypt.gensalt(cost) + b"." * 31
