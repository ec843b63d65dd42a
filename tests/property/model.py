"""The promises of the fan-out, as a model: what one registration must see.

The real fan-out and its subscribers, in world.py, tell a `Part` of whatever happens. The
part knows what should happen next, and complains of what should not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from tornadose import Gap, Message, Released
from tornadose.history import Page
from tornadose.messages import GapReason

if TYPE_CHECKING:
    from property.world import Sub, World

BLOCK_TIMEOUT = 5.0  # on the clock of the loop
AT_ONCE = 3  # messages that a lane takes out of its backlog together, at most


@dataclass(frozen=True)
class Load:
    """A payload: the position of its message, and whether it can be encoded."""

    n: int
    poisoned: bool


def positions_of(messages: Iterable[Message[Load]]) -> list[int]:
    return [message.data.n for message in messages]


@dataclass(frozen=True)
class Refused:
    """In a story: this subscriber could not encode the message, or did not want it."""

    n: int


@dataclass(frozen=True)
class Missed:
    """In a story: a gap, and the first position that history had when it was told."""

    reason: GapReason
    first: int


@dataclass(eq=False)
class Part:
    """What one registration of a subscriber should see, and has seen.

    Attributes:
        start: Position after which it begins.
        fence: Position after which it gets what is handed on live; ``None`` while it
            reads history.
        last: Id of the last message it took.
        expected: Positions it will see, and gaps, in order.
        taken_out: How many of these left the backlog already, to be seen at once.
        arriving: Positions on offer right now.
        held: The page that follows the gap being told.
        under_way: The position in `publish` now.
        story: What it was given and told.
        ended: Why there is nothing more to see.
        doomed: Whether it had no room under ``disconnect``.
        failing: Whether a delivery to it has failed, be it that it was `cancelled`.
        left_by_itself: Whether it left in the middle of a delivery, which may go on.
        logged: Whether a loss was logged as a warning; the next may be for debugging.
    """

    world: World = field(repr=False)
    sub: Sub
    start: int
    fence: int | None
    last: str | None
    expected: deque[int | GapReason] = field(default_factory=deque[int | GapReason])
    taken_out: int = 0
    arriving: list[int] = field(default_factory=list[int])
    held: list[int] = field(default_factory=list[int])
    under_way: int | None = None
    story: list[int | Missed | Refused] = field(default_factory=list[int | Missed | Refused])
    ended: Released | Literal["left"] | None = None
    doomed: bool = False
    failing: bool = False
    cancelled: bool = False
    left_by_itself: bool = False
    logged: bool = False

    @property
    def live(self) -> bool:
        return self.ended is None

    @property
    def waiting(self) -> int:
        return sum(isinstance(n, int) for n in self.expected)

    @property
    def backlog(self) -> int:
        return self.waiting - self.taken_out

    @property
    def outstanding(self) -> int:
        counted = self.waiting + len(self.held) + len(self.arriving)
        return counted + (self.under_way is not None)

    def check(self, condition: object, complaint: str) -> None:
        """Remember a complaint, as the fan-out would take an exception for the subscriber's."""
        if not condition:
            self.world.complaints.append(f"{complaint}: {self}")

    # ---- what it should see

    def resumes(self, cursor: str) -> None:
        """Begin behind this id, if it is known, and read history first."""
        epoch, _, position = cursor.rpartition("-")
        history = self.world.history
        if epoch == history.epoch and int(position) <= history.last:
            self.start = int(position)
        self.fence = None

    def is_next(self, positions: list[int]) -> None:
        """Messages are about to be offered to its lane, by the publisher."""
        if not self.live or self.fence is None:
            return
        if self.world.exact and self.world.limits.policy == "block":
            self.check(self.backlog <= self.world.limits.backlog, "P4: no room, and there is more")
        self.arriving = [n for n in positions if n > self.fence]

    def settle(self) -> None:
        """Put what was on offer, and not taken at once, where the policy puts it."""
        arriving, self.arriving = self.arriving, []
        for n in arriving if self.world.exact else ():
            if not self.doomed:
                self.keep(n)

    def keep(self, n: int) -> None:
        limits, expected = self.world.limits, self.expected
        if limits.policy == "block" or self.backlog < limits.backlog:
            expected.append(n)
        elif limits.policy == "disconnect":
            self.doomed = True
            expected.clear()
        elif limits.policy == "drop_newest":
            self.world.dropped += 1
            if expected[-1] != "overflow":
                expected.append("overflow")
        else:
            self.world.dropped += 1
            expected.append(n)
            oldest = self.taken_out
            if expected[oldest] == "overflow":
                del expected[oldest + 1]
            else:
                expected[oldest] = "overflow"

    def reads(self, page: Page[Load]) -> None:
        """The lane has read a page of history."""
        self.check(self.live, "P2: history is read after the end")
        positions = positions_of(page.messages)
        if page.met:
            self.fence = page.position
        if page.hole is None:
            self.expected.extend(positions)
        else:
            self.expected.append(page.hole)
            self.held = positions

    def take_out(self) -> None:
        """Let the pump take from the backlog what it delivers next."""
        if self.taken_out == 0:
            at_once = AT_ONCE if self.sub.batches else 1
            self.taken_out = min(at_once, self.waiting)

    def leave_backlog(self, count: int) -> None:
        for _ in range(min(count, len(self.expected))):
            self.expected.popleft()
            self.taken_out -= 1

    def end(self, reason: Released | Literal["left"]) -> None:
        self.ended = reason
        self.expected.clear()
        self.arriving.clear()
        self.held.clear()

    # ---- what it sees

    def is_offered(self, positions: list[int], directly: bool = False) -> None:
        """A delivery begins: from the publisher directly, or from the pump."""
        if directly:
            self.logged = False  # as it has no backlog, the next loss is news again
        else:
            self.world.settle()
        self.check(self.live, f"P2: {positions} are offered after the end")
        if not self.world.exact:
            return
        if directly:
            self.check(not self.expected, f"P1: {positions} overtake what waits")
            due: list[int | GapReason] = [*self.arriving]
        else:
            self.take_out()
            self.taken_out = max(self.taken_out, len(positions))  # so many, from history
            due = list(self.expected)[: len(positions)]
        self.check(due == positions, f"P1, P2: {positions} are offered, not {due}")

    def takes(self, positions: list[int]) -> None:
        self.check(self.live or self.left_by_itself, f"P2: {positions} taken after the end")
        self.world.delivered += len(positions)
        self.story.extend(positions)
        self.last = f"{self.world.history.epoch}-{positions[-1]}"

    def refuses(self, n: int) -> None:
        self.world.poisoned += 1
        self.story.append(Refused(n))

    def is_told(self, gap: Gap) -> None:
        """A gap is told, or logged."""
        self.world.settle()
        self.world.gaps += 1
        self.check(self.live, f"P2: {gap} is told after the end")
        if gap.reason == "unknown":
            self.last = None
        self.check(gap.after == self.last, f"P2: {gap} is told, not after {self.last}")
        if gap.reason == "poisoned":
            refused = self.story and isinstance(self.story[-1], Refused)
            self.check(refused, f"P9: {gap} is told for nothing")
        elif self.world.exact:
            self.take_out()
            due = self.expected.popleft() if self.expected else None
            self.check(due == gap.reason, f"P2: {gap} is told, not {due}")
        self.story.append(Missed(gap.reason, self.world.history.first))

    def goes_on(self) -> None:
        """The gap is told: what follows it in history comes next."""
        held, self.held = self.held, []
        if self.live:
            self.expected.extend(held)

    def is_released(self, reason: Released) -> None:
        self.world.settle()
        self.check(self.live, f"P2: released ({reason}) after the end")
        self.check(self.may_be_released(reason), f"P2: released: {reason}")
        self.end(reason)

    def may_be_released(self, reason: Released) -> bool:
        policy, maybe = self.world.limits.policy, not self.world.exact
        return {
            "failed": self.failing,
            "overflow": policy == "disconnect" and (maybe or self.doomed),
            "timeout": policy == "block" and (maybe or self.is_overdue()),
            "closed": maybe or self.outstanding == len(self.expected) == 0,
        }.get(reason, False)

    def is_overdue(self) -> bool:
        sub, now = self.sub, self.world.loop.now
        if now - sub.since < BLOCK_TIMEOUT:
            return False
        if sub.until == now:  # it goes on in the very turn: one or the other may be first
            return True
        return sub.stalled and self.waiting > self.world.limits.backlog

    def fails(self) -> None:
        """A delivery ends with an error. What was offered directly is abandoned with it."""
        if self.world.is_publishing():
            self.arriving.clear()
        self.world.settle()
        self.failing = True
