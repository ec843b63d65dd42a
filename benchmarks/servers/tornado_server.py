"""Tornado, set up alike for each of the servers that run on it."""

from __future__ import annotations

from typing import Any

from tornado.httpserver import HTTPServer
from tornado.web import Application, RequestHandler

from ..protocol import Setup
from .driver import listen

__all__ = ("serve",)


def serve(setup: Setup, rules: list[Any]) -> int:
    """Serve these rules of a URL table without a log of requests, and return the port."""
    sock = listen(setup)
    application = Application(rules, log_function=_unlogged)
    HTTPServer(application).add_sockets([sock])
    return int(sock.getsockname()[1])


def _unlogged(handler: RequestHandler) -> None:
    """Leave a request out of the log."""
