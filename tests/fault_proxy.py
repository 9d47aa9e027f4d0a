"""A proxy on loopback, in a thread, that makes an HTTP server answer 503, break off, cut short, wait, or be gone."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


@dataclass
class Proxy:
    """Shares of the requests that go wrong, and what went wrong so far; all may change while it runs."""

    upstream: int
    busy: float = 0.0
    reset: float = 0.0
    cut: float = 0.0
    latency_s: float = 0.0
    port: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    _random: random.Random = field(default_factory=lambda: random.Random(0))
    _server: asyncio.Server | None = None
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def go(self) -> None:
        """Refuse connections from now on, and break the open ones."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(5)

    def come(self) -> None:
        """Listen, on the same port as before."""
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(5)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                while await self._request(reader, writer):
                    pass
        finally:
            writer.transport.abort()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Pass on one request and its answer; False where the connection is to end."""
        head = await reader.readuntil(b"\r\n\r\n")
        if b"expect: 100-continue" in head.lower():
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = b"\r\n".join(line for line in head.split(b"\r\n") if not line.lower().startswith(b"expect:"))
        body = await reader.readexactly(_length(head))
        self.counts["requests"] += 1
        await asyncio.sleep(self.latency_s)
        fate = self._random.random()
        if fate < self.busy:
            self.counts["busy"] += 1
            writer.write(b"HTTP/1.1 503 Slow Down\r\nContent-Length: %d\r\n\r\n%b" % (len(BUSY), BUSY))
            return True
        if fate < self.busy + self.reset:
            self.counts["reset"] += 1
            return False
        answer, data = await self._ask(head, body)
        if head.startswith(b"GET") and len(data) > 100 and fate > 1 - self.cut:
            self.counts["cut"] += 1
            writer.write(answer + data[: len(data) // 2])
            await writer.drain()
            return False
        self.counts["bytes"] += len(data)
        writer.write(answer + data)
        await writer.drain()
        return True

    async def _ask(self, head: bytes, body: bytes) -> tuple[bytes, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        try:
            writer.write(head + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            without = head.startswith(b"HEAD") or answer.split(b" ")[1] in (b"204", b"304")
            return answer, b"" if without else await reader.readexactly(_length(answer))
        finally:
            writer.close()


def _length(head: bytes) -> int:
    lines = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return int(lines[0].split(b":")[1]) if lines else 0


@contextlib.contextmanager
def proxy(upstream: int) -> Iterator[Proxy]:
    """A proxy to a port of this machine."""
    made = Proxy(upstream)
    thread = threading.Thread(target=made._loop.run_forever, daemon=True)
    thread.start()
    try:
        made.come()
        yield made
        made.go()
    finally:
        made._loop.call_soon_threadsafe(made._loop.stop)
        thread.join(5)
