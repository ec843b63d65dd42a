"""Plain Tornado: `write_message` for each client, as in its chat demo."""

from __future__ import annotations

import json
from itertools import count

from tornado.websocket import WebSocketHandler

from ..protocol import Setup
from .driver import follow, run
from .tornado_server import serve

clients: set[WebSocketHandler] = set()


class Stream(WebSocketHandler):
    def open(self, *args: str, **kwargs: str) -> None:
        clients.add(self)

    def on_message(self, message: str | bytes) -> None:
        pass

    def on_close(self) -> None:
        clients.discard(self)


async def main(setup: Setup) -> None:
    numbers = count()

    async def publish(text: str) -> None:
        message = json.dumps({"data": text, "id": f"{next(numbers):016d}"})
        for client in clients:
            client.write_message(message)

    port = serve(setup, [(r"/", Stream)])
    await follow(setup, port, publish, lambda: len(clients))


if __name__ == "__main__":
    run(main)
