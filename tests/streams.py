"""What the tests of `RedisStreamStore` have in common: streams, stores on them, and faults."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TypeVar

from conftest import Logged
from servers import Server
from support import Plain, Told, eventually
from tornadose import (
    Gap,
    GapReason,
    Message,
    OutcomeUnknownError,
    RedisStreamStore,
    Released,
)
from tornadose.stores.redis.connection import array_of, bytes_of

T = TypeVar("T")

KEY = "tornadose"
SHORT = 0.5  # seconds that Redis may be silent where a test makes it so
FILL = """
local ids = {}
for number = 1, ARGV[1] do
    ids[number] = redis.call('XADD', KEYS[1], '*', 'data', ARGV[2] .. number)
end
return ids
"""
FALL_BACK = "redis.call('DEL', KEYS[1]) redis.call('RESTORE', KEYS[1], 0, ARGV[1])"
BLOCKING: dict[str, Any] = {"policy": "block", "backlog": 1, "block_timeout": 60}


def store_on(port: int, timeout: float = 5.0, **options: Any) -> RedisStreamStore[str]:
    return RedisStreamStore(
        port=port, socket_timeout=timeout, socket_connect_timeout=timeout, **options
    )


def script(*commands: str) -> tuple[str, ...]:
    """Return the command that carries out all of these on the stream, at one moment."""
    lines: list[str] = []
    for name, *words in map(str.split, commands):
        lines.append(f"redis.call('{name}', KEYS[1], unpack({{{str(words)[1:-1]}}}))")
    return ("EVAL", " ".join(lines), "1", KEY)


async def add(server: Server, *fields: str | bytes, cursor: str = "*") -> str:
    """Let another program add an entry."""
    return bytes_of(await server.command("XADD", KEY, cursor, *fields)).decode()


async def fill(server: Server, count: int, prefix: str = "") -> list[str]:
    """Let another program add so many entries at once: prefix1, prefix2, and so on."""
    reply = await server.command("EVAL", FILL, 1, KEY, count, prefix)
    return [bytes_of(cursor).decode() for cursor in array_of(reply)]


async def fill_from(server: Server, first: int, count: int) -> None:
    """Let another program add entries with these ids, whose payload is the number."""
    lines = "for n = ARGV[1], ARGV[2] do redis.call('XADD', KEYS[1], n .. '-0', 'data', n) end"
    await server.command("EVAL", lines, 1, KEY, first, first + count - 1)


async def dump(server: Server) -> bytes:
    """Return the stream as it is, for `fall_back`."""
    return bytes_of(await server.command("DUMP", KEY))


async def fall_back(server: Server, backup: bytes, then: str = "") -> None:
    """Let the stream be what it was, as after a crash, and do something at the same moment."""
    await server.command("EVAL", FALL_BACK + then, 1, KEY, backup)


async def entries(server: Server) -> list[tuple[str, str]]:
    """Return the ids and payloads in the stream."""
    reply: Any = await server.command("XRANGE", KEY, "-", "+")
    return [(cursor.decode(), fields[b"data"].decode()) for cursor, fields in reply]


async def calls(server: Server, command: str) -> int:
    """Return how often the server has carried out this command."""
    stats: Any = await server.command("INFO", "commandstats")
    return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])


async def more(subscribers: Sequence[Plain[str]], count: int) -> None:
    """Wait until each has got so many more."""
    enough = [(subscriber.got, len(subscriber.got) + count) for subscriber in subscribers]
    await eventually(lambda: all(len(got) >= number for got, number in enough))


async def accepted(store: RedisStreamStore[str], data: str) -> Message[str]:
    """Submit after an outage, once more where the writing connection had died unnoticed."""
    try:
        return await store.submit(data)
    except OutcomeUnknownError:
        return await store.submit(data)


def gaps(told: Told[T]) -> list[GapReason]:
    return [event.reason for event in told.events if isinstance(event, Gap)]


async def story(told: Told[T], count: int) -> list[T | Gap | Released]:
    """Return what a subscriber has got, once it is so many."""
    with suppress(AssertionError):
        await eventually(lambda: len(told.events) >= count)
    return told.events


def seen(subscriber: Plain[str]) -> list[tuple[str, str]]:
    return [(str(message.id), message.data) for message in subscriber.messages]


def outages(logged: Logged) -> None:
    """Take note of what was logged of outages."""
    texts = "cannot read from Redis", "reads from Redis again"
    for record in tuple(logged.unexpected):
        if any(text in record.getMessage() for text in texts):
            logged.unexpected.remove(record)


async def mended(logged: Logged) -> None:
    """Wait until a store that could not read does so again."""
    await eventually(lambda: any("reads from Redis again" in line for line in logged.lines()))
    outages(logged)


async def fallen(logged: Logged) -> None:
    """Wait until a store has noticed that it cannot read."""
    await eventually(lambda: any("cannot read" in line for line in logged.lines()))


HELD = ["held 0", "held 1", "held 2"]


class Held(Told[str]):
    """One that takes nothing until it is running, and stops again behind a message."""

    def __init__(self) -> None:
        super().__init__()
        self.running.clear()
        self.stops_behind: str | None = None

    async def publish(self, message: Message[str], /) -> None:
        await super().publish(message)
        if message.data == self.stops_behind:
            self.running.clear()


async def hold(store: RedisStreamStore[str]) -> Held:
    """Let the reader wait for a subscriber, under ``block`` and with a backlog of one."""
    held = Held()
    before = store.statistics().published
    store.register(held)
    for data in HELD:  # one is delivered, one waits in the backlog, and one for room
        await store.submit(data)
    await eventually(lambda: store.statistics().published == before + len(HELD))
    return held


def once_asked(failures: int) -> float:
    """Let a reader whose connection broke stay away until the store is opened again."""
    return 60.0 if failures else 0.0
