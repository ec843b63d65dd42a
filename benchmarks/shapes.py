"""What is measured: the servers that take part, and the shapes of load that they get."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = (
    "NCHAN",
    "PYTHON_PEERS",
    "RAW",
    "STALLED",
    "TORNADOSE",
    "Entrant",
    "Shape",
    "Stage",
    "plan",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrant:
    """A server that takes part.

    Args:
        name: In tables.
        module: In `benchmarks.servers`.
        websocket: Whether clients ask for a WebSocket.
        beats: Whether it can send a heartbeat to who is idle.
        stalled: Clients that stop reading, besides those of the stage.
        processes: How many of it share the clients, and a Redis stream.
    """

    name: str
    module: str
    websocket: bool = False
    beats: bool = True
    stalled: int = 0
    processes: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A shape of load.

    Args:
        name: In tables and files, where it may not change its meaning.
        do: Publish at a rate; publish as fast as all have received; let clients come
            and go; or do nothing.
        messages: How many; of churn, how many clients; of idleness, how many seconds.
        size: Of the payload, in bytes.
        rate: Messages a second.
        burst: Messages that are submitted together.
        repetitions: Interleaved with those of the other servers, after one more that only
            warms up.
    """

    name: str
    do: Literal["paced", "lockstep", "churn", "idle"]
    messages: int
    size: int = 100
    rate: float = 40.0
    burst: int = 1
    repetitions: int = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Shapes that the same connections get, one after the other.

    Args:
        clients: How many are connected to each server, and read.
        entrants: The servers.
        shapes: What they get.
        send_buffer: Of each client's socket at the server, in bytes; 0 is the system's.
        fill: Messages that are published first, to fill the buffers of those who stall.
    """

    clients: int
    entrants: tuple[Entrant, ...]
    shapes: tuple[Shape, ...]
    send_buffer: int = 0
    fill: int = 0


LONG = 5  # repetitions of what takes long, or has many servers

RAW = Entrant(name="raw loop", module="raw")
TORNADOSE = Entrant(name="tornadose", module="tornadose_sse")
PYTHON_PEERS = (
    Entrant(name="Tornado, a queue each", module="tornado_queue"),
    Entrant(name="aiohttp-sse", module="aiohttp_sse"),
    Entrant(name="sse-starlette", module="sse_starlette"),
    Entrant(name="Litestar channels", module="litestar", beats=False),
    Entrant(name="FastAPI", module="fastapi"),
)
NCHAN = Entrant(name="nginx nchan", module="nchan")
SSE = (RAW, TORNADOSE, *PYTHON_PEERS, NCHAN)
WEBSOCKET = (
    Entrant(name="tornadose WebSocket", module="tornadose_ws", websocket=True),
    Entrant(name="websockets.broadcast", module="websockets_broadcast", websocket=True),
    Entrant(name="Tornado write_message", module="tornado_ws", websocket=True),
)
STALLED = " (10 % stalled)"
TWO_PROCESSES = Entrant(name="tornadose, 2 processes", module="tornadose_stream", processes=2)


def plan(full: bool) -> Sequence[Stage]:
    """Return the stages of the full form, or of the quick one."""
    return _full() if full else _quick()


def _quick() -> Sequence[Stage]:
    both = RAW, TORNADOSE
    return (
        Stage(clients=500, entrants=SSE + WEBSOCKET, shapes=(_paced(12, LONG), _bursts(10, LONG))),
        Stage(
            clients=100,
            entrants=both,
            shapes=(_lockstep(100, 100), _sized("10 KB", 10_000, 50), _huge(100), _churn(200)),
        ),
        Stage(clients=10, entrants=both, shapes=(_huge(10),)),
        Stage(clients=1000, entrants=both, shapes=(_lockstep(1000, 30),)),
        Stage(clients=9000, entrants=both, shapes=(_lockstep(9000, 3), _idle(15, 1))),
        _stalled((TORNADOSE,), 40),
        Stage(clients=500, entrants=(RAW, TWO_PROCESSES), shapes=(_two_processes(16),)),
    )


def _full() -> Sequence[Stage]:
    return (
        Stage(clients=500, entrants=SSE + WEBSOCKET, shapes=(_paced(45, 9), _bursts(60, LONG))),
        Stage(
            clients=100,
            entrants=SSE,
            shapes=(_lockstep(100, 150), _sized("10 KB", 10_000, 60), _huge(100), _churn(300)),
        ),
        Stage(clients=10, entrants=SSE, shapes=(_huge(10),)),
        Stage(clients=1000, entrants=SSE, shapes=(_lockstep(1000, 20),)),
        Stage(clients=9000, entrants=SSE, shapes=(_lockstep(9000, 2), _idle(15, 2))),
        _stalled((TORNADOSE, *PYTHON_PEERS), 36),
        Stage(clients=500, entrants=(RAW, TWO_PROCESSES), shapes=(_two_processes(80),)),
    )


def _paced(messages: int, repetitions: int) -> Shape:
    return Shape(name="paced", do="paced", messages=messages, repetitions=repetitions)


def _two_processes(messages: int) -> Shape:
    return Shape(name="two processes", do="paced", messages=messages)


def _bursts(messages: int, repetitions: int) -> Shape:
    return Shape(
        name="bursts of 10",
        do="paced",
        messages=messages,
        rate=80.0,
        burst=10,
        repetitions=repetitions,
    )


def _lockstep(clients: int, messages: int) -> Shape:
    return Shape(name=f"lockstep to {clients}", do="lockstep", messages=messages)


def _sized(name: str, size: int, messages: int) -> Shape:
    return Shape(name=f"{name} to 100", do="lockstep", messages=messages, size=size)


def _huge(clients: int) -> Shape:
    return Shape(name=f"1 MB to {clients}", do="lockstep", messages=2, size=1_000_000)


def _churn(clients: int) -> Shape:
    return Shape(name="churn", do="churn", messages=clients)


def _idle(seconds: int, repetitions: int) -> Shape:
    return Shape(name="idle", do="idle", messages=seconds, repetitions=repetitions)


def _stalled(entrants: Sequence[Entrant], messages: int) -> Stage:
    """Compare servers with themselves, with 50 clients more that have stalled."""
    pairs = tuple(
        Entrant(name=entrant.name + suffix, module=entrant.module, stalled=stalled)
        for entrant in entrants
        for suffix, stalled in (("", 0), (STALLED, 50))
    )
    shape = Shape(name="stalled", do="paced", messages=messages, size=1000, repetitions=LONG)
    return Stage(clients=450, entrants=pairs, shapes=(shape,), send_buffer=16384, fill=100)
