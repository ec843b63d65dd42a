"""What was measured, and what follows from it: medians and ratios. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Self

__all__ = (
    "Delay",
    "Results",
    "Row",
    "Sample",
    "load",
    "percentile",
    "ratio",
    "ratios",
    "rows",
    "save",
)

ENOUGH = 500  # latencies, for one in a hundred to mean anything
YARDSTICKS = "raw loop", "redis-py"  # of which a shape has one


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One repetition.

    Args:
        cpu: Seconds that the server used, user and system.
        wall: Seconds until all had arrived.
        count: Deliveries; of churn, connections; of idleness, seconds.
        size: Bytes of all deliveries, with what frames them.
        client: Share of its core that the load client used.
        growth: Bytes by which the server's memory grew at its peak.
        memory: Bytes that became resident for each connection when it was made.
    """

    cpu: float
    wall: float
    count: int
    size: int = 0
    client: float = 0.0
    growth: int = 0
    memory: float = 0.0

    @property
    def each(self) -> float:
        """Seconds of CPU for each delivery."""
        return self.cpu / self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class Delay:
    """From submit to receipt, of all repetitions together.

    Args:
        count: How many were noted.
        p50: Half of the messages took so many seconds at most.
        p99: And 99 of 100 so many; ``None`` where there are too few to say.
    """

    count: int
    p50: float
    p99: float | None

    @classmethod
    def of(cls, latencies: Sequence[int]) -> Self:
        """Return that of so many nanoseconds, one at least."""
        ordered = sorted(latencies)
        p99 = percentile(ordered, 0.99) / 1e9 if len(ordered) >= ENOUGH else None
        return cls(count=len(ordered), p50=percentile(ordered, 0.50) / 1e9, p99=p99)


@dataclass(slots=True)
class Results:
    """All of a run.

    Args:
        about: The versions, the machine, the command.
        samples: Of each shape and server, one for each repetition.
        delays: Of each shape and server, where they were measured.
        values: What has no shape, in the unit of the figure.
        skipped: What could not be measured here, and why.
        failed: What went wrong.
    """

    about: dict[str, str] = field(default_factory=dict[str, str])
    samples: dict[str, dict[str, list[Sample]]] = field(
        default_factory=dict[str, dict[str, list[Sample]]]
    )
    delays: dict[str, dict[str, Delay]] = field(default_factory=dict[str, dict[str, Delay]])
    values: dict[str, float] = field(default_factory=dict[str, float])
    skipped: list[str] = field(default_factory=list[str])
    failed: list[str] = field(default_factory=list[str])

    def add(self, shape: str, server: str, sample: Sample) -> None:
        self.samples.setdefault(shape, {}).setdefault(server, []).append(sample)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The medians of one server under one shape of load, in the units of the table."""

    shape: str
    server: str
    cpu: float  # microseconds for each delivery
    ratio: float | None  # to the yardstick, in the same repetition
    least: float | None  # of these ratios; of the yardstick, of its time to the median
    most: float | None
    wall: float  # seconds
    rate: float  # deliveries a second
    p50: float | None  # milliseconds
    p99: float | None  # milliseconds
    size: float  # bytes for each delivery
    busy: float  # share of the core that the server used
    client: float  # share of its own that the load client used
    memory: float  # kibibytes for each connection


def percentile(ordered: Sequence[int], share: float) -> float:
    """Return the value below which this share of the ordered values lies."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def ratio(samples: Mapping[str, list[Sample]], server: str, other: str) -> float | None:
    """Return how much more CPU a delivery takes than with the other: the median of `ratios`."""
    found = ratios(samples, server, other)
    return median(found) if found else None


def ratios(samples: Mapping[str, list[Sample]], server: str, other: str) -> list[float]:
    """Return how much more CPU a delivery takes than with the other in each repetition."""
    pairs = zip(samples.get(server, ()), samples.get(other, ()), strict=False)
    return [mine.each / theirs.each for mine, theirs in pairs if theirs.cpu]


def rows(results: Results) -> Iterator[Row]:
    """Give the rows of the table, in the order of the plan."""
    for shape, servers in results.samples.items():
        yardstick = next((name for name in YARDSTICKS if name in servers), "")
        for server, samples in servers.items():
            cpu = median(s.each for s in samples)
            found = ratios(servers, server, yardstick)
            spread = [s.each / cpu for s in samples if cpu] if server == yardstick else found
            delay = results.delays.get(shape, {}).get(server)
            yield Row(
                shape=shape,
                server=server,
                cpu=cpu * 1e6,
                ratio=median(found) if found else None,
                least=min(spread, default=None),
                most=max(spread, default=None),
                wall=median(s.wall for s in samples),
                rate=median(s.count / s.wall for s in samples),
                p50=delay.p50 * 1e3 if delay else None,
                p99=delay.p99 * 1e3 if delay and delay.p99 is not None else None,
                size=median(s.size / s.count for s in samples),
                busy=median(s.cpu / s.wall for s in samples),
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
    whole["delays"] = {
        shape: {server: Delay(**each) for server, each in servers.items()}
        for shape, servers in whole["delays"].items()
    }
    return Results(**whole)
