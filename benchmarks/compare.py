"""What has become worse since another run. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from .figures import flatness
from .results import Results, rows
from .shapes import RAW, STALLED, TORNADOSE

__all__ = ("worse",)

TOLERANCE = 1.15  # what a value may become worse by
WIDE = 1.5  # and one that the whole machine has a say in
NOISE = 0.05  # what is below it is as good as nothing

Key = tuple[str, str, str]  # the shape, the server, and what of it


def worse(now: Results, before: Results, measured: Collection[tuple[str, str]]) -> list[str]:
    """Name what has become worse by more than is tolerated, or is missing, once each.

    Compared are tornadose's ratios, and its memory; not what follows from them.

    Args:
        now: This run.
        before: The one that it is compared with.
        measured: The shapes and servers that this run was to measure.
    """
    found = {key: value for key, value, _ in _comparable(now)}
    lines: list[str] = []
    for key, value, tolerance in _comparable(before):
        what = f"{key[0]}: {key[1]}, {key[2]}"
        if key in found and found[key] > max(value * tolerance, NOISE):
            lines.append(f"{what}: {value:.2f} before, {found[key]:.2f} now")
        elif key not in found and key[:2] in measured:
            lines.append(f"{what}: {value:.2f} before, missing now")
    return lines


def _comparable(results: Results) -> Iterator[tuple[Key, float, float]]:
    """Give what can be compared, how high it was, and what it may become worse by."""
    table = {(row.shape, row.server): row for row in rows(results)}
    for (shape, server), row in table.items():
        if not server.startswith("tornadose"):
            continue
        if row.ratio is not None:
            yield (shape, server, "CPU"), row.ratio, TOLERANCE
        if shape == "idle":
            yield (shape, server, "KiB"), row.memory, TOLERANCE
        for other in RAW.name, server.removesuffix(STALLED):
            beside = table.get((shape, other))
            if other != server and row.p99 and beside and beside.p99:
                yield (shape, server, f"p99 against {other}"), row.p99 / beside.p99, WIDE
    if (flat := flatness(results)) is not None:
        yield ("1 MB to 100", TORNADOSE.name, "MB for each further client"), flat, TOLERANCE
