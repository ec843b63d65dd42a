"""Fibonacci numbers on a page, live."""

import argparse
import asyncio
from contextlib import suppress

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from tornadose import EventSource, QueueStore

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Fibonacci, live</title>
<link rel="icon" href="data:,">
<style>
  body { font: 1.1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 2rem auto; }
  #state { color: #555; }
  #numbers { list-style: none; padding: 0; }
  .gap { color: #a00; }
</style>
<h1>Fibonacci, live</h1>
<p id="state" role="status">connecting</p>
<ul id="numbers"></ul>
<script>
  const state = document.getElementById("state");
  const numbers = document.getElementById("numbers");

  function show(text, kind) {
    const item = document.createElement("li");
    item.textContent = text;
    item.className = kind;
    numbers.prepend(item);
    while (numbers.children.length > 20) numbers.lastChild.remove();
  }

  const source = new EventSource("stream");
  source.onopen = () => { state.textContent = "connected"; };
  source.onerror = () => { state.textContent = "connection lost, trying again"; };
  source.onmessage = (event) => show(event.data, "number");
  source.addEventListener("gap", (event) => {
    show(`some numbers are missing: ${JSON.parse(event.data).reason}`, "gap");
  });
</script>
"""


class Page(RequestHandler):
    def get(self) -> None:
        self.write(PAGE)  # pyright: ignore[reportUnknownMemberType]  # dict, of what?


async def fibonacci(store: QueueStore[int]) -> None:
    """Submit a number each second; what a 64-bit integer cannot hold starts anew."""
    a, b = 0, 1
    while True:
        await store.submit(a)
        a, b = (b, a + b) if b < 1 << 63 else (0, 1)
        await asyncio.sleep(1)


async def main(port: int) -> None:
    store = QueueStore[int]()
    server = HTTPServer(Application([(r"/", Page), EventSource.route(r"/stream", store)]))
    sockets = bind_sockets(port, "127.0.0.1")
    server.add_sockets(sockets)
    print(f"http://127.0.0.1:{sockets[0].getsockname()[1]}/", flush=True)
    try:
        await fibonacci(store)
    finally:
        server.stop()
        await store.aclose()
        await server.close_all_connections()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9000)
    with suppress(KeyboardInterrupt):
        asyncio.run(main(parser.parse_args().port))
