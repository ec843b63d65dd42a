"""A run: the stages of the plan, one after the other, with interleaved repetitions."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeAlias

from .process import BenchmarkError, NotInstalledError
from .results import Delay, Results, Sample
from .session import Session
from .shapes import Shape, Stage

__all__ = ("run",)

Progress: TypeAlias = Callable[[str, str], None]

SPARE = 200  # file descriptors besides those of the connections


def run(stages: Sequence[Stage], redis: str, results: Results, progress: Progress) -> None:
    """Measure what the stages say, and go on with the next one where one fails."""
    limit = _raise_limit()
    for stage in stages:
        if stage.clients + SPARE > limit:
            _skip(results, progress, f"{stage.clients} clients: `ulimit -n` allows {limit} files")
            continue
        with ExitStack() as stack:
            sessions = _open(stage, redis, results, progress, stack)
            for shape in stage.shapes:
                measure = _idle if shape.do == "idle" else _measure
                measure(sessions, shape, results, progress)


def _open(
    stage: Stage, redis: str, results: Results, progress: Progress, stack: ExitStack
) -> list[Session]:
    """Start the servers of the stage, and connect their clients."""
    sessions: list[Session] = []
    for entrant in stage.entrants:
        progress(f"connecting {stage.clients} clients", entrant.name)
        try:
            session = stack.enter_context(Session(entrant, stage, redis))
        except NotInstalledError as error:
            _skip(results, progress, f"{entrant.name}, {stage.clients} clients: {error}")
        except (BenchmarkError, OSError) as error:
            _fail(results, progress, f"{entrant.name}, {stage.clients} clients: {error}")
        else:
            sessions.append(session)
    return sessions


def _measure(sessions: list[Session], shape: Shape, results: Results, progress: Progress) -> None:
    """Let each server have the shape of load in turn, again and again.

    Who begins changes from one repetition to the next. The first one only warms up.
    """
    latencies: dict[str, list[int]] = {}
    for repetition in range(shape.repetitions + 1):
        first = (repetition - 1) % max(1, len(sessions))
        for session in sessions[first:] + sessions[:first]:
            progress(shape.name, f"{session.name}, {repetition} of {shape.repetitions}")
            with _alive(session, sessions, shape, results, progress):
                sample, times = session.measure(shape)
                if repetition:
                    results.add(shape.name, session.name, sample)
                    latencies.setdefault(session.name, []).extend(times)
    delays = {name: Delay.of(times) for name, times in latencies.items() if times}
    results.delays[shape.name] = delays


def _idle(sessions: list[Session], shape: Shape, results: Results, progress: Progress) -> None:
    """Let all servers be idle at the same time; their CPU time is their own.

    The first heartbeats are due as long after the connection as they are apart, so that
    the first window begins then.
    """
    beating = [session for session in sessions if session.entrant.beats]
    due = max((session.connected_at for session in beating), default=0.0) + shape.messages
    progress(shape.name, "until the first heartbeats are due")
    time.sleep(max(0.0, due - time.monotonic()))
    for repetition in range(1, shape.repetitions + 1):
        progress(shape.name, f"{repetition} of {shape.repetitions}")
        for session in beating:
            session.heard()
        before = [session.cpu() for session in beating]
        start = time.monotonic()
        time.sleep(shape.messages)
        wall = time.monotonic() - start
        used = [session.cpu() - cpu for session, cpu in zip(beating, before, strict=True)]
        for session, cpu in zip(tuple(beating), used, strict=True):
            with _alive(session, beating, shape, results, progress):
                session.check_heartbeats()
                sample = Sample(cpu=cpu, wall=wall, count=shape.messages, memory=session.memory)
                results.add(shape.name, session.name, sample)


@contextmanager
def _alive(
    session: Session, sessions: list[Session], shape: Shape, results: Results, progress: Progress
) -> Generator[None, None, None]:
    """Go on without the session, and end it, where it fails."""
    try:
        yield
    except (BenchmarkError, OSError) as error:
        _fail(results, progress, f"{shape.name}: {error}")
        sessions.remove(session)
        session.close()


def _fail(results: Results, progress: Progress, why: str) -> None:
    results.failed.append(why)
    progress(f"FAILED {why}", "")


def _skip(results: Results, progress: Progress, why: str) -> None:
    results.skipped.append(why)
    progress(f"skipped {why}", "")


def _raise_limit() -> int:
    """Allow this process, and those it starts, as many open files as possible."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard
