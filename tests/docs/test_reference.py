"""The reference and the migration guide leave no name out."""

from __future__ import annotations

from pathlib import Path

import pytest

import tornadose

DOCS = Path(__file__).parents[2] / "docs"
REFERENCE = "".join(page.read_text("utf-8") for page in (DOCS / "reference").glob("*.md"))
MIGRATION = (DOCS / "how-to" / "migrate-from-0.5.md").read_text("utf-8")

OLD_NAMES = {  # what the documentation of 0.5 names, by class
    "BaseStore": ("__init__", "initialize", "submit", "publish", "register", "deregister"),
    "DataStore": ("data", "submit", "ready"),
    "QueueStore": ("submit",),
    "RedisStore": ("channel", "ConnectionError", "StrictRedis", "concurrent.futures"),
    "BaseHandler": ("initialize", "publish", "submit", "store"),
    "EventSource": ("publish",),
    "WebSocketSubscriber": ("open", "publish", "data"),
}


@pytest.mark.parametrize("name", tornadose.__all__)
def test_the_reference_has_every_public_name_once(name: str) -> None:
    entries = [line for line in REFERENCE.splitlines() if line.startswith(".. auto")]
    assert [e.partition(":: ")[2] for e in entries].count(f"tornadose.{name}") == 1


@pytest.mark.parametrize("name", OLD_NAMES)
def test_the_migration_guide_goes_through_every_old_name(name: str) -> None:
    section = MIGRATION.partition(f"\n### `{name}`\n")[2].partition("\n##")[0]
    assert [old for old in OLD_NAMES[name] if old not in section] == []
