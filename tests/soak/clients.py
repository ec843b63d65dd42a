"""Many clients in one process: what they all receive is kept once."""

from __future__ import annotations

import asyncio
import re
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final

EVENT = re.compile(rb"(?:id: [0-9-]+\n|event: gap\n)?data: [^\n]*\n\n")
PATIENCE = 60.0  # seconds, as the machine may have more to do than this
GAP: Final = (-1, -1)  # among the spans of a client
_buffer = memoryview(bytearray(1 << 18))  # for whoever reads just now


class Log:
    """Events, each once, in the order in which the first client has got them.

    Attributes:
        events: As they are.
        numbers: Where each one stands.
        wire: All of them, each as the chunk that it travels in.
        ends: Where in these bytes the first events end, beginning with none of them.
    """

    def __init__(self) -> None:
        self.events: list[bytes] = []
        self.numbers: dict[bytes, int] = {}
        self.wire = bytearray()
        self.ends = [0]

    def number(self, event: bytes) -> int:
        """Return where this event stands, at the end if it is new."""
        number = self.numbers.setdefault(event, len(self.events))
        if number == len(self.events):
            self.events.append(event)
            self.wire += b"%x\r\n%b\r\n" % (len(event), event)
            self.ends.append(len(self.wire))
        return number


class Client:
    """Somebody who follows the events of one path, at one server or another.

    What it has got is a list of spans in the log: one, if it has missed nothing.

    Args:
        path: Of the events.
        log: Shared with the others.
        on_end: Called when the server has ended the connection.

    Attributes:
        gaps: That it was told of, by the reason.
        resumed: How often it has come back with the id of its last event.
        arrived: When the last events came, in seconds of the wall clock.
        ended: Connections that the server has ended.
        strange: Bytes that are no event.
    """

    def __init__(self, path: str, log: Log, on_end: Callable[[Client], None]) -> None:
        self.gaps: Counter[str] = Counter()
        self.ended = self.resumed = 0
        self.arrived = 0.0
        self.strange: list[bytes] = []
        self._on_end = on_end
        self._path = path
        self._log = log
        self._spans: list[tuple[int, int]] = []
        self._start = self._end = 0  # of the span that grows
        self._link: _Link | None = None
        self._moving = asyncio.Lock()

    @property
    def received(self) -> int:
        """How many events, gaps not counted."""
        return sum(end - start for start, end in self.spans)

    @property
    def last(self) -> bytes | None:
        return self._log.events[self._end - 1] if self._end else None

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """What it has got, as ranges of the log, and `GAP` where it was told of one."""
        return (*self._spans, *self._growing())

    async def move(self, port: int) -> None:
        """Leave, and connect to this port, resuming after the last event if that has an id."""
        request = [f"GET {self._path} HTTP/1.1", "Host: localhost"]
        async with asyncio.timeout(PATIENCE), self._moving:
            self.leave()
            found = re.match(rb"id: (.+)\n", self.last or b"")
            if found is not None:
                self.resumed += 1
                request.append(f"Last-Event-ID: {found[1].decode()}")
            elif self.last is not None:
                self._spans += [*self._growing(), GAP]  # as it knows that it was away
                self._start = self._end
            self._link = _Link(self)
            await self._link.open(port, "\r\n".join([*request, "", ""]).encode())

    def leave(self) -> None:
        """Go away, whatever is still on the way."""
        if self._link is not None:
            self._link.abort()
            self._link = None

    def lose(self) -> None:
        """Note that the server has ended the connection."""
        self.ended += 1
        self.leave()
        self._on_end(self)

    def take(self, data: bytes) -> int:
        """Note the events in what has come, and return how many bytes they are.

        Mostly it is what others have got as well, which need not be parsed again.
        """
        self.arrived = time.time()
        wire, ends, begin = self._log.wire, self._log.ends, self._log.ends[self._end]
        if not wire.startswith(data, begin):
            return self._parse(data)
        self._end = bisect_right(ends, begin + len(data), self._end) - 1
        return ends[self._end] - begin

    def _parse(self, data: bytes) -> int:
        end = data.rfind(b"\n\n\r\n") + 4
        if end < 4:
            return 0
        events: list[bytes] = EVENT.findall(data, 0, end)
        if data.count(b"\n\n", 0, end) != len(events) + data.count(b"\n:\n\n", 0, end):
            self.strange.append(data[:end])
        for event in events:
            self._take(event)
        return end

    def _take(self, event: bytes) -> None:
        gap = re.match(rb'event: gap\ndata: {"reason":"(\w+)"', event)
        if gap is not None:
            self.gaps[gap[1].decode()] += 1
            self._spans += [*self._growing(), GAP]
            self._start = self._end
            return
        number = self._log.number(event)
        if number != self._end:
            self._spans += self._growing()
            self._start = number
        self._end = number + 1

    def _growing(self) -> list[tuple[int, int]]:
        return [(self._start, self._end)] if self._end > self._start else []


class _Link(asyncio.BufferedProtocol):
    """One connection of a client."""

    def __init__(self, client: Client) -> None:
        self._accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._client: Client | None = client
        self._rest = b""
        self._transport: asyncio.Transport | None = None
        self._read: Callable[[bytes], None] = self._read_head

    async def open(self, port: int, request: bytes) -> None:
        """Connect, and wait until the request is accepted."""
        connecting = asyncio.get_running_loop().create_connection
        self._transport, _ = await connecting(lambda: self, "127.0.0.1", port)
        self._transport.write(request)
        await self._accepted

    def abort(self) -> None:
        self._client = None
        self._accepted.cancel()
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._refuse(exc or EOFError("the server has closed the connection"))

    def get_buffer(self, sizehint: int) -> memoryview:
        return _buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._read(self._rest + _buffer[:nbytes])

    def _read_head(self, data: bytes) -> None:
        head, end, self._rest = data.partition(b"\r\n\r\n")
        if not end:
            self._rest = data
        elif not head.startswith(b"HTTP/1.1 200 "):
            self._refuse(ConnectionError(head))
        elif not self._accepted.done():
            self._accepted.set_result(None)
            self._read = self._read_body
            self._read_body(self._rest)

    def _refuse(self, error: Exception) -> None:
        if not self._accepted.done():
            self._accepted.set_exception(error)
        elif self._client is not None:
            self._client.lose()

    def _read_body(self, data: bytes) -> None:
        if self._client is not None:
            self._rest = data[self._client.take(data) :]
            if self._rest == b"0\r\n\r\n":  # the last chunk, after which nothing comes
                self._refuse(EOFError("the server has ended the response"))


def played(spans: tuple[tuple[int, int], ...], log: Log) -> Iterator[bytes | None]:
    """Give the events of these spans in order, and ``None`` for each gap."""
    for span in spans:
        if span == GAP:
            yield None
        else:
            yield from log.events[slice(*span)]
