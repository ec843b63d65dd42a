"""Server-sent events."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable
from typing import Any

from tornado.httputil import HTTPHeaders
from tornado.iostream import IOStream

from ..messages import Gap
from ..protocols import Released
from ..typevars import T
from ..wire import COMMENT, chunk, event_stream, gap_event, retry_field
from .connection import Connection, ConnectionClosed, open_stream
from .streaming import StreamingHandler

__all__ = ("EventSource",)


DEFAULT_RETRY = 3.0  # seconds, what browsers take about


class EventSource(StreamingHandler[T]):
    """Stream the messages of a store as ``text/event-stream``.

    Messages have an ``id`` where the store can resume, an ``event`` where one was given,
    and one ``data`` line for each line of the payload. A client resumes with the header
    ``Last-Event-ID`` or the query argument ``last_event_id``; what it has missed for good
    is announced by an event of type ``gap``.

    When the store is closed, or has no room for the client, the stream ends behind a
    ``retry`` that is drawn for each client, around the option of that name or 3 seconds;
    the status is 200 all the same, as a browser takes anything else for the end.

    Source: WHATWG HTML, 9.2 Server-sent events.
    """

    _streaming = False

    def get(self, *args: Any, **kwargs: Any) -> Awaitable[None]:
        """Send the headers at once, subscribe, and stream until either side ends it."""
        if not self._finished and open_stream(self.request) is not None:
            self._send_headers()
            self._headers = HTTPHeaders()  # they would take a KiB as long as the stream
            stream = open_stream(self.request)
            if stream is not None:  # or the headers have found nobody
                self._start_stream(stream)
        return self._hold()

    def head(self, *args: Any, **kwargs: Any) -> Awaitable[None] | None:
        """Answer with the headers alone."""
        self._send_headers()
        return None

    @property
    def _chunked(self) -> bool:
        return self.request.version == "HTTP/1.1"

    def _start_stream(self, stream: IOStream) -> None:
        options = self._options
        connection = Connection(stream, options.write_timeout, options.send_buffer)
        if options.retry is not None:
            connection.append(self._framed(retry_field(options.retry)))
        self._start(connection, event_stream(options.encode, chunked=self._chunked))

    def _send_headers(self) -> None:
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Accel-Buffering", "no")
        if not self._chunked:
            self.request.headers.pop("Connection", None)
            self.set_header("Connection", "close")
        self._streaming = True
        self._transforms = []  # compression would hold messages back
        self.flush()

    def _finishing(self, flushed: asyncio.Future[None]) -> None:
        if self._connection is not None:
            self._connection.end()
        super()._finishing(flushed)
        if self._streaming and not self._chunked:  # the end of the connection is the end
            flushed.add_done_callback(lambda _: self._abort())

    def _render_gap(self, gap: Gap) -> bytes:
        return self._framed(gap_event(gap))

    def _framed(self, body: bytes) -> bytes:
        return chunk(body) if self._chunked else body

    def _beat(self) -> None:
        if self._connection is not None:
            try:
                self._connection.write_nowait(self._framed(COMMENT))
            except ConnectionClosed:
                self._leave()

    def _say_goodbye(self, reason: Released) -> None:
        """End the stream; who leaves with many others comes back at a time of its own."""
        if self._finished:
            return
        asked = self.request.method == "GET" and not self._headers_written
        if asked and open_stream(self.request) is not None:
            self._send_headers()
        if self._streaming and reason in ("closed", "limit"):
            retry = DEFAULT_RETRY if self._options.retry is None else self._options.retry
            field = retry_field(random.uniform(0.5, 1.5) * retry)
            if self._connection is not None:
                self._connection.append(self._framed(field))
            else:
                # Tornado's annotation says dict, and not of what.
                self.write(field)  # pyright: ignore[reportUnknownMemberType]
        super()._say_goodbye(reason)
