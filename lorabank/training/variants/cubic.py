"""A window of steps in which something becomes less, along a cubic curve (Zhu and Gupta, arXiv 1710.01878)."""

from __future__ import annotations

from typing import NamedTuple


class Window(NamedTuple):
    """The steps after ``begin`` up to ``end``."""

    begin: int
    end: int

    @classmethod
    def of(cls, total: int, first: float, last: float) -> Window:
        """What is left of ``total`` steps between a first and a last share of them: one step at least."""
        begin = min(int(first * total), max(total - 1, 0))
        return cls(begin, max(begin + 1, total - int(last * total)))

    def left(self, number: int) -> float:
        """``(1 - (number - begin) / (end - begin))^3``: 1 until the window begins, 0 from its end on."""
        done = (number - self.begin) / (self.end - self.begin)
        return float((1 - min(1.0, max(0.0, done))) ** 3)
