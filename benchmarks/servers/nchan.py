"""nginx with the module nchan, in C, where both are installed: one worker, and one channel.

The variables ``NGINX`` and ``NCHAN`` name the program and the module where they are not
in the usual places. Messages are posted from the load client's core, so that only what
nginx does for them is counted.
"""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from urllib.request import urlopen

from ..protocol import Setup
from .driver import follow, run

MODULES = "/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/share/nginx/modules"
MODULE = "ngx_nchan_module.so"
CONFIGURATION = """
load_module {module};
daemon off;
pid {folder}/nginx.pid;
error_log stderr warn;
user root;
worker_processes 1;
worker_rlimit_nofile {files};
events {{ worker_connections {files}; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size 2m;
    client_body_buffer_size 2m;
    keepalive_requests 1000000;
    nchan_shared_memory_size 256M;
    server {{
        listen 127.0.0.1:{port} backlog=1024{sndbuf};
        location = /stream {{
            nchan_subscriber eventsource;
            nchan_channel_id news;
            nchan_subscriber_first_message newest;
            nchan_eventsource_ping_interval {heartbeat};
        }}
        location = /publish {{
            nchan_publisher;
            nchan_channel_id news;
            nchan_message_buffer_length 20;
        }}
        location = /status {{ nchan_stub_status; }}
    }}
}}
"""


class Publisher:
    """Posts messages to nginx over one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def post(self, text: str) -> None:
        """Post a message, and wait until it is accepted."""
        head = f"POST /publish HTTP/1.1\r\nHost: x\r\nContent-Length: {len(text)}\r\n\r\n"
        self._writer.write((head + text).encode())
        headers = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        await self._reader.readexactly(int(headers.partition("content-length:")[2].split()[0]))


def found() -> tuple[str, str]:
    """Return where the program and the module are, or end and say so."""
    program = shutil.which(os.environ.get("NGINX") or "nginx", path=os.defpath + ":/usr/sbin")
    places = [os.environ.get("NCHAN", ""), *(f"{folder}/{MODULE}" for folder in MODULES)]
    module = next((place for place in places if Path(place).is_file()), None)
    if program is None or module is None:
        sys.exit("nginx and its module nchan are not installed")
    return program, module


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def connected(port: int, nginx: asyncio.subprocess.Process) -> Publisher:
    """Connect as soon as nginx listens."""
    while nginx.returncode is None:
        try:
            return Publisher(*await asyncio.open_connection("127.0.0.1", port))
        except OSError:
            await asyncio.sleep(0.01)
    sys.exit(f"nginx ended with {nginx.returncode}")


def clients(port: int) -> int:
    """Return how many subscribers nchan has."""
    with urlopen(f"http://127.0.0.1:{port}/status") as response:
        _, _, rest = response.read().partition(b"subscribers: ")
    return int(rest.split()[0])


def worker(master: int) -> int:
    """Return the process id of the one worker."""
    return int(Path(f"/proc/{master}/task/{master}/children").read_text())


def configure(setup: Setup, module: str, port: int, folder: str) -> str:
    """Write a configuration into the folder, and return its path."""
    path = Path(folder, "nginx.conf")
    path.write_text(
        CONFIGURATION.format(
            module=module,
            folder=folder,
            port=port,
            sndbuf=f" sndbuf={setup.send_buffer}" if setup.send_buffer else "",
            files=resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 100,
            heartbeat=round(setup.heartbeat),
        )
    )
    return str(path)


async def main(setup: Setup) -> None:
    program, module = found()
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        configuration = configure(setup, module, port, folder)
        nginx = await asyncio.create_subprocess_exec(program, "-p", folder, "-c", configuration)
        try:
            publisher = await connected(port, nginx)
            clients(port)  # answered by the worker, so there is one
            if setup.client_core >= 0:
                os.sched_setaffinity(0, {setup.client_core})
            await follow(
                setup,
                port,
                publisher.post,
                lambda: clients(port),
                path="/stream",
                pid=worker(nginx.pid),
            )
        finally:
            if nginx.returncode is None:
                nginx.terminate()
            await nginx.wait()


if __name__ == "__main__":
    run(main)
