"""Tornadose beside what a user would pick instead: ``tox run -e bench``.

Every server runs as a process of its own on one core, the load client on another, over
the loopback. What counts is the CPU time of the server, user and system, as the kernel
has it, for each message that a client has received, and its ratio to that of a loop of
``transport.write`` in the same repetition. The repetitions of all servers are
interleaved, another one first each time, and medians shown; latencies are those of all
repetitions together. Absolute times depend on the machine and are not asserted.

Every client is to get every message once, with all its bytes, and a heartbeat when it is
idle. A server that does otherwise is not measured further, and the run ends with an error.

All servers publish the same texts at the same moments, with ids where they have them, and
send a heartbeat every 15 seconds where they can. None writes a log of requests. Each is
used as its own documentation shows: those on asyncio with a queue for each response, and
those on uvicorn with uvloop and httptools, which it chooses where they are installed.
"""
