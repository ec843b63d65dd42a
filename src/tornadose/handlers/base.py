"""What every handler has in common: options, subscribing, and leaving whatever happens."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Hashable
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any, Generic, TypeVar, overload

from tornado.httputil import HTTPServerRequest
from tornado.routing import URLSpec
from tornado.web import Application, RequestHandler

from ..capabilities import hears_gaps, resumes, targets
from ..checks import check_methods, check_seconds, check_size
from ..exceptions import PoisonedError, StoreClosedError
from ..messages import Gap, Message
from ..protocols import Released, ResumableSource, Store, Subscriber
from ..typevars import T
from .connection import ConnectionClosed, open_stream

__all__ = ("BaseHandler", "Options")

log = logging.getLogger("tornadose")

SHORTEST_HEARTBEAT = 0.01  # seconds

P = TypeVar("P")


class Options(Generic[T]):
    """What a handler can be told besides its store.

    Args:
        encode: Makes the text that travels of a payload, for WebSockets as a JSON string;
            ``None`` sends strings as they are, bytes as UTF-8, and the rest as JSON.
        heartbeat: Seconds between two signs of life; ``None`` is off.
        retry: Seconds after which a browser reconnects; ``None`` is its own default.
        write_timeout: Seconds in which a client must take the next 64 KiB.
        send_buffer: Size of the socket's send buffer in bytes; ``None`` is the system's.

    Raises:
        TypeError: If one of them is of the wrong type.
        ValueError: If one is out of range.
    """

    def __init__(
        self,
        *,
        encode: Callable[[T], str] | None = None,
        heartbeat: float | None = 15.0,
        retry: float | None = None,
        write_timeout: float = 30.0,
        send_buffer: int | None = None,
    ) -> None:
        if encode is not None and not callable(encode):
            raise TypeError(f"encode: {encode!r} is not callable")
        if iscoroutinefunction(encode):
            raise TypeError(f"encode: {encode!r} is a coroutine function, and makes no text")
        if not isinstance(encode, Hashable):  # who share an encoder share its results
            raise TypeError(f"encode: {encode!r} is not hashable")
        check_seconds("heartbeat", heartbeat, or_none=True)
        if heartbeat is not None and heartbeat < SHORTEST_HEARTBEAT:
            raise ValueError(f"heartbeat: {heartbeat!r} is less than {SHORTEST_HEARTBEAT}")
        check_seconds("retry", retry, or_none=True, or_zero=True)
        check_seconds("write_timeout", write_timeout)
        if send_buffer is not None:
            check_size("send_buffer", send_buffer, at_least=1)
        self.encode = encode
        self.heartbeat = heartbeat
        self.retry = retry
        self.write_timeout = write_timeout
        self.send_buffer = send_buffer


class BaseHandler(RequestHandler, ABC, Generic[T]):
    """Base class for handlers that subscribe: override `publish`.

    A GET request subscribes once Tornado has accepted it, and is held until it is
    finished, closed or released. Whatever ends it deregisters the handler, also where a
    subclass overrides Tornado's hooks without ``super()``.

    A subclass that has ``async def publish_gap(self, gap)`` besides is told where messages
    were missed; for others that is logged.

    Attributes:
        store: Where the messages come from.
    """

    store: Store[T]
    _options: Options[T] = Options()
    _held: asyncio.Future[None] | None = None
    _accepted = False  # whether Tornado has called `get`, or another method
    _acceptance: asyncio.Event | None = None
    _subscribable = False
    _resumed = False
    _early: tuple[Message[T], ...] = ()
    _released: Released | None = None
    _left = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let every `get`, `post` and so on begin with accepting the request."""
        super().__init_subclass__(**kwargs)
        for name in map(str.lower, cls.SUPPORTED_METHODS):
            definer = next((c for c in cls.__mro__ if name in vars(c)), RequestHandler)
            if definer is cls:
                setattr(cls, name, cls._accept_in(vars(cls)[name]))
            elif definer is not RequestHandler and not issubclass(definer, BaseHandler):
                setattr(cls, name, cls._accept_before(name))

    def __init__(
        self, application: Application, request: HTTPServerRequest, **kwargs: Any
    ) -> None:
        try:
            super().__init__(application, request, **kwargs)
        except BaseException:
            self._leave()  # as `initialize` may have registered before it failed
            raise
        connection: Any = request.connection
        connection.set_close_callback(self._lost)  # in the place of Tornado's own
        if getattr(self, "_stream_request_body", False):  # as Tornado calls it in mid-body
            setattr(self, "on_connection_close", self._lost)  # noqa: B010 (it is a method)

    @staticmethod
    def _accept_in(method: Callable[..., Any]) -> Callable[..., Any]:
        """Return this method, which accepts the request before anything else."""

        @wraps(method)
        def accepting(self: BaseHandler[Any], *args: Any, **kwargs: Any) -> Any:
            return method(self, *args, **kwargs) if self._accept() else None

        return accepting

    @classmethod
    def _accept_before(cls, name: str) -> Callable[..., Any]:
        """Return a method that accepts the request, and goes on with that of a mix-in."""

        def accepting(self: BaseHandler[Any], *args: Any, **kwargs: Any) -> Any:
            return getattr(super(cls, self), name)(*args, **kwargs) if self._accept() else None

        return accepting

    def initialize(self, store: Store[T], *args: Any, **options: Any) -> None:
        """Take the store and the `Options`, by keyword, from the URL table.

        A subclass may override this with arguments of its own; it calls it with
        ``super()``, or sets ``self.store``.

        Raises:
            TypeError: If an option is unknown, or of the wrong type.
            ValueError: If one is out of range.
        """
        check_methods("store", store, "register", "deregister")
        self.store = store
        if args or options:
            self._options = Options(*args, **options)

    @overload
    @classmethod
    def route(
        cls: type[BaseHandler[P]],
        pattern: str,
        store: Store[P],
        *,
        encode: None = None,
        heartbeat: float | None = 15.0,
        retry: float | None = None,
        write_timeout: float = 30.0,
        send_buffer: int | None = None,
        name: str | None = None,
    ) -> URLSpec: ...
    # Were `cls` a type[BaseHandler[P]] here as well, P would be Any for who does not
    # parametrize the class, as its T defaults to Any, and the encoder would go unchecked.
    @overload
    @classmethod
    def route(
        cls,
        pattern: str,
        store: Store[P],
        *,
        encode: Callable[[P], str],
        heartbeat: float | None = 15.0,
        retry: float | None = None,
        write_timeout: float = 30.0,
        send_buffer: int | None = None,
        name: str | None = None,
    ) -> URLSpec: ...
    @classmethod
    def route(
        cls,
        pattern: str,
        store: Store[P],
        *,
        encode: Callable[[P], str] | None = None,
        heartbeat: float | None = 15.0,
        retry: float | None = None,
        write_timeout: float = 30.0,
        send_buffer: int | None = None,
        name: str | None = None,
    ) -> URLSpec:
        """Return a row for the URL table, with store and encoder checked to agree.

        A handler whose `initialize` has arguments of its own stands there in Tornado's way.
        The options are for event streams and WebSockets; what a `publish` of one's own sends
        is up to that.

        Args:
            pattern: A regular expression for the path, as in Tornado.
            store: Where the messages come from.
            encode: Makes the text that travels of a payload, for WebSockets as a JSON string;
                ``None`` sends strings as they are, bytes as UTF-8, and the rest as JSON.
            heartbeat: Seconds between two signs of life; ``None`` is off.
            retry: Seconds after which a browser reconnects; ``None`` is its own default.
            write_timeout: Seconds in which a client must take the next 64 KiB.
            send_buffer: Size of the socket's send buffer in bytes; ``None`` is the system's.
            name: Of the row, for ``reverse_url``.

        Raises:
            TypeError: If an option is of the wrong type.
            ValueError: If one is out of range.
        """
        given = Options(
            encode=encode,
            heartbeat=heartbeat,
            retry=retry,
            write_timeout=write_timeout,
            send_buffer=send_buffer,
        )
        check_methods("store", store, "register", "deregister", "submit")
        return URLSpec(pattern, cls, {"store": store, **changed(given)}, name)

    def get(self, *args: Any, **kwargs: Any) -> Awaitable[None]:
        """Subscribe, and hold the request until it is finished, closed or released."""
        return self._hold()

    @abstractmethod
    async def publish(self, message: Message[T], /) -> None:
        """Take one message, and return when ready for the next. Override this.

        It is called once `prepare` has let the request pass, however early the handler was
        registered with a store of this package.
        """

    async def submit(self, data: T, /, *, event: str | None = None) -> Message[T]:
        """Queue a payload for this subscriber alone, behind what it has not taken yet.

        What comes before the client can be sent anything, in ``prepare`` or before the
        ``super().get()`` of an overridden ``get``, is kept until then. A store that cannot
        queue for one subscriber is bypassed: the payload is published at once.

        Raises:
            TypeError: If the event is no string.
            ValueError: If it is no usable name.
            tornado.iostream.StreamClosedError: If the client of a stream has left.
        """
        message = Message(data, event=event)
        if self._early or not self._accepted or not await self._submit(message):
            self._early = (*self._early, message)
        return message

    def released(self, reason: Released, /) -> None:
        """End the request, once it is accepted: the store has let go of this handler."""
        self._released = reason
        if self._accepted and self._acceptance is not None and not self._is_asking():
            self._leave()  # and let a `post` that has nothing to do with it go on
        elif reason == "timeout":
            self._abort()
        elif self._accepted:
            self._say_goodbye(reason)

    def acceptance(self) -> asyncio.Event | None:
        """Return what to wait for before anything is published: that the request is accepted."""
        if self._left:  # while a method of its own was about to register
            log.info("%r has left, and is not registered again", self)
            asyncio.get_running_loop().call_soon(self._leave)
        if self._accepted:
            return None
        self._acceptance = self._acceptance or asyncio.Event()
        return self._acceptance

    def leaving(self) -> bool:
        """Tell whether the goodbye is still on its way to the client."""
        return not self._left

    def finish(self, chunk: str | bytes | dict[str, Any] | None = None) -> asyncio.Future[None]:
        """Finish the response, as in Tornado, and leave the store."""
        try:
            # Tornado's annotation says dict, and not of what.
            flushed = super().finish(chunk)  # pyright: ignore[reportUnknownMemberType]
        except BaseException:
            self._leave()
            raise
        self._finishing(flushed)
        return flushed

    # ---- for the handlers of this package

    def _finishing(self, flushed: asyncio.Future[None]) -> None:
        """Leave the store: now, or when the goodbye that it waits for is said."""
        if self._released is None:
            self._leave()
        else:
            flushed.add_done_callback(lambda _: self._leave())

    async def _hold(self) -> None:
        if self._finished or open_stream(self.request) is None:
            return self._leave()
        self._held = asyncio.get_running_loop().create_future()
        try:
            self._subscribe()
            await self._submit_early()
            await self._held
        finally:
            self._leave()

    def _accept(self) -> bool:
        """Let what comes be published; false if the request has just ended instead."""
        if self._accepted:
            return True
        self._accepted = True
        if self._released is not None and self._is_asking():  # before anything could be sent
            self._say_goodbye(self._released)
        if self._acceptance is not None:  # it has registered before
            cursor = self._cursor()
            if cursor and self._released is None and resumes(self.store):
                self._resume(self.store, cursor)
            self._acceptance.set()
        return not self._finished

    def _is_asking(self) -> bool:
        """Tell whether the request is for messages, as far as can be known by now."""
        return self._subscribable or self.request.method == "GET"

    async def _submit(self, message: Message[T]) -> bool:
        """Queue it, or publish it where the store cannot queue; false if it is too early."""
        if targets(self.store) and await self.store.deliver(self, message):
            return True
        if self._subscribable:
            await self.publish(message)
        return self._subscribable

    async def _submit_early(self) -> None:
        """Queue what was submitted too early; meanwhile, what comes goes behind it."""
        while self._early and not self._left and self._released is None:
            try:
                await self._submit(self._early[0])
            except ConnectionClosed:
                log.debug("%r has left before it got what was meant for it alone", self)
            except PoisonedError:  # which is logged
                subscriber: Subscriber[T] = self
                if hears_gaps(subscriber):
                    await subscriber.publish_gap(Gap("poisoned"))
            except BaseException:
                self._early = ()  # or what comes later would wait behind it for ever
                raise
            self._early = self._early[1:]

    def _subscribe(self) -> None:
        """Register, or resume, now that the request is accepted."""
        self._accept()
        self._subscribable = True
        if self._released is not None:
            return self._say_goodbye(self._released)
        cursor = self._cursor()
        try:
            if cursor and resumes(self.store):
                self._resume(self.store, cursor)
            else:
                if cursor:
                    self._cannot_resume()
                self.store.register(self)
        except StoreClosedError:
            self.released("closed")

    def _resume(self, store: ResumableSource[T], cursor: str) -> None:
        """Resume once, in the place of what a subclass may have registered before."""
        self._resumed = True
        store.deregister(self)
        try:
            store.resume(self, cursor)
        except StoreClosedError:
            self.released("closed")

    def _cursor(self) -> str | None:
        """Return where to resume, once: the header wins, as on a reconnect the URL is stale."""
        if self._resumed:
            return None
        header = self.request.headers.get("Last-Event-ID", "").encode("latin-1", "replace")
        query = self.request.query_arguments.get("last_event_id", [b""])[-1]
        return (header or query).decode("utf-8", "replace") or None

    def _cannot_resume(self) -> None:
        """Tell of the gap that the store, which has no `resume`, does not tell of."""
        log.warning("%r may have missed messages: its store cannot resume", self)

    def _say_goodbye(self, reason: Released) -> None:
        """End the request because the store has let go of it."""
        stream = open_stream(self.request)
        if reason not in ("closed", "limit") and stream is not None and stream.writing():
            self._abort()  # or it would wait for a client that does not read
        elif not self._finished:
            if not self._headers_written:
                self.set_status(503)
            self.finish()

    def _abort(self) -> None:
        """Close the connection, whatever still waits."""
        stream = open_stream(self.request)
        if stream is not None:
            stream.close()

    def _lost(self) -> None:
        self._leave()
        type(self).on_connection_close(self)

    def _leave(self) -> None:
        """Deregister, and let the request end. Safe to call again."""
        self._left = True
        if self._held is not None and not self._held.done():
            self._held.set_result(None)
        store: Store[T] | None = getattr(self, "store", None)
        if store is not None:
            store.deregister(self)


def changed(options: Options[Any]) -> dict[str, Any]:
    """Return the options that differ from their defaults, which an `initialize` may not take."""
    defaults = vars(Options())
    return {name: value for name, value in vars(options).items() if value != defaults[name]}
