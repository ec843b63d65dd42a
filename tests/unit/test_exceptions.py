from __future__ import annotations

import inspect
import pickle

from tornadose import Gap, GapError, ReleasedError, TornadoseError, exceptions


def test_every_exception_stands_in_the_tree_of_the_module_docstring() -> None:
    tree = inspect.getdoc(exceptions) or ""
    for name in exceptions.__all__:
        assert f"{name} " in tree or f"{name}\n" in tree
        assert issubclass(getattr(exceptions, name), TornadoseError)


def test_errors_say_what_they_know_and_survive_pickling() -> None:
    gap = GapError(Gap("expired", "a-1"))
    assert str(gap) == "messages after 'a-1' were missed: expired"
    assert str(GapError(Gap("unknown"))) == "messages were missed: unknown"
    assert pickle.loads(pickle.dumps(gap)).gap == Gap("expired", "a-1")  # noqa: S301
    released = ReleasedError("overflow")
    assert str(released) == "the store released this subscription: overflow"
    assert pickle.loads(pickle.dumps(released)).reason == "overflow"  # noqa: S301
