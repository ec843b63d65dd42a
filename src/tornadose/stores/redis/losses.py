"""What Redis has lost although it had it, as after a crash, and does not know of."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from itertools import islice, pairwise, takewhile
from typing import TYPE_CHECKING, NamedTuple

from ...history import Positions
from ...messages import GapReason
from .entries import position_of

if TYPE_CHECKING:
    from .pages import StreamPage

__all__ = ("Loss", "Losses")

UNREAD = 1 << 14  # entries of which it is seen whether they come: the newest, which a crash loses
KNOWN = 256  # losses that are remembered


class Loss(NamedTuple):
    """A statement that nothing is left of what stood between two positions.

    Args:
        after: Position behind which it stood.
        until: Position of the last that is lost.
        reason: What to call it.
    """

    after: int
    until: int
    reason: GapReason = "restarted"

    def is_in(self, other: Loss) -> bool:
        return other.after <= self.after and self.until <= other.until

    def before(self, positions: Positions) -> Loss:
        """Return what is left of it if there are entries again at these positions."""
        at = bisect_right(positions, self.after)
        if at == len(positions) or positions[at] > self.until:
            return self
        return self._replace(until=max(self.after + 1, positions[at] - 1))


class Losses:
    """The losses of a stream, as far as this process can tell.

    It knows what it has added itself, and what it has read before.
    """

    def __init__(self) -> None:
        self._unread = deque[tuple[int, bytes]]()  # in order
        self._known: deque[Loss] = deque(maxlen=KNOWN)

    def expect(self, position: int, cursor: bytes) -> None:
        """Note that there is an entry which the live messages have yet to come to."""
        at = bisect_left(self._unread, (position, cursor))
        if at == len(self._unread) or self._unread[at][0] != position:
            self._unread.insert(at, (position, cursor))
        if len(self._unread) > UNREAD:
            self._unread.popleft()

    def expect_no_more(self, until: int) -> None:
        """Note that what stood up to this position was read, or is given up."""
        while self._unread and self._unread[0][0] <= until:
            self._unread.popleft()

    def settle(self, page: StreamPage[object]) -> None:
        """Note that the live messages have come to the end of a page."""
        self.expect_no_more(page.position)
        self._renew(page.positions(0, len(page.cursors)))

    def _renew(self, positions: Positions) -> None:
        """Take what there is at these positions out of older losses, whose ids it was given."""
        if positions and any(loss.until >= positions[0] for loss in self._known):
            self._known = deque((loss.before(positions) for loss in self._known), KNOWN)

    def missing(self, page: StreamPage[object], begin: int = 0) -> Sequence[int]:
        """Return where on a page, which begins there, something that is expected is missing."""
        if not self._unread:
            return ()
        there = set(page.cursors)
        behind = islice(self._unread, bisect_right(self._unread, (begin, b"~")), None)
        due = takewhile(lambda own: own[0] <= page.position, behind)
        return [position for position, cursor in due if cursor not in there]

    def find(self, page: StreamPage[object], begin: int = 0) -> Sequence[Loss]:
        """Return, and note, what is missing on a page, which begins there."""
        entries = [position_of(cursor) for cursor in page.cursors]
        self._renew([begin, *entries] if begin and page.there else entries)
        missing, deleted, losses = self.missing(page, begin), page.deleted or 0, list[Loss]()
        if not missing:
            return ()
        edges = {0, *(bisect_left(missing, entry) for entry in entries), len(missing)}
        for start, end in pairwise(sorted(edges)):  # between two entries
            until = missing[end - 1]
            reason: GapReason = "expired" if until <= deleted else "restarted"
            losses.append(Loss(missing[start] - 1, until, reason))
            self.note(losses[-1])
        return losses

    def note(self, loss: Loss) -> None:
        """Remember a loss, unless it is known, in place of those that are part of it."""
        if not any(loss.is_in(known) for known in self._known):
            others = (known for known in self._known if not known.is_in(loss))
            self._known = deque([*others, loss], KNOWN)

    def unspoken(self, spoken: int, until: int) -> Sequence[Loss]:
        """Return in order what was lost in front of a position, but for what is spoken of."""
        return sorted(k for k in self._known if k.until > spoken and k.after < until)

    def beginning(self) -> int:
        """Return up to where who begins with what is there has nothing to hear of."""
        return max([0, *(k.until for k in self._known if k.after < 0)])
