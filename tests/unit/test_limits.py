"""What a store keeps for those who are behind."""

from __future__ import annotations

import pytest

from tornadose.limits import Limits


@pytest.mark.parametrize(
    ("limits", "error", "text"),
    [
        ({"backlog": 0}, ValueError, "backlog: 0"),
        ({"backlog": 1.5}, TypeError, "backlog: .*1.5"),
        ({"policy": "drop"}, ValueError, "policy: 'drop'"),
        ({"block_timeout": 0}, ValueError, "block_timeout: 0"),
        ({"block_timeout": "5"}, TypeError, "block_timeout: .*'5'"),
        ({"max_subscribers": -1}, ValueError, "max_subscribers: -1"),
        ({"max_subscribers": "9"}, TypeError, "max_subscribers: .*'9'"),
    ],
)
def test_limits_out_of_range_are_refused(
    limits: dict[str, object], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        Limits(**limits)  # type: ignore[arg-type]  # wrong on purpose
