"""What the harness, the servers and the load client say to each other, as lines of JSON."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = (
    "MARK",
    "STAMP",
    "Connect",
    "Count",
    "Done",
    "Order",
    "Ready",
    "Report",
    "Setup",
    "pack",
    "payload",
    "unpack",
)

T = TypeVar("T")

MARK = b"|"  # stands once in a message, and nowhere else on the wire
STAMP = 19  # digits of the nanoseconds behind it, which end the payload


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a server is started with, in its only argument.

    Args:
        heartbeat: Seconds between two signs of life to an idle client.
        send_buffer: Of each client's socket, in bytes; 0 is the system's.
        acks: File descriptor that gets a line when all clients have a message.
        client_core: Where the load client runs; -1 is anywhere.
        redis: URL of a Redis server.
    """

    heartbeat: float = 15.0
    send_buffer: int = 0
    acks: int = -1
    client_core: int = -1
    redis: str = ""


@dataclass(frozen=True, slots=True)
class Ready:
    """The first line of a server: where it listens, and which process serves."""

    port: int
    path: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a server is to do.

    Args:
        do: Publish at a rate; publish whenever all have received; wait until there are
            so many clients; or read so many messages from Redis.
        messages: How many.
        size: Of the payload, in bytes.
        rate: Messages a second.
        burst: Messages that are submitted together.
        clients: How many to wait for.
        channel: Of Redis, to read from; or the name of a stream.
        stream: Which of the two.
    """

    do: Literal["paced", "lockstep", "await", "read"]
    messages: int = 0
    size: int = 100
    rate: float = 40.0
    burst: int = 1
    clients: int = 0
    channel: str = ""
    stream: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """A server's or the client's answer to an order."""

    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Connect:
    """Tell the load client to connect.

    Args:
        ports: Of the servers, which get the same number of clients each.
        path: Of the URL.
        websocket: Whether to ask for one.
        clients: How many.
        stalled: How many of them read nothing but the headers.
    """

    ports: tuple[int, ...]
    path: str
    websocket: bool
    clients: int
    stalled: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """Tell the load client to receive, or to connect and disconnect.

    Args:
        messages: How many each client that is not stalled is to receive; or how many
            clients shall come and go.
        size: Of a message, in bytes, at least.
        lockstep: Whether to acknowledge each message that all have.
        churn: How many clients come and go at a time.
        timeout: Seconds without any message until this is given up.
    """

    messages: int
    size: int = 0
    lockstep: bool = False
    churn: int = 0
    timeout: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the load client has received.

    Args:
        received: Messages; or clients that came and went.
        size: Bytes of all of them, with what frames them.
        ended: When the last one was there, on the monotonic clock.
        cpu: Seconds that this took the load client.
        latencies: Nanoseconds from submit to receipt, of some of the clients.
        trouble: What was wrong with what came, if anything.
    """

    received: int
    size: int = 0
    ended: float
    cpu: float
    latencies: list[int] = field(default_factory=list[int])
    trouble: str = ""


def pack(value: DataclassInstance) -> str:
    """Return the value as a line of JSON, without its end."""
    return json.dumps(asdict(value))


def unpack(kind: type[T], line: str | bytes) -> T:
    """Return the value that a line holds."""
    return kind(**json.loads(line))


def payload(size: int) -> str:
    """Return a text of this size that ends with the time, as of now."""
    return f"{_filler(size)}|{time.monotonic_ns():019d}"


@lru_cache
def _filler(size: int) -> str:
    return "x" * (size - STAMP - 1)
