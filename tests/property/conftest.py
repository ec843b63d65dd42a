"""Hypothesis profiles: ``HYPOTHESIS_PROFILE=thorough`` tries ten times as much."""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import inf

import pytest
from hypothesis import HealthCheck, settings

from tornadose import messages

COMMON = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

settings.register_profile("default", COMMON, max_examples=50)
settings.register_profile("thorough", COMMON, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True, scope="module")
def unhurried() -> Iterator[None]:
    """Let no pause of the machine leave a part of a batch for later."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(messages, "SLOW", inf)
        yield
