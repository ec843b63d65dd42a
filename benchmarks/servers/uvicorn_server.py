"""uvicorn, set up alike for each of the servers that run on it: with uvloop and httptools."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import uvicorn

from ..protocol import Setup
from .driver import Publish, follow, listen, run

__all__ = ("serve",)


def serve(application: Any, publish: Publish, clients: Callable[[], int]) -> None:
    """Run the application without a log of requests, and follow orders beside it."""
    config = uvicorn.Config(application, access_log=False, log_level="warning")
    server = uvicorn.Server(config)

    async def main(setup: Setup) -> None:
        sock = listen(setup)
        serving = asyncio.create_task(server.serve([sock]))
        while not server.started:  # noqa: ASYNC110 (uvicorn does not tell)
            await asyncio.sleep(0.005)
        await follow(setup, sock.getsockname()[1], publish, clients)
        serving.cancel()

    run(main, config.get_loop_factory())
