"""A server with its clients connected, on which one shape of load after the other is measured."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Self

from .process import CLIENT_CORE, BenchmarkError, Process, Server
from .protocol import Connect, Count, Done, Order, Report, Setup
from .results import Sample
from .shapes import Entrant, Shape, Stage

__all__ = ("Session",)

AT_ONCE = 50  # clients that come and go at a time
FILL_RATE = 400.0  # messages a second, that need not be timed
SETTLE = 0.02  # seconds in which a server ends what it does after the last write


class Session:
    """A server of the stage, as one process or more, with all its clients.

    Attributes:
        memory: Bytes that became resident for each connection.
        connected_at: When the last one was made, on the monotonic clock.

    Args:
        entrant: The server.
        stage: Says how many clients there are.
        redis: URL, for who needs it.
    """

    def __init__(self, entrant: Entrant, stage: Stage, redis: str) -> None:
        self.entrant = entrant
        self._connected = 0
        with ExitStack() as stack:
            reader, writer = os.pipe()
            stack.callback(os.close, reader)
            stack.callback(os.close, writer)
            self._client = Process("client", str(writer), CLIENT_CORE, (writer,))
            stack.callback(self._client.close)
            setup = Setup(
                send_buffer=stage.send_buffer, acks=reader, client_core=CLIENT_CORE, redis=redis
            )
            self._servers: list[Server] = []
            for _ in range(entrant.processes):
                self._servers.append(Server(entrant.module, setup))
                stack.callback(self._servers[-1].close)
            self._connect(entrant.processes, 0)  # what the first connection costs, once
            before = self._resident()
            self._connect(
                stage.clients - entrant.processes, round(entrant.stalled * stage.clients)
            )
            self.memory = (self._resident() - before) / stage.clients
            self.connected_at = time.monotonic()
            if stage.fill:
                first = stage.shapes[0]
                self.measure(replace(first, messages=stage.fill, rate=FILL_RATE))
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    @property
    def name(self) -> str:
        return self.entrant.name

    def cpu(self) -> float:
        """Return the CPU time that the server has used, in seconds."""
        return sum(server.cpu() for server in self._servers)

    def measure(self, shape: Shape) -> Sample:
        """Let the server have this shape of load once."""
        for server in self._servers:
            server.forget_peak()
        churn = AT_ONCE if shape.do == "churn" else 0
        count = Count(
            messages=shape.messages, size=shape.size, lockstep=shape.do == "lockstep", churn=churn
        )
        self._client.ask(Done, count, "count")
        resident, cpu, client = self._resident(), self.cpu(), self._client.cpu()
        start = time.monotonic()
        if shape.do in ("paced", "lockstep"):
            self._publish(shape)
        report = self._client.answer(Report)
        wall = time.monotonic() - start
        client = self._client.cpu() - client
        if report.lost:
            raise BenchmarkError(f"{self.name}: {report.lost} messages did not come")
        if churn:
            self._await()
        time.sleep(SETTLE)
        return Sample(
            cpu=self.cpu() - cpu,
            wall=wall,
            count=report.received,
            p50=report.p50,
            p99=report.p99,
            client=client / wall,
            growth=sum(server.peak() for server in self._servers) - resident,
            memory=self.memory,
        )

    def _publish(self, shape: Shape) -> None:
        order = Order(
            do="lockstep" if shape.do == "lockstep" else "paced",
            messages=shape.messages,
            size=shape.size,
            rate=shape.rate,
            burst=shape.burst,
        )
        self._servers[0].ask(Done, order)

    def _connect(self, clients: int, stalled: int) -> None:
        """Connect more clients, and wait until the servers know them."""
        server = self._servers[0]
        order = Connect(
            ports=tuple(server.port for server in self._servers),
            path=server.path,
            websocket=self.entrant.websocket,
            clients=clients,
            stalled=stalled,
        )
        self._client.ask(Done, order, "connect")
        self._connected += clients
        self._await()

    def _await(self) -> None:
        for server in self._servers:
            server.ask(Done, Order(do="await", clients=self._connected // len(self._servers)))

    def _resident(self) -> int:
        return sum(server.resident() for server in self._servers)
