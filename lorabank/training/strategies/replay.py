"""Training on earlier tasks' rows again.

    replay   one adapter continues training on the new rows and a reservoir of earlier ones: experience replay
             (Rolnick et al. 2019, arXiv 1811.11682; reservoir sampling as in Chaudhry et al. 2019, arXiv 1902.10486).
             Here an epoch passes the new rows and the whole reservoir once; ``replay_rows`` is the reservoir's size
    joint    a new adapter on the rows of all tasks at once: multi-task learning, the bound of a single model

Both need rows that the bank keeps: each task stores its share (`lorabank.training.reservoir`) when it is added with
the strategy. A row of an earlier task is asked in that task's form; a classifier judges it by that task's head, which
stays as it was.
"""

from __future__ import annotations

from dataclasses import dataclass

from lorabank.core.settings import setting
from lorabank.training.strategies.base import Strategy


@dataclass(frozen=True)
class Rehearsal(Strategy):
    """A strategy with a reservoir of rows of earlier tasks."""

    replay_rows: int = setting(200, "Rows of earlier tasks that are trained on again.", ge=1)

    def replayed(self, seen: int) -> int:
        """The reservoir, or all rows while there are fewer."""
        return min(seen, self.replay_rows)

    def kept(self, rows: int) -> int:
        """The share of a reservoir that may become the task's own alone."""
        return self.replay_rows


REPLAY = Rehearsal(
    "replay",
    "continued",
    replay="reservoir",
    about="A single adapter is trained on every task in turn, and again on a reservoir of earlier rows.",
    paper="experience replay, arXiv 1811.11682; reservoir, arXiv 1902.10486",
)
JOINT = Strategy(
    "joint",
    "off",
    replay="all",
    about="A new adapter learns the rows of all tasks at once: multi-task learning, the bound of a single model.",
)
