"""The load client: thousands of connections, read with one epoll, in a process of its own.

It looks for the mark of each message where it can be at the earliest, and parses nothing, so
that a server that uses all of one core does not outrun it on another. What comes sooner than
the payload's bytes allow is no message.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import sys
import time
from collections.abc import Iterator, Mapping

from .protocol import MARK, STAMP, Connect, Count, Done, Report, pack, unpack

__all__ = ("Client",)

AT_ONCE = 200  # connections whose headers are outstanding, less than a server's backlog
PATIENCE = 20.0  # seconds for one of them
TIMED = 16  # of so many clients, one notes how long the messages took
ENOUGH = 1000  # times that are noted; where they would be fewer, more clients do
QUIET = 0.02  # seconds in which nothing more is to come
SMALL = 4096  # bytes of receive buffer of a client that stalls

TOO_MUCH = "a client got more than was published"
DISCONNECTED = "a client was disconnected"

REQUEST = "GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
UPGRADE = (
    "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class Tally:
    """What the clients have received of an order.

    Attributes:
        receive: What reads from each socket.
        ahead: Bytes that each gets before the next mark, at least.
        least: Bytes from one mark to the next.
        timed: Those of which the latencies are noted.
        timeout: Seconds without any message until this is given up.
        size: Bytes that have come.
        latencies: Nanoseconds from submit to receipt.
    """

    def __init__(self, sockets: Mapping[int, socket.socket], order: Count) -> None:
        self.receive = {fd: sock.recv_into for fd, sock in sockets.items()}
        self.least, self.timeout = order.size, order.timeout
        self.ahead = dict.fromkeys(sockets, order.size - STAMP - 1)
        spacing = max(1, min(TIMED, len(sockets) * order.messages // ENOUGH))
        self.timed = set(list(sockets)[::spacing])
        self.size = 0
        self.latencies: list[int] = []


class Client:
    """Connects to one server, or to several that serve the same.

    Args:
        acks: File descriptor that gets a line for each message that all have.
    """

    def __init__(self, acks: int) -> None:
        self._acks = acks
        self._epoll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._stalled: list[socket.socket] = []
        self._buffer = bytearray(1 << 17)
        self._target: Connect | None = None

    def connect(self, order: Connect) -> Done:
        """Open connections until all have their headers."""
        self._target = order
        for number, sock in _opened(order, order.clients):
            if number < order.stalled:
                self._stalled.append(sock)
            else:
                self._sockets[sock.fileno()] = sock
                self._epoll.register(sock, select.EPOLLIN)
        return Done(order.clients)

    def count(self, order: Count) -> Report:
        """Receive until every client that is not stalled has all messages, and none has more."""
        tally = Tally(self._sockets, order)
        together = 1 if order.lockstep else order.messages
        trouble = ""
        say(Done(0))
        start = time.process_time()
        for _ in range(order.messages // together):
            if trouble := self._receive(tally, together):
                break
            if order.lockstep:
                os.write(self._acks, b"\n")
        return Report(
            received=order.messages * len(self._sockets),
            size=tally.size,
            ended=time.monotonic(),
            cpu=time.process_time() - start,
            latencies=tally.latencies,
            trouble=trouble or self._surplus(),
        )

    def _receive(self, tally: Tally, messages: int) -> str:
        """Receive so many more messages for each client, or say what is wrong."""
        buffer, find, room = self._buffer, self._buffer.find, len(self._buffer)
        receive, ahead, least, timed = tally.receive, tally.ahead, tally.least, tally.timed
        missing, late = dict.fromkeys(receive, messages), len(receive)
        while late:
            if not (events := self._epoll.poll(tally.timeout)):
                return f"{late} of {len(receive)} clients got too little"
            for fd, _ in events:
                far = ahead[fd]
                if far < room:
                    got = receive[fd](buffer)
                else:  # this much need not even be copied
                    got = receive[fd](buffer, 0, socket.MSG_TRUNC)
                if not got:
                    return DISCONNECTED
                tally.size += got
                place = far
                while place < got and (mark := find(MARK, place, got)) >= 0:
                    missing[fd] = left = missing[fd] - 1
                    place = mark + least
                    if fd in timed and mark + STAMP < got:
                        sent = int(buffer[mark + 1 : mark + 1 + STAMP])
                        tally.latencies.append(time.monotonic_ns() - sent)
                    if left == 0:
                        late -= 1
                    elif left < 0:
                        return TOO_MUCH
                ahead[fd] = place - got if place > got else 0
        return ""

    def heard(self) -> Done:
        """Count the clients that have got anything since they were last read."""
        heard: set[int] = set()
        while events := self._epoll.poll(0):
            for fd, _ in events:
                if not self._sockets[fd].recv_into(self._buffer):
                    self._epoll.unregister(fd)
                    heard.discard(fd)
                else:
                    heard.add(fd)
        return Done(len(heard))

    def churn(self, order: Count) -> Report:
        """Let clients come, and go as soon as they have their headers."""
        assert self._target is not None
        say(Done(0))
        start = time.process_time()
        for _, sock in _opened(self._target, order.messages, order.churn):
            sock.close()
        cpu = time.process_time() - start
        return Report(received=order.messages, ended=time.monotonic(), cpu=cpu)

    def _surplus(self) -> str:
        """Say what is wrong if anything more comes, soon, than what keeps a connection alive."""
        while events := self._epoll.poll(QUIET):
            for fd, _ in events:
                if not (got := self._sockets[fd].recv_into(self._buffer)):
                    return DISCONNECTED
                if self._buffer.find(MARK, 0, got) >= 0:
                    return TOO_MUCH
        return ""


def _opened(
    order: Connect, number: int, at_once: int = AT_ONCE
) -> Iterator[tuple[int, socket.socket]]:
    """Connect, a few at a time, and give each socket that has its headers, with its number."""
    request = (UPGRADE if order.websocket else REQUEST).format(path=order.path).encode()
    waiting: dict[int, tuple[int, socket.socket]] = {}
    begun = 0
    with select.epoll() as epoll:
        while begun < number or waiting:
            while begun < number and len(waiting) < at_once:
                sock = socket.socket()
                if begun < order.stalled:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
                sock.connect(("127.0.0.1", order.ports[begun % len(order.ports)]))
                sock.sendall(request)
                sock.setblocking(False)
                waiting[sock.fileno()] = begun, sock
                epoll.register(sock, select.EPOLLIN)
                begun += 1
            events = epoll.poll(PATIENCE)
            if not events:
                raise TimeoutError(f"{len(waiting)} clients got no answer in {PATIENCE} s")
            for fd, _ in events:
                epoll.unregister(fd)
                index, sock = waiting.pop(fd)
                headers = sock.recv(65536)
                if headers[:12] not in (b"HTTP/1.1 200", b"HTTP/1.1 101"):
                    raise ConnectionError(f"a server answered {headers[:200]!r}")
                yield index, sock


def say(answer: Done | Report) -> None:
    """Answer the harness."""
    print(pack(answer), flush=True)


def main() -> None:
    """Follow the orders of the harness."""
    gc.disable()  # it makes no cycles
    client = Client(int(sys.argv[1]))
    for line in sys.stdin:
        kind, _, rest = line.partition(" ")
        if kind == "connect":
            say(client.connect(unpack(Connect, rest)))
        elif kind == "hear":
            say(client.heard())
        else:
            order = unpack(Count, rest)
            say(client.churn(order) if order.churn else client.count(order))


if __name__ == "__main__":
    main()
