"""Type variables with a default, which `typing` has from Python 3.13 on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ("T", "T_object")

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    T = TypeVar("T", default=Any)
    T_object = TypeVar("T_object", default=object)
else:  # typing_extensions takes as long to import as half of this package
    from typing import TypeVar

    T = TypeVar("T")
    T_object = TypeVar("T")  # as it is shown
