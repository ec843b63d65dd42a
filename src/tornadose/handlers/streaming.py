"""What event streams and WebSockets share: rendered messages on a `Connection`."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from typing import Any

from tornado.httputil import HTTPServerRequest
from tornado.web import Application

from ..messages import Batch, Gap, Message, check_message
from ..typevars import T
from ..wire import Format
from .base import BaseHandler
from .connection import Connection, ConnectionClosed
from .heartbeat import heartbeat_of

__all__ = ("StreamingHandler",)


class StreamingHandler(BaseHandler[T]):
    """A handler that writes every message to its connection."""

    # Each delivery reads them, and would have to find a dictionary of its own in the cache.
    __slots__ = ("_connection", "_format")

    _connection: Connection | None
    _format: Format[T]
    _opening: asyncio.Event | None = None

    def __init__(
        self, application: Application, request: HTTPServerRequest, **kwargs: Any
    ) -> None:
        self._connection = None
        super().__init__(application, request, **kwargs)

    async def publish(self, message: Message[T], /) -> None:
        """Write one message, as soon as the earlier ones are with the socket.

        Cancelled, it has written all of it or nothing.

        Raises:
            PoisonedError: If the message cannot be encoded; nothing is written.
            tornado.iostream.StreamClosedError: If the client is gone.
        """
        check_message(message)
        connection = await self._opened()
        await self._write(connection, message.render(self._format))

    async def publish_gap(self, gap: Gap, /) -> None:
        """Write a control frame that tells the client of a gap."""
        connection = await self._opened()
        await self._write(connection, self._render_gap(gap))

    def publish_nowait(self, batch: Batch[T], /) -> bool:
        """Write all messages to the socket, or none while earlier bytes wait."""
        connection = self._connection
        if connection is None or (rendering := batch.render(self._format)) is None:
            return False
        try:
            return connection.write_nowait(rendering)
        except ConnectionClosed:
            self._leave()
            raise

    @abstractmethod
    def _render_gap(self, gap: Gap) -> bytes: ...

    @abstractmethod
    def _beat(self) -> None: ...

    def _start(self, connection: Connection, fmt: Format[T]) -> None:
        """Write to this connection from now on, also what was published before."""
        if self._left:
            return
        self._connection, self._format = connection, fmt
        self._subscribable = True
        if self._opening is not None:
            self._opening.set()
        if self._options.heartbeat is not None:
            heartbeat_of(self._options.heartbeat).add(self._beat)

    async def _opened(self) -> Connection:
        while self._connection is None:
            if self._left:
                raise ConnectionClosed
            if self._opening is None:
                self._opening = asyncio.Event()
            await self._opening.wait()
        return self._connection

    async def _write(self, connection: Connection, data: bytes) -> None:
        try:
            await connection.write(data)
        except ConnectionClosed:
            self._leave()
            raise

    def _cannot_resume(self) -> None:
        if self._connection is not None:
            self._connection.append(self._render_gap(Gap("unknown")))

    def _abort(self) -> None:
        if self._connection is not None:
            self._connection.abort()
        else:
            super()._abort()

    def _leave(self) -> None:
        if not self._left:
            self._left = True
            if self._connection is not None:
                if self._options.heartbeat is not None:
                    heartbeat_of(self._options.heartbeat).remove(self._beat)
                self._connection = None
                del self._format  # whose encoder may hold this handler
            if self._opening is not None:
                self._opening.set()
        super()._leave()
