"""What must hold for type checkers. Checked, never run."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, assert_type

from tornado.web import Application

from tornadose import (
    BaseHandler,
    BaseStore,
    Batch,
    DataStore,
    EventSource,
    Gap,
    GapSubscriber,
    Message,
    NowaitSubscriber,
    QueueStore,
    RedisStore,
    RedisStreamStore,
    Released,
    ReleasedSubscriber,
    ResumableSource,
    Sink,
    Source,
    Store,
    Subscriber,
    WebSocketSubscriber,
    subscribe,
)

# Stores know their payload.
prices = DataStore(1.5)
assert_type(prices, DataStore[float])
assert_type(prices.data, float | None)
anything = DataStore()
assert_type(anything, DataStore[Any])
numbers = QueueStore[int](history=10, policy="drop_oldest")
resumable: ResumableSource[int] = numbers
source: Source[float] = numbers  # a source is covariant
sink: Sink[bool] = numbers  # a sink is contravariant
store: Store[int] = numbers

# Of what comes from Redis it is the decoder that says what it is; without one it is text.
channel = RedisStore("prices", url="redis://localhost", socket_timeout=2)
assert_type(channel, RedisStore[str])
stream = RedisStreamStore("prices", maxlen=100, host="localhost")
assert_type(stream, RedisStreamStore[str])
cents = RedisStore(encode=str, decode=int)
assert_type(cents, RedisStore[int])
assert_type(RedisStreamStore[float](encode=repr, decode=float), RedisStreamStore[float])
resumable_text: ResumableSource[str] = stream
store = cents


async def use() -> None:
    assert_type(await cents.submit(5, event="tick"), Message[int])
    assert_type(await numbers.submit(1, event="tick"), Message[int])
    assert_type(numbers.submit_nowait(1), Message[int])
    assert_type(await sink.submit(True), Message[object])
    prices.data = 2.5
    async with subscribe(numbers, after="x", on_gap=print) as messages:
        async for message in messages:
            assert_type(message, Message[int])
            assert_type(message.data, int)
            assert_type(message.id, str | None)
    async with QueueStore[str]() as opened:
        assert_type(opened, QueueStore[str])


# Messages, batches and sources are covariant, subscribers contravariant.
message: Message[float] = Message[int](1)
batch: Batch[float] = Batch[int]([Message(1)])
assert_type(Batch([Message(1)])[0].data, int)


class Everything:
    """A subscriber with all capabilities that inherits nothing."""

    async def publish(self, message: Message[float], /) -> None: ...
    def publish_nowait(self, batch: Batch[float], /) -> bool:
        return bool(batch)

    async def publish_gap(self, gap: Gap, /) -> None: ...
    def released(self, reason: Released, /) -> None: ...


subscriber: Subscriber[int] = Everything()
nowait: NowaitSubscriber[int] = Everything()
gaps: GapSubscriber[int] = Everything()
released: ReleasedSubscriber[int] = Everything()
numbers.register(Everything())


class Minimal:
    """A store of three methods, good for every handler."""

    def register(self, subscriber: Subscriber[str], /) -> None: ...
    def deregister(self, subscriber: Subscriber[str], /) -> None: ...
    async def submit(self, data: str, /, *, event: str | None = None) -> Message[str]:
        return Message(data, event=event)


class Custom(BaseStore[bytes]):
    """A store whose hooks are overridden with arguments of their own."""

    def initialize(self, path: str, retries: int = 3) -> None:
        self.path = path

    async def submit(self, data: bytes, /, *, event: str | None = None) -> Message[bytes]:
        return Message(data, event=event)

    async def publish(self) -> None:
        await self.broadcast(Message(b"x"))


class Prices(EventSource[float]):
    """A handler with its own initialize and publish."""

    def initialize(self, store: Store[float], digits: int = 2) -> None:
        super().initialize(store, heartbeat=None)
        self.digits = digits

    async def publish(self, message: Message[float], /) -> None:
        assert_type(self.store, Store[float])
        await super().publish(Message(round(message.data, self.digits), message.id))


class Poll(BaseHandler[int]):
    async def publish(self, message: Message[int], /) -> None:
        await self.finish(str(message.data))


class Room(EventSource[str]):
    """A handler that names what its pattern matches."""

    async def get(self, room: str) -> None:
        assert_type(super().get(room), Awaitable[None])
        await super().get(room)

    async def head(self, room: str) -> None:
        super().head(room)


class RoomAtOnce(EventSource[str]):
    def get(self, room: str) -> Awaitable[None]:
        return super().get(room)

    def head(self, room: str) -> None:
        super().head(room)


class PollRoom(Poll):
    async def get(self, room: str, last: str = "") -> None:
        await super().get(room, last)


class Chat(WebSocketSubscriber[str]):
    async def get(self, room: str) -> None:
        await super().get(room)

    async def open(self, room: str) -> None:
        super().open(room)
        await self.submit("welcome")

    async def on_message(self, message: str | bytes) -> None:
        await self.submit(str(message))


class ChatAtOnce(WebSocketSubscriber[str]):
    def open(self, room: str) -> None:
        super().open(room)

    def on_message(self, message: str | bytes) -> None: ...


class Untyped(WebSocketSubscriber):
    """A handler as in an untyped program."""

    async def publish(self, message: Message[Any], /) -> None:
        await super().publish(message)


def render(number: int) -> str:
    return str(number)


application = Application(
    [
        EventSource.route(r"/a", numbers),
        EventSource.route(r"/b", numbers, encode=render, heartbeat=None, retry=2),
        EventSource.route(r"/c", numbers, encode=lambda number: f"{number + 1}"),
        EventSource.route(r"/d", Minimal(), encode=str.upper),
        EventSource.route(r"/e", Custom("x"), encode=bytes.decode),
        Prices.route(r"/f", prices),
        Poll.route(r"/g", numbers),
        Untyped.route(r"/h", anything),
        (r"/i", EventSource, {"store": numbers}),
        (r"/j", WebSocketSubscriber, {"store": anything}),
    ]
)
