"""A crowd of clients that are no use to anybody, as a process: silent, slow, or talking nonsense.

    python -m tests.crowd ADDRESS PORT COUNT plain|tls

Prints `ready` once all have connected and goes on until it is killed. Whoever is hung up on comes again after a pause.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import sys
from collections.abc import Callable, Coroutine
from typing import Any

PAUSE_SECONDS = (1, 3)
REQUEST = b"GET /metrics HTTP/1.1\r\nHost: exporter\r\nX-Slow: " + b"x" * 500
# The beginning of a ClientHello of TLS 1.2 that announces 508 bytes more.
HELLO = bytes.fromhex("1603010200010001fc0303") + bytes(32)


class Crowd:
    """Clients of one server; each returns when it is hung up on, and is started again."""

    def __init__(self, host: str, port: int, tls: bool) -> None:
        self.host, self.port = host, port
        self.context = ssl._create_unverified_context() if tls else None
        self.connected = 0

    async def open(self, context: ssl.SSLContext | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection; it counts once it is there."""
        opened = await asyncio.open_connection(self.host, self.port, ssl=context)
        self.connected += 1
        return opened

    async def silent(self) -> None:
        """Connects and says nothing."""
        reader, writer = await self.open(None)
        await self._until_hung_up(reader, writer)

    async def slow(self) -> None:
        """Makes a request, a byte a second."""
        reader, writer = await self.open(self.context)
        await self._drip(reader, writer, REQUEST)

    async def slow_hello(self) -> None:
        """Says hello in TLS, a byte a second."""
        reader, writer = await self.open(None)
        await self._drip(reader, writer, HELLO)

    async def garbage(self) -> None:
        """Sends what is no request, and no TLS."""
        reader, writer = await self.open(None)
        writer.write(random.randbytes(random.randrange(1, 4096)))
        await self._until_hung_up(reader, writer)

    async def again(self, client: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """A client that comes again whenever it is hung up on."""
        while True:
            with contextlib.suppress(OSError, EOFError):
                await client()
            await asyncio.sleep(random.uniform(*PAUSE_SECONDS))

    async def run(self, count: int) -> None:
        """All of them, for ever."""
        kinds = [self.silent, self.slow, self.garbage, self.slow_hello if self.context else self.silent]
        tasks = []
        for number in range(count):
            tasks.append(asyncio.create_task(self.again(kinds[number % len(kinds)])))
            if number % 50 == 0:
                await asyncio.sleep(0.02)
        while self.connected < count:
            await asyncio.sleep(0.05)
        print("ready", flush=True)
        await asyncio.gather(*tasks)

    async def _drip(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> None:
        try:
            for byte in data:
                if reader.at_eof():
                    break
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(1)
        finally:
            writer.close()

    async def _until_hung_up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        finally:
            writer.close()


def main(host: str, port: str, count: str, kind: str) -> None:
    """Run a crowd."""
    asyncio.run(Crowd(host, int(port), kind == "tls").run(int(count)))


if __name__ == "__main__":
    main(*sys.argv[1:])
