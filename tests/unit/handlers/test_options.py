"""Options are refused where they are given, by name and value."""

from __future__ import annotations

import pytest

from tornadose.handlers.base import Options


async def makes_no_text(payload: int) -> str:
    return str(payload)


def test_an_encoder_that_is_a_coroutine_function_is_refused() -> None:
    with pytest.raises(TypeError, match=r"encode: .*makes_no_text.* is a coroutine function"):
        Options(encode=makes_no_text)  # type: ignore[arg-type]


@pytest.mark.parametrize("seconds", [1e-9, 0.009])
def test_a_heartbeat_that_would_never_rest_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match=f"heartbeat: {seconds}"):
        Options(heartbeat=seconds)
