"""Ends in the middle, and errors that are demanded: what the contracts of all ports share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Cut(BaseException):
    """A process ends here, as by a signal: nothing after it runs but what the system does."""


def refused(kind: type[Exception], call: Callable[[], object]) -> None:
    """Demand that a call raises an error of a kind."""
    try:
        call()
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was expected")


def counted(call: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    """A function as it is, but that raises `Cut` in the place of the call with which ``left`` is used up."""

    def counting(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise Cut
        return call(*arguments, **options)

    return counting
