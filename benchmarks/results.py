"""What was measured, and what follows from it: medians and ratios. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

__all__ = ("Results", "Row", "Sample", "load", "ratio", "rows", "save")

YARDSTICKS = "raw loop", "redis-py"  # of which a shape has one


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One repetition.

    Args:
        cpu: Seconds that the server used, user and system.
        wall: Seconds until all had arrived.
        count: Deliveries; of churn, connections; of idleness, seconds.
        p50: Half of the messages took so many seconds at most.
        p99: And 99 of 100 so many.
        client: Share of its core that the load client used.
        growth: Bytes by which the server's memory grew at its peak.
        memory: Bytes that became resident for each connection when it was made.
    """

    cpu: float
    wall: float
    count: int
    p50: float = 0.0
    p99: float = 0.0
    client: float = 0.0
    growth: int = 0
    memory: float = 0.0

    @property
    def each(self) -> float:
        """Seconds of CPU for each delivery."""
        return self.cpu / self.count


@dataclass(slots=True)
class Results:
    """All of a run.

    Args:
        about: The versions, the machine, the command.
        samples: Of each shape and server, one for each repetition.
        values: What has no shape, in the unit of the figure.
        skipped: What could not be measured, and why.
    """

    about: dict[str, str] = field(default_factory=dict[str, str])
    samples: dict[str, dict[str, list[Sample]]] = field(
        default_factory=dict[str, dict[str, list[Sample]]]
    )
    values: dict[str, float] = field(default_factory=dict[str, float])
    skipped: list[str] = field(default_factory=list[str])

    def add(self, shape: str, server: str, sample: Sample) -> None:
        self.samples.setdefault(shape, {}).setdefault(server, []).append(sample)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The medians of one server under one shape of load, in the units of the table."""

    shape: str
    server: str
    cpu: float  # microseconds for each delivery
    ratio: float | None  # to the yardstick, in the same repetition
    wall: float  # seconds
    rate: float  # deliveries a second
    p50: float  # milliseconds
    p99: float  # milliseconds
    client: float  # share of its core
    memory: float  # kibibytes for each connection


def ratio(samples: Mapping[str, list[Sample]], server: str, other: str) -> float | None:
    """Return how much more CPU a delivery takes than with the other, pairing repetitions."""
    pairs = zip(samples.get(server, ()), samples.get(other, ()), strict=False)
    ratios = [mine.each / theirs.each for mine, theirs in pairs if theirs.cpu]
    return median(ratios) if ratios else None


def rows(results: Results) -> Iterator[Row]:
    """Give the rows of the table, in the order in which they were measured."""
    for shape, servers in results.samples.items():
        yardstick = next((name for name in YARDSTICKS if name in servers), "")
        for server, samples in servers.items():
            yield Row(
                shape=shape,
                server=server,
                cpu=median(s.each for s in samples) * 1e6,
                ratio=ratio(servers, server, yardstick),
                wall=median(s.wall for s in samples),
                rate=median(s.count / s.wall for s in samples),
                p50=median(s.p50 for s in samples) * 1e3,
                p99=median(s.p99 for s in samples) * 1e3,
                client=median(s.client for s in samples),
                memory=samples[0].memory / 1024,
            )


def save(results: Results, path: Path) -> None:
    """Write the results, with the rows that follow from them, as JSON."""
    whole = asdict(results) | {"rows": [asdict(row) for row in rows(results)]}
    path.write_text(json.dumps(whole, indent=1) + "\n")


def load(path: Path) -> Results:
    """Read what `save` has written."""
    whole = json.loads(path.read_text())
    del whole["rows"]
    whole["samples"] = {
        shape: {
            server: [Sample(**each) for each in samples] for server, samples in servers.items()
        }
        for shape, servers in whole["samples"].items()
    }
    return Results(**whole)
