"""The figures that tornadose is to reach, and what a run has measured of them. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import TypeAlias

from .results import Results, ratio
from .shapes import NCHAN, PYTHON_PEERS, RAW, STALLED, TORNADOSE, Entrant

__all__ = ("FIGURES", "IMPORT", "Figure")

Measured: TypeAlias = Callable[[Results], float | None]

IMPORT = "import tornadose, over tornado.web"
BURSTS = "bursts of 10"


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure, of which less is better.

    Args:
        name: What it is.
        unit: Of the following.
        reach: What it is not to exceed.
        beyond: What would be better still.
        measured: Finds it in the results, if it was measured.
    """

    name: str
    unit: str
    reach: float
    beyond: float | None
    measured: Measured

    def verdict(self, results: Results) -> str:
        measured = self.measured(results)
        if measured is None:
            return "not measured"
        if self.beyond is not None and measured <= self.beyond:
            return "beyond"
        return "reached" if measured <= self.reach else "NOT REACHED"


def against(shape: str, other: Entrant | str, server: str = TORNADOSE.name) -> Measured:
    """Return what finds the CPU time against another's."""
    name = other if isinstance(other, str) else other.name
    return lambda results: ratio(results.samples.get(shape, {}), server, name)


def against_best(shape: str) -> Measured:
    """Return what finds the CPU time against that of the best Python peer."""
    each = [against(shape, peer) for peer in PYTHON_PEERS]

    def measured(results: Results) -> float | None:
        ratios = [find(results) for find in each]
        return max((found for found in ratios if found is not None), default=None)

    return measured


def memory(results: Results) -> float | None:
    """Find the KiB for each of 9,000 connections, as they were made: one sample."""
    samples = results.samples.get("idle", {}).get(TORNADOSE.name)
    return samples[0].memory / 1024 if samples else None


def idle(results: Results) -> float | None:
    """Find the share of a core in percent that idle clients take."""
    samples = results.samples.get("idle", {}).get(TORNADOSE.name)
    return median(s.cpu / s.wall for s in samples) * 100 if samples else None


def stalled(results: Results) -> float | None:
    """Find how the p99 of the others grows where a tenth of the clients has stalled."""
    delays = results.delays.get("stalled", {})
    none, some = (delays.get(TORNADOSE.name + suffix) for suffix in ("", STALLED))
    return some.p99 / none.p99 if some and none and some.p99 and none.p99 else None


def flatness(results: Results) -> float | None:
    """Find how the peak of memory grows with each further client, in messages of 1 MB.

    A client that keeps up is not to need any. A copy that is gone before the next client's
    turn is not seen here, but in the CPU time.
    """
    few, many = (
        results.samples.get(f"1 MB to {clients}", {}).get(TORNADOSE.name) for clients in (10, 100)
    )
    if not few or not many:
        return None
    growth = max(s.growth for s in many) - max(s.growth for s in few)
    return max(0.0, growth / 90 / 1e6)


FIGURES = (
    Figure("SSE paced, CPU against the raw loop", "x", 1.25, 1.1, against("paced", RAW)),
    Figure("SSE paced, CPU against nchan", "x", 1.0, 0.8, against("paced", NCHAN)),
    Figure("SSE paced, CPU against the best Python peer", "x", 0.45, 0.35, against_best("paced")),
    Figure("SSE bursts of 10, CPU against the raw loop", "x", 0.2, None, against(BURSTS, RAW)),
    Figure("SSE bursts of 10, against the best Python peer", "x", 0.1, None, against_best(BURSTS)),
    Figure(
        "WebSocket paced, CPU against websockets.broadcast",
        "x",
        0.95,
        0.85,
        against("paced", "websockets.broadcast", "tornadose WebSocket"),
    ),
    *(
        Figure(
            f"SSE lockstep to {clients:,}, CPU against the raw loop",
            "x",
            1.3,
            1.1,
            against(f"lockstep to {clients}", RAW),
        )
        for clients in (100, 1000, 9000)
    ),
    Figure("memory for each of 9,000 idle SSE connections", " KiB", 13.0, 9.9, memory),
    Figure("9,000 idle clients, 15 s heartbeats", " % of a core", 1.5, None, idle),
    Figure("p99 of the others with 10 % stalled, against none", "x", 1.2, None, stalled),
    *(
        Figure(
            f"Redis {kind} in, CPU against a redis-py loop",
            "x",
            1.3,
            None,
            against(f"Redis {kind} in", "redis-py"),
        )
        for kind in ("Pub/Sub", "Streams")
    ),
    Figure("1 MB to 100, CPU against the raw loop", "x", 1.3, None, against("1 MB to 100", RAW)),
    Figure("1 MB, memory for each further client", " MB", 0.05, None, flatness),
    Figure(IMPORT, " ms", 15.0, None, lambda results: results.values.get(IMPORT)),
)
