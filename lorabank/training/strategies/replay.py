"""Training on earlier tasks' rows again.

    replay   one adapter goes on training on the new rows and a reservoir of earlier ones: experience replay (Rolnick
             et al. 2019, arXiv 1811.11682; reservoir sampling as in Chaudhry et al. 2019, arXiv 1902.10486). Here an
             epoch passes the new rows and the whole reservoir once; ``replay_rows`` is the reservoir's size
    joint    a new adapter on the rows of all tasks at once: multi-task learning, the bound of a single model

Both need rows that the bank keeps: each task stores its share (`lorabank.training.reservoir`) when it is added with
the strategy. A row of an earlier task is asked in that task's form; a classifier judges it by that task's head, which
stays as it was.
"""

from __future__ import annotations

from lorabank.training.strategies.base import Strategy

REPLAY = Strategy("replay", "continued", replay="reservoir")
JOINT = Strategy("joint", "off", replay="all")
