"""Two processes on one server that dies every 15 s, and what their clients have got by then.

``TORNADOSE_SOAK_SECONDS`` is how long it takes, 120 by default.
"""

from __future__ import annotations

import os
import re
import resource
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles

import pytest

from soak.clients import played
from soak.scene import Scene, staged
from soak.verdict import (
    Faults,
    channel_faults,
    payload_of,
    publisher_faults,
    stream_faults,
)

SECONDS = float(os.environ.get("TORNADOSE_SOAK_SECONDS", "120"))
KILLS = max(2, round(SECONDS / 15) - 1)
SLOW = 1.0  # seconds that the clients may stall without being released
EXPECTED = re.compile("WARNING tornadose: .*(cannot read from|reads from) Redis")  # in the logs


@pytest.mark.timeout(SECONDS + 240)
async def test_p10_an_outage_is_repaired_or_declared(tmp_path: Path) -> None:
    began, used = time.monotonic(), computed(resource.RUSAGE_CHILDREN)
    async with staged(tmp_path) as scene:
        before = computed(resource.RUSAGE_SELF)
        await scene.play(SECONDS, KILLS)
        wall, own = time.monotonic() - began, computed(resource.RUSAGE_SELF) - before
    children = computed(resource.RUSAGE_CHILDREN) - used
    channel, covered = channel_verdict(scene)
    faults = stream_verdict(scene) + channel + around(scene, tmp_path)
    lines = [f"{wall:.0f} s, {scene.restarts} restarts", *messages(scene, covered)]
    lines += [*times(scene), shares(scene, wall, own, children), f"faults: {dict(faults)}"]
    lines += logs(scene, tmp_path) if faults else []
    print("", *lines, sep="\n")  # noqa: T201 (the figures are what a soak is run for)
    assert faults == {}


def stream_verdict(scene: Scene) -> Faults:
    """Compare every client with the stream, and the stream with what was accepted."""
    stream = [f"id: {cursor}\ndata: {data}\n\n".encode() for cursor, data in scene.stream]
    faults = publisher_faults(scene.books("stream"), scene.stream)
    for spans, clients in Counter(c.spans for c in scene.clients["stream"]).items():
        found = stream_faults(played(spans, scene.logs["stream"]), stream)
        faults.update({f"stream: {fault}": n * clients for fault, n in found.items()})
    return faults


def channel_verdict(scene: Scene) -> tuple[Faults, int]:
    """Look for holes without a gap, and count what those with one have in them."""
    faults, covered = Faults(), 0
    for spans, clients in Counter(c.spans for c in scene.clients["channel"]).items():
        events = played(spans, scene.logs["channel"])
        found, missed = channel_faults(events, scene.books("channel"))
        faults.update({f"channel: {fault}": n * clients for fault, n in found.items()})
        covered += missed * clients
    for client in scene.clients["channel"]:
        if client.gaps != {"outage": scene.restarts} and not client.ended:
            faults[f"channel: {dict(client.gaps)} are not the gaps of the outages"] += 1
    return +faults, covered


def around(scene: Scene, folder: Path) -> Faults:
    """Look for what went wrong besides."""
    faults = Faults()
    not_slow = scene.figures["stall"] < SLOW
    for kind, clients in scene.clients.items():
        enough = min(SECONDS, 15) * 250  # or the rest would prove nothing
        for client in clients:
            faults[f"{kind}: hardly anything received"] += client.received < enough
            faults[f"{kind}: ended by the server"] += client.ended * not_slow
            faults[f"{kind}: bytes that are no event"] += len(client.strange)
    for process in scene.processes:
        faults[f"process {process.name}: no figures"] += process.figures is None
        faults[f"process {process.name}: return code"] += process.returncode != 0
    for line in logs(scene, folder):
        faults[line] += EXPECTED.search(line) is None
    return +faults


def logs(scene: Scene, folder: Path) -> list[str]:
    return [
        f"process {process.name}: {line}"
        for process in scene.processes
        for line in (folder / f"{process.name}.log").read_text().splitlines()
    ]


# ---- figures


def messages(scene: Scene, covered: int) -> Iterator[str]:
    for kind, clients in scene.clients.items():
        books = scene.books(kind)
        there = {payload_of(event) for event in scene.logs[kind].numbers}
        accepted = sum(len(book.accepted) for book in books.values())
        unknown = [(name, number) for name, book in books.items() for number in book.unknown]
        refused = sum((book.refused for book in books.values()), Counter[str]())
        yield (
            f"{kind}: {accepted + len(unknown) + refused.total()} submitted, {accepted} accepted, "
            f"{len(unknown)} unknown ({len(there.intersection(unknown))} of them came), "
            f"{refused.total()} refused {dict(refused)}"
        )
        gaps = sorted(client.gaps.total() for client in clients)
        yield (
            f"{kind}: {len(clients)} clients, {sum(c.received for c in clients)} delivered, "
            f"{sum(c.resumed for c in clients)} resumed, "
            f"{sum(c.ended for c in clients)} released, gaps of a client: "
            f"{gaps[0]} at least, {median(gaps):g} the median, {gaps[-1]} at most"
        )
    yield f"channel: {covered} missed by clients who were told of a gap"


def times(scene: Scene) -> Iterator[str]:
    *_, late = quantiles(scene.delays, n=100)
    yield (
        f"from Redis to a client of the stream: {1000 * median(scene.delays):.0f} ms the median, "
        f"{1000 * late:.0f} ms in 99 of 100 cases"
    )
    told = {f"process {process.name}": process.figures for process in scene.processes}
    stalls = (
        f"{who} {1000 * figures['stall']:.0f} ms ({1000 * figures['busy']:.0f} of computing)"
        for who, figures in {**told, "clients": scene.figures}.items()
        if figures is not None
    )
    yield f"longest stall: {', '.join(stalls)}"


def shares(scene: Scene, wall: float, own: float, children: float) -> str:
    """Tell who has used how much of a core."""
    used = {p.name: p.figures["cpu"] if p.figures else 0.0 for p in scene.processes}
    each = {f"process {name}": seconds for name, seconds in used.items()}
    each |= {"clients": own, "server": children - sum(used.values())}
    return "of a core: " + ", ".join(f"{name} {s / wall:.0%}" for name, s in each.items())


def computed(who: int) -> float:
    """Return the seconds of processor time until now."""
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime
