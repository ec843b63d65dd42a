"""What has become worse since another run. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from .figures import FIGURES
from .results import Results, rows

__all__ = ("worse",)

TOLERANCE = 1.15  # what a value may become worse by
NOISE = 0.05  # what is below it is as good as nothing
TIMES = " ms", " % of a core"  # units that depend on the machine


def worse(now: Results, before: Results) -> list[str]:
    """Name what has become worse by more than is tolerated, of what both have measured.

    Compared are tornadose's ratios, and the figures that are no times.
    """
    earlier = dict(_comparable(before))
    return [
        f"{what}: {earlier[what]:.2f} before, {value:.2f} now"
        for what, value in _comparable(now)
        if what in earlier and value > max(earlier[what] * TOLERANCE, NOISE)
    ]


def _comparable(results: Results) -> Iterator[tuple[str, float]]:
    for row in rows(results):
        if row.server.startswith("tornadose") and row.ratio is not None:
            yield f"{row.shape}: {row.server}, CPU", row.ratio
    for figure in FIGURES:
        value = figure.measured(results)
        if figure.unit not in TIMES and value is not None:
            yield figure.name, value
