"""WebSockets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from tornado.ioloop import IOLoop
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from ..messages import Gap
from ..protocols import Released
from ..typevars import T
from ..wire import gap_object, text_frame, websocket_frame, websocket_json
from .connection import SLICE, Connection, ConnectionClosed, open_stream
from .streaming import StreamingHandler

__all__ = ("WebSocketSubscriber",)


SWITCHING_PROTOCOLS = 101  # HTTP status
GOING_AWAY, INTERNAL_ERROR, TRY_AGAIN_LATER = 1001, 1011, 1013  # close codes


class WebSocketSubscriber(StreamingHandler[T], WebSocketHandler):
    """Send the messages of a store to a WebSocket.

    Each message is a JSON object ``{"data": ..., "id": ..., "event": ...}``, the last two
    where they are set; a gap is ``{"gap": {"reason": ..., "after": ...}}``. A client
    resumes with the query argument ``last_event_id``. What it sends is ignored, unless a
    subclass overrides ``on_message``.

    Payloads that are JSON stand under ``data`` as they are; with `encode` its text does, as
    one JSON string. The close code is 1001 when the store is closed, 1011 when publishing
    has failed, and 1013 for who is to come back later.

    Source: RFC 6455.
    """

    _compressed = False

    async def get(self, *args: Any, **kwargs: Any) -> None:
        """Shake hands, and stay until the connection is closed."""
        try:
            await WebSocketHandler.get(self, *args, **kwargs)
        finally:
            self._leave()

    def open(self, *args: Any, **kwargs: Any) -> Awaitable[None] | None:
        """Subscribe. Who overrides this calls ``super().open()``, which is not awaited."""
        if self._connection is not None:  # or nobody was left to shake hands with
            self._subscribe()
        return None

    def on_message(self, message: str | bytes) -> Awaitable[None] | None:
        """Ignore what the client sends. Override it to listen."""

    def _finishing(self, flushed: asyncio.Future[None]) -> None:
        if self.get_status() == SWITCHING_PROTOCOLS:  # the handshake ends nothing
            self._begin()
        else:
            super()._finishing(flushed)

    def _begin(self) -> None:
        """Write frames from now on, whatever `open` does."""
        stream = open_stream(self.request)
        if stream is None or self.ws_connection is None:
            return
        options = self._options
        self._compressed = self.get_compression_options() is not None
        kind = _CompressedConnection if self._compressed else Connection
        self._start(
            kind(stream, options.write_timeout, options.send_buffer, self.ws_connection),
            (websocket_json if self._compressed else websocket_frame)(options.encode),
        )
        if self._early:  # to go behind what `open` subscribes to
            # Tornado's annotation says Callable, and not of what.
            IOLoop.current().spawn_callback(self._submit_early)  # pyright: ignore[reportUnknownMemberType]
        if self._released is not None:  # before there was anybody to tell
            asyncio.get_running_loop().call_soon(self._say_goodbye, self._released)

    def _render_gap(self, gap: Gap) -> bytes:
        payload = gap_object(gap)
        return payload if self._compressed else text_frame(payload)

    def _beat(self) -> None:
        connection = self._connection
        if connection is None:
            return
        if connection.writing or self.ping_interval:
            return connection.watch()
        try:
            self.ping()
        except (WebSocketClosedError, ConnectionClosed):
            self._leave()

    def _say_goodbye(self, reason: Released) -> None:
        if reason == "closed":
            self.close(GOING_AWAY, "the server is going away")
        elif self._connection is not None and self._connection.writing:
            self._abort()
        elif reason == "failed":
            self.close(INTERNAL_ERROR, "the subscription has failed")
        else:
            self.close(TRY_AGAIN_LATER, reason)


class _CompressedConnection(Connection):
    """Lets Tornado compress each payload, as the state of the compressor is the client's."""

    __slots__ = ()

    def _send(self, data: bytes) -> None:
        if self._protocol is None or self._protocol.is_closing():
            raise ConnectionClosed
        try:
            written = self._protocol.write_message(data)
        except WebSocketClosedError as error:
            raise ConnectionClosed(error) from error
        written.add_done_callback(_retrieve)
        self._watch(written, slices=-(-len(data) // SLICE))


def _retrieve(written: asyncio.Future[None]) -> None:
    """Look at the outcome, which asyncio would log otherwise; the close is seen elsewhere."""
    if not written.cancelled():
        written.exception()
