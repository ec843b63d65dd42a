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
BEATING = 0.9  # share of the clients that get a heartbeat within the time between two
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
            clients = stage.clients + entrant.stalled
            self._connect(clients - entrant.processes, entrant.stalled)
            self.memory = (self._resident() - before) / clients
            self.connected_at = time.monotonic()
            if stage.fill:
                first = stage.shapes[0]
                self.measure(replace(first, messages=stage.fill, rate=FILL_RATE))
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End the server and the load client; twice is harmless."""
        self._stack.close()

    @property
    def name(self) -> str:
        return self.entrant.name

    def cpu(self) -> float:
        """Return the CPU time that the server has used, in seconds."""
        return sum(server.cpu() for server in self._servers)

    def measure(self, shape: Shape) -> tuple[Sample, list[int]]:
        """Let the server have this shape of load once.

        Returns:
            What was measured, and nanoseconds from submit to receipt.
        """
        for server in self._servers:
            server.forget_peak()
        churn = AT_ONCE if shape.do == "churn" else 0
        count = Count(
            messages=shape.messages, size=shape.size, lockstep=shape.do == "lockstep", churn=churn
        )
        self._client.ask(Done, count, "count")
        resident, cpu, start = self._resident(), self.cpu(), time.monotonic()
        if not churn:
            self._publish(shape)
        report = self._client.answer(Report)
        if report.trouble:
            said = self._servers[0].last_words()
            raise BenchmarkError(f"{self.name}: {report.trouble}{said and f' ({said})'}")
        if churn:
            self._await()
        else:
            self._servers[0].answer(Done)
        time.sleep(SETTLE)
        wall = report.ended - start
        sample = Sample(
            cpu=self.cpu() - cpu,
            wall=wall,
            count=report.received,
            size=report.size,
            client=report.cpu / wall,
            growth=sum(server.peak() for server in self._servers) - resident,
            memory=self.memory,
        )
        return sample, report.latencies

    def heard(self) -> int:
        """Return how many clients have got anything since this was last asked."""
        return self._client.ask(Done, Count(messages=0), "hear").count

    def check_heartbeats(self) -> None:
        """Require that nearly all clients have got something since `heard` was asked."""
        if (heard := self.heard()) < BEATING * self._connected:
            raise BenchmarkError(f"{self.name}: only {heard} clients got a heartbeat")

    def _publish(self, shape: Shape) -> None:
        order = Order(
            do="lockstep" if shape.do == "lockstep" else "paced",
            messages=shape.messages,
            size=shape.size,
            rate=shape.rate,
            burst=shape.burst,
        )
        self._servers[0].tell(order)

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
