from __future__ import annotations

import asyncio

import pytest

from tornadose.checks import check_seconds, check_size, checked_awaitable


@pytest.mark.parametrize("value", [1.5, "8", None, True])
def test_a_size_of_another_type_is_refused_by_name_and_value(value: object) -> None:
    with pytest.raises(TypeError, match=f"inbox: .*{value!r}"):
        check_size("inbox", value, at_least=1)


@pytest.mark.parametrize("value", [0, -3])
def test_a_size_below_the_least_is_refused_by_name_and_value(value: int) -> None:
    with pytest.raises(ValueError, match=f"inbox: {value} is less than 1"):
        check_size("inbox", value, at_least=1)


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 1e10, 10**400])
def test_seconds_out_of_range_are_refused_by_name_and_value(value: float) -> None:
    with pytest.raises(ValueError, match=f"retry: {value!r} is"):
        check_seconds("retry", value)


@pytest.mark.parametrize("value", ["1", None, True, b"1"])
def test_seconds_of_another_type_are_refused_by_name_and_value(value: object) -> None:
    with pytest.raises(TypeError, match=f"retry: .*{value!r}"):
        check_seconds("retry", value)


def test_none_and_zero_are_taken_where_they_mean_something() -> None:
    check_seconds("heartbeat", None, or_none=True)
    check_seconds("timeout", 0, or_zero=True)
    with pytest.raises(ValueError, match="timeout"):
        check_seconds("timeout", -1, or_zero=True)


async def test_what_can_be_awaited_is_given_back() -> None:
    future = asyncio.get_running_loop().create_future()
    assert checked_awaitable("publish", future) is future
    coroutine = asyncio.sleep(0)
    assert checked_awaitable("publish", coroutine) is coroutine
    await coroutine


@pytest.mark.parametrize("value", [None, True, "text"])
def test_what_cannot_be_awaited_is_refused_with_what_the_hook_has_to_be(value: object) -> None:
    with pytest.raises(TypeError, match=f"publish_gap returned {value!r}: .*`async def`"):
        checked_awaitable("publish_gap", value)
