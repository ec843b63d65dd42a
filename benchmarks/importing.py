"""What `import tornadose` costs a program that has imported Tornado."""

from __future__ import annotations

import os
import subprocess
import sys
from statistics import median
from tempfile import TemporaryDirectory

from .process import SERVER_CORE, pin

__all__ = ("milliseconds",)

PROGRAM = """
import time
import tornado.web
start = time.perf_counter()
import tornadose
print((time.perf_counter() - start) * 1000)
"""


def milliseconds(repetitions: int = 11) -> float:
    """Return the median of some processes; the first one, which compiles, is left out."""
    with TemporaryDirectory() as folder:
        return median([_once(folder) for _ in range(repetitions + 1)][1:])


def _once(folder: str) -> float:
    """Import in a process of its own, with what was compiled into this folder."""
    environment = os.environ | {"PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        pin(process.pid, SERVER_CORE)
        output, _ = process.communicate()
    return float(output)
