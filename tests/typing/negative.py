"""What must be refused: a type checker reports an error on each marked line, and only there."""

from __future__ import annotations

from tornadose import (
    DataStore,
    EventSource,
    Message,
    QueueStore,
    RedisStore,
    RedisStreamStore,
    Sink,
    Source,
    Store,
    WebSocketSubscriber,
    subscribe,
)

numbers = QueueStore[int]()
words = QueueStore[str]()


def render(number: int) -> str:
    return str(number)


class Words:
    async def publish(self, message: Message[str], /) -> None: ...


class NotAsync:
    def publish(self, message: Message[int], /) -> None: ...


class NoPublish:
    pass


class NoSubmit:
    def register(self, subscriber: object, /) -> None: ...
    def deregister(self, subscriber: object, /) -> None: ...


class Numbers(EventSource[int]): ...


# Store and encoder must agree on the payload; where there is no encoder, the handler with both.
EventSource.route("/", numbers, encode=render)
EventSource.route("/", words, encode=render)  # error
WebSocketSubscriber.route("/", words, encode=render)  # error
Numbers.route("/", words)  # error
Numbers.route("/", numbers, encode=str.upper)  # error
EventSource.route("/", numbers, encode=len)  # error
EventSource.route("/", NoSubmit())  # error
EventSource.route("/", numbers, heartbeat="15")  # error
EventSource.route("/", numbers, hartbeat=15)  # error

# Subscribers must be able to take what the source gives.
words.register(Words())
numbers.register(Words())  # error
numbers.register(NotAsync())  # error
numbers.register(NoPublish())  # error

# Variance.
source: Source[int] = QueueStore[object]()  # error
sink: Sink[object] = numbers  # error
store: Store[float] = numbers  # error

# Options and payloads.
QueueStore[int](policy="drop")  # error
QueueStore[int](10)  # error
DataStore(1).data = "x"  # error
numbers.submit_nowait("x")  # error
Message(1, 2)  # error
RedisStore(encode=str)  # error
RedisStreamStore(decode=int)  # error
RedisStore[int](encode=str, decode=float)  # error
RedisStreamStore(10)  # error
EventSource.route("/", RedisStore(), encode=render)  # error


async def use() -> None:
    await RedisStreamStore().submit(5)  # error
    await numbers.submit("x")  # error
    await numbers.submit(1, "tick")  # error
    async with subscribe(numbers, after=1) as messages:  # error
        async for message in messages:
            message.data.upper()  # error
            message.data = 2  # error
