"""The Python examples of the documentation and the README are executed.

The fenced blocks of one page share a namespace, and run in their order. A block behind
``<!-- not executed: reason -->`` is compiled only; ``<!-- logs: text -->`` expects one
record with this text.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import re
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Logged

ROOT = Path(__file__).parents[2]
DEADLINE = 20.0  # seconds for a page; generous, as it is only waited for by one that hangs
BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>not executed): (?P<reason>.+?) -->\n+)?"
    r"^```python[^\n]*\n(?P<source>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
LOGS = re.compile(r"^<!-- logs: (.+?) -->$", re.MULTILINE)


@dataclass(frozen=True)
class Example:
    """One fenced block.

    Args:
        code: Compiled so that its tracebacks show lines of the page.
        executed: Whether it may run here.
        asserts: Whether it checks something.
    """

    code: CodeType
    executed: bool
    asserts: bool


def examples(text: str, page: str) -> list[Example]:
    """Find the examples in the text of a page."""
    found: list[Example] = []
    for block in BLOCK.finditer(text):
        source = "\n" * text.count("\n", 0, block.start("source")) + block["source"]
        tree = ast.parse(source, page)
        code = compile(tree, page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        asserts = any(isinstance(node, ast.Assert) for node in ast.walk(tree))
        found.append(Example(code, block["mark"] is None, asserts))
    return found


async def execute(found: list[Example]) -> None:
    """Run what may be run, in one namespace, as ``python -m asyncio`` would."""
    namespace: dict[str, object] = {"__name__": "example", "__builtins__": builtins}
    async with asyncio.timeout(DEADLINE):
        for example in found:
            if example.executed:
                outcome: object = FunctionType(example.code, namespace)()
                if asyncio.iscoroutine(outcome):
                    await outcome


def pages() -> dict[str, str]:
    """Read the pages that have examples."""
    paths = [*ROOT.glob("README.md"), *sorted((ROOT / "docs").rglob("*.md"))]
    texts = {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in paths}
    return {page: text for page, text in texts.items() if BLOCK.search(text)}


PAGES = pages()


@pytest.mark.parametrize("page", PAGES)
async def test_the_examples_of_a_page_are_true(page: str, logged: Logged) -> None:
    await execute(examples(PAGES[page], str(ROOT / page)))
    for expected in LOGS.findall(PAGES[page]):
        logged.take(expected)


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_check_something(page: str) -> None:
    executed = [example for example in examples(PAGES[page], page) if example.executed]
    assert not executed or any(example.asserts for example in executed)


def test_most_pages_have_examples() -> None:
    assert len(PAGES) >= 8


async def test_a_wrong_example_fails_at_its_line() -> None:
    page = "# Page\n\n```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n"
    with pytest.raises(AssertionError) as failure:
        await execute(examples(page, "page.md"))
    assert failure.traceback[-1].lineno == 7  # counted from 0


async def test_a_marked_example_is_compiled_only() -> None:
    marked = "<!-- not executed: runs for ever -->\n```python\n{}\n```\n"
    await execute(examples(marked.format("raise SystemExit"), "page.md"))
    with pytest.raises(SyntaxError):
        examples(marked.format("while"), "page.md")
