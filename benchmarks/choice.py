"""What of the plan is to be measured. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from .shapes import RAW, STALLED, Entrant, Stage

__all__ = ("chosen", "matching")


def matching(wanted: Sequence[str] | None, names: Collection[str]) -> set[str]:
    """Return the names that are meant: that very one, or else all that begin so.

    Raises:
        ValueError: If something wanted means none of the names.
    """
    found: set[str] = set()
    for each in names if wanted is None else wanted:
        begun = {name for name in names if name.lower().startswith(each.lower())}
        if not begun:
            raise ValueError(f"{each!r} is none of: {', '.join(names)}")
        found |= {each} if each in names else begun
    return found


def chosen(stages: Sequence[Stage], shapes: set[str], servers: set[str]) -> list[Stage]:
    """Return the stages with these shapes and servers, and with the raw loop beside them."""

    def takes_part(entrant: Entrant) -> bool:
        return entrant.name.removesuffix(STALLED) in servers or entrant.name in servers

    found: list[Stage] = []
    for stage in stages:
        taken = tuple(shape for shape in stage.shapes if shape.name in shapes)
        if taken and any(map(takes_part, stage.entrants)):
            entrants = tuple(e for e in stage.entrants if e is RAW or takes_part(e))
            found.append(replace(stage, shapes=taken, entrants=entrants))
    return found
