"""A chart of the results, as SVG. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import escape

from .results import Results, Row, rows
from .shapes import RAW

__all__ = ("svg",)

CHARTED = {
    "paced": "40 messages a second to 500 clients",
    "bursts of 10": "bursts of 10 messages to 500 clients",
}
WIDTH, LABELS, BAR, GAP, TITLE = 760, 190, 18, 6, 44
ROOM = WIDTH - LABELS - 150  # for the bars
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
.title { font-weight: 600; }
.note { fill: #59636e; font-size: 12px; }
.peer { fill: #9aa7b4; }
.ours { fill: #0969da; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .note { fill: #9198a1; }
  .peer { fill: #656c76; }
  .ours { fill: #4493f8; }
}
"""


def svg(results: Results) -> str:
    """Return a picture of the CPU time for each delivery, or nothing if none was measured."""
    parts: list[str] = []
    top = 8
    table = list(rows(results))
    for shape, title in CHARTED.items():
        bars = sorted(_bars([row for row in table if row.shape == shape]), key=_cpu)
        if bars:
            parts += _group(bars, title, top)
            top += TITLE + len(bars) * (BAR + GAP) + 12
    if not parts:
        return ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" role="img">\n'
        f"<title>Server CPU time for each delivered message</title>\n<style>{STYLE}</style>\n"
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _bars(charted: Sequence[Row]) -> Iterator[Row]:
    """Give the rows with the time that their ratio makes of the raw loop's, as it is steadier."""
    raw = next((row.cpu for row in charted if row.server == RAW.name), 0.0)
    for row in charted:
        yield row if row.ratio is None else replace(row, cpu=row.ratio * raw)


def _cpu(row: Row) -> float:
    return row.cpu


def _group(charted: Sequence[Row], title: str, top: int) -> Iterator[str]:
    """Give the bars of one shape of load, the shortest first."""
    longest = min(row.cpu * times for row, times in zip(charted[-2:], (1.2, 1.0), strict=False))
    yield f'<text class="title" x="0" y="{top + 14}">{escape(title)}</text>'
    yield (
        f'<text class="note" x="0" y="{top + 32}">server CPU for each delivery, in microseconds;'
        " less is better</text>"
    )
    for number, row in enumerate(charted):
        y = top + TITLE + number * (BAR + GAP)
        length = min(max(1.0, row.cpu / longest * ROOM), ROOM)
        cut = "\N{RIGHTWARDS ARROW} " if row.cpu > longest else ""
        kind = "ours" if row.server.startswith("tornadose") else "peer"
        times = "" if row.ratio is None else f" ({row.ratio:.2f}x)"
        end, base = LABELS + length + 6, y + 14
        yield (
            f'<text x="{LABELS - 8}" y="{base}" text-anchor="end">{escape(row.server)}</text>'
            f'<rect class="{kind}" x="{LABELS}" y="{y}" width="{length:.1f}" height="{BAR}"/>'
            f'<text x="{end:.1f}" y="{base}">{cut}{row.cpu:.1f}{times}</text>'
        )
