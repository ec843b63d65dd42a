"""websockets: `broadcast`, which frames a message once."""

from __future__ import annotations

import json
from itertools import count

from websockets.asyncio.server import ServerConnection, broadcast, serve

from ..protocol import Setup
from .driver import follow, listen, run


async def main(setup: Setup) -> None:
    clients: set[ServerConnection] = set()
    numbers = count()

    async def handle(client: ServerConnection) -> None:
        clients.add(client)
        try:
            await client.wait_closed()
        finally:
            clients.discard(client)

    async def publish(text: str) -> None:
        broadcast(clients, json.dumps({"data": text, "id": f"{next(numbers):016d}"}))

    sock = listen(setup)
    async with serve(handle, sock=sock, ping_interval=None):  # as they are of random bytes
        await follow(setup, sock.getsockname()[1], publish, lambda: len(clients))


if __name__ == "__main__":
    run(main)
