"""A run: the stages of the plan, one after the other, with interleaved repetitions."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TypeAlias

from .process import BenchmarkError
from .results import Results, Sample
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
                _measure(sessions, shape, results, progress)


def _open(
    stage: Stage, redis: str, results: Results, progress: Progress, stack: ExitStack
) -> list[Session]:
    """Start the servers of the stage, and connect their clients."""
    sessions: list[Session] = []
    for entrant in stage.entrants:
        progress(f"connecting {stage.clients} clients", entrant.name)
        try:
            session = stack.enter_context(Session(entrant, stage, redis))
        except (BenchmarkError, OSError) as error:
            _skip(results, progress, f"{entrant.name}, {stage.clients} clients: {error}")
        else:
            sessions.append(session)
    return sessions


def _measure(sessions: list[Session], shape: Shape, results: Results, progress: Progress) -> None:
    """Let each server have the shape of load in turn, again and again."""
    for repetition in range(1, shape.repetitions + 1):
        if shape.do == "idle":
            progress(shape.name, f"{repetition} of {shape.repetitions}")
            _idle(sessions, shape, results)
            continue
        for session in tuple(sessions):
            progress(shape.name, f"{session.name}, {repetition} of {shape.repetitions}")
            try:
                results.add(shape.name, session.name, session.measure(shape))
            except (BenchmarkError, OSError) as error:
                _skip(results, progress, f"{shape.name}: {error}")
                sessions.remove(session)


def _idle(sessions: list[Session], shape: Shape, results: Results) -> None:
    """Let all servers be idle at the same time; their CPU time is their own.

    The first heartbeats are due as long after the connection as they are apart, so that
    the first window begins then.
    """
    due = max((session.connected_at for session in sessions), default=0.0) + shape.messages
    time.sleep(max(0.0, due - time.monotonic()))
    before = [session.cpu() for session in sessions]
    start = time.monotonic()
    time.sleep(shape.messages)
    wall = time.monotonic() - start
    for session, used in zip(sessions, before, strict=True):
        cpu = session.cpu() - used
        sample = Sample(cpu=cpu, wall=wall, count=shape.messages, memory=session.memory)
        results.add(shape.name, session.name, sample)


def _skip(results: Results, progress: Progress, why: str) -> None:
    results.skipped.append(why)
    progress(f"skipped {why}", "")


def _raise_limit() -> int:
    """Allow this process, and those it starts, as many open files as possible."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard
