"""The load client: thousands of connections, read with one epoll, in a process of its own.

It counts messages by their mark, without parsing anything, so that a server that uses all
of one core does not outrun it on another.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import sys
import time
from array import array
from collections.abc import Iterator

from .protocol import MARK, STAMP, Connect, Count, Done, Report, pack, unpack

__all__ = ("Client", "percentile")

AT_ONCE = 200  # connections whose headers are outstanding, less than a server's backlog
PATIENCE = 20.0  # seconds for one of them
TIMED = 4  # of so many clients, one notes how long the messages took
SMALL = 4096  # bytes of receive buffer of a client that stalls

REQUEST = "GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
UPGRADE = (
    "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


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
        self._buffer = bytearray(1 << 18)
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
        gc.freeze()
        return Done(order.clients)

    def count(self, order: Count) -> Report:
        """Receive until every client that is not stalled has all messages."""
        clients = len(self._sockets)
        missing = order.messages * clients
        next_ack = missing - clients if order.lockstep else -1
        latencies, timed = array("q"), set(list(self._sockets)[::TIMED])
        buffer, receive = self._buffer, {f: s.recv_into for f, s in self._sockets.items()}
        far = order.size - len(buffer)  # bytes of each message that need not even be copied
        ahead = dict.fromkeys(receive, far)
        while missing > 0:
            events = self._epoll.poll(order.timeout)
            if not events:
                break
            for fd, _ in events:
                skip = ahead[fd]
                if skip > 0:
                    size = receive[fd](buffer, min(skip, len(buffer)), socket.MSG_TRUNC)
                    ahead[fd] -= size
                else:
                    size = receive[fd](buffer)
                if size == 0:
                    self._epoll.unregister(fd)
                elif skip > 0:
                    continue
                elif number := buffer.count(MARK, 0, size):
                    missing -= number
                    ahead[fd] = far
                    if fd in timed:
                        _take_times(buffer, size, number, latencies)
            while 0 <= missing <= next_ack:
                os.write(self._acks, b"\n")
                next_ack -= clients
        seconds = sorted(latencies)
        return Report(
            received=order.messages * clients - missing,
            lost=missing,
            p50=percentile(seconds, 0.50) / 1e9,
            p99=percentile(seconds, 0.99) / 1e9,
        )

    def churn(self, order: Count) -> Report:
        """Let clients come, and go as soon as they have their headers."""
        assert self._target is not None
        for _, sock in _opened(self._target, order.messages, order.churn):
            sock.close()
        return Report(received=order.messages)


def percentile(ordered: list[int], share: float) -> float:
    """Return the value below which this share of the ordered values lies; 0 if there are none."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def _take_times(buffer: bytearray, size: int, number: int, latencies: array[int]) -> None:
    """Note how long ago each message was submitted that ends in the buffer."""
    now, end = time.monotonic_ns(), size
    for _ in range(number):
        end = buffer.rfind(MARK, 0, end)
        if end + STAMP < size:
            latencies.append(now - int(buffer[end + 1 : end + 1 + STAMP]))


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


def main() -> None:
    """Follow the orders of the harness."""
    client = Client(int(sys.argv[1]))
    for line in sys.stdin:
        kind, _, rest = line.partition(" ")
        answer: Done | Report
        if kind == "connect":
            answer = client.connect(unpack(Connect, rest))
        else:
            order = unpack(Count, rest)
            print(pack(Done(0)), flush=True)  # from here on, messages are counted
            answer = client.churn(order) if order.churn else client.count(order)
        print(pack(answer), flush=True)


if __name__ == "__main__":
    main()
