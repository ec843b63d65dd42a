"""Clients in full control of their socket: they stall, vanish, and send nonsense."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeAlias, TypeVar
from urllib.parse import urlsplit

from support import DEADLINE, eventually
from tornadose import QueueStore

T = TypeVar("T")
Frame: TypeAlias = dict[str, object]

TEXT, CLOSE, PING = 0x1, 0x8, 0x9  # opcodes
UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


class Raw:
    """One connection: what it has received so far is in `buffer`."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = bytearray()
        self.websocket = False

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def fill(self, most: int = 1 << 18) -> bool:
        """Read once; false at the end of the connection, however it came."""
        async with asyncio.timeout(DEADLINE):
            try:
                data = await asyncio.get_running_loop().sock_recv(self.sock, most)
            except ConnectionError:
                return False
        self.buffer += data
        return bool(data)

    async def until(self, marker: bytes) -> None:
        """Read until this has come."""
        searched = 0
        while self.buffer.find(marker, searched) < 0:
            searched = max(0, len(self.buffer) - len(marker))
            if not await self.fill():
                raise EOFError(f"{marker!r} is not in {bytes(self.buffer[-200:])!r}")

    async def head(self) -> bytes:
        """Read the head of the response, and take it out of the buffer."""
        await self.until(b"\r\n\r\n")
        head, _, rest = bytes(self.buffer).partition(b"\r\n\r\n")
        self.buffer[:] = rest
        return head

    async def to_the_end(self) -> None:
        """Read until the server ends the connection."""
        while await self.fill():
            pass

    def leave(self) -> None:
        """Go away, with a FIN if everything is read; otherwise the system sends a RST."""
        self.sock.close()

    def reset(self) -> None:
        """Go away with a RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    # ---- what is in the buffer

    def events(self) -> list[dict[str, str]]:
        """Return the complete events of a chunked event stream, without its comments."""
        body = b"".join(chunks(bytes(self.buffer))).decode()
        found: list[dict[str, str]] = []
        for block in body.split("\n\n")[:-1]:
            lines = [line.split(": ", 1) for line in block.split("\n") if line[:1] != ":"]
            event: dict[str, str] = {}
            for name, value in lines:
                event[name] = f"{event[name]}\n{value}" if name in event else value
            if "data" in event:
                found.append(event)
        return found

    def frames(self) -> list[tuple[int, bytes]]:
        """Return the complete WebSocket frames, as pairs of opcode and payload."""
        return list(frames(bytes(self.buffer)))

    def messages(self) -> list[Frame]:
        """Return the JSON objects among the WebSocket frames."""
        return [json.loads(payload) for opcode, payload in self.frames() if opcode == 1]

    def seen(self) -> list[str]:
        """Return the payloads in the buffer, and ``gap:`` with the reason for a gap."""
        if self.websocket:
            return [
                f"gap:{told['reason']}"
                if isinstance(told := m.get("gap"), dict)
                else str(m["data"])
                for m in self.messages()
            ]
        return [
            f"gap:{json.loads(event['data'])['reason']}"
            if event.get("event") == "gap"
            else event["data"]
            for event in self.events()
        ]

    def last_id(self) -> str:
        """Return the last id in the buffer, with which a client would resume."""
        known = self.messages() if self.websocket else self.events()
        return str([message["id"] for message in known if "id" in message][-1])


def chunks(body: bytes) -> Iterator[bytes]:
    """Take a chunked body apart, up to the last chunk that is complete."""
    at = 0
    while (line := body.find(b"\r\n", at)) >= 0:
        size = int(body[at:line], 16)
        if len(body) < line + 2 + size + 2:
            return
        yield body[line + 2 : line + 2 + size]
        at = line + 2 + size + 2


def frames(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Take unmasked frames apart, up to the last one that is complete."""
    at = 0
    while len(data) >= at + 2:
        opcode, size, start = data[at] & 0xF, data[at + 1], at + 2
        if size == 126 and len(data) >= at + 4:
            size, start = int.from_bytes(data[at + 2 : at + 4]), at + 4
        elif size == 127 and len(data) >= at + 10:
            size, start = int.from_bytes(data[at + 2 : at + 10]), at + 10
        elif size >= 126:
            return
        if len(data) < start + size:
            return
        yield opcode, data[start : start + size]
        at = start + size


def masked(opcode: int, payload: bytes) -> bytes:
    """Return a short frame as clients send it, with a mask that changes nothing."""
    return struct.pack("!BB", 0x80 | opcode, 0x80 | len(payload)) + bytes(4) + payload


def request(url: str, headers: dict[str, str]) -> bytes:
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [f"GET {target} HTTP/1.1", f"Host: {parts.netloc}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


async def one_by_one(store: QueueStore[T], payloads: Iterable[T]) -> None:
    """Submit each when the one before is handed on, so that no two are one batch."""
    for payload in payloads:
        due = store.statistics().submitted + 1
        await store.submit(payload)
        await eventually(partial(_published, store, due))


def _published(store: QueueStore[T], count: int) -> bool:
    return store.statistics().published >= count


async def dialled(url: str, receive_buffer: int | None = None) -> Raw:
    """Connect, and send nothing yet."""
    sock = socket.socket()
    sock.setblocking(False)
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    parts = urlsplit(url)
    await asyncio.get_running_loop().sock_connect(sock, (parts.hostname, parts.port))
    return Raw(sock)


@asynccontextmanager
async def opened(
    url: str,
    *,
    websocket: bool = False,
    headers: dict[str, str] | None = None,
    receive_buffer: int | None = None,
) -> AsyncGenerator[Raw, None]:
    """Send a GET request, read the head of a response that subscribes, and give the rest."""
    raw = await dialled(url, receive_buffer)
    try:
        await raw.send(request(url, (UPGRADE if websocket else {}) | (headers or {})))
        head = await raw.head()
        raw.websocket = websocket
        assert head.startswith(b"HTTP/1.1 101" if websocket else b"HTTP/1.1 200"), head
        yield raw
    finally:
        raw.sock.close()
