"""Runs mypy and pyright over the cases beside this file."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def marked(path: Path) -> set[int]:
    lines = path.read_text().splitlines()
    return {number for number, line in enumerate(lines, 1) if line.endswith("# error")}


def run(*command: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)], capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def mypy(path: Path) -> dict[int, str]:
    output = run("mypy", "--strict", "--no-error-summary", "--hide-error-context", path)
    found = re.findall(r"^[^:\n]+:(\d+): error: (.*)$", output, re.MULTILINE)
    return {int(line): text for line, text in found}


def pyright(path: Path) -> dict[int, str]:
    output = run("pyright", "--project", HERE, "--pythonpath", sys.executable, "--outputjson")
    report: dict[str, list[dict[str, object]]] = json.loads(output)
    errors: dict[int, str] = {}
    for item in report["generalDiagnostics"]:
        match item:
            case {"file": str(file), "message": str(text), "range": {"start": {"line": int(n)}}}:
                if Path(file) == path:
                    errors[n + 1] = text
            case _:
                raise AssertionError(item)
    return errors


@pytest.mark.parametrize("checker", [mypy, pyright])
@pytest.mark.parametrize("name", ["positive.py", "negative.py"])
def test_type_checkers_report_errors_on_exactly_the_marked_lines(
    checker: type[object], name: str
) -> None:
    path = HERE / name
    found = {"mypy": mypy, "pyright": pyright}[checker.__name__](path)
    assert (name == "negative.py") == bool(marked(path))
    assert set(found) == marked(path), found
