"""Hypothesis profiles: ``HYPOTHESIS_PROFILE=thorough`` tries ten times as much."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

COMMON = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

settings.register_profile("default", COMMON, max_examples=50)
settings.register_profile("thorough", COMMON, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
