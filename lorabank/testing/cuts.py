"""Interruptions and expected errors, shared by the contracts of all ports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Cut(BaseException):
    """The process ends here, as if killed by a signal: nothing of it runs afterwards."""


def refused(kind: type[Exception], call: Callable[[], object]) -> None:
    """Check that a call raises an error of the given kind."""
    try:
        call()
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was expected")


def counted(call: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    """The function, except that it raises `Cut` instead of the call with which ``left`` is used up."""

    def counting(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise Cut
        return call(*arguments, **options)

    return counting
