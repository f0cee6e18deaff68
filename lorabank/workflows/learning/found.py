"""What a stream is found to hold: its tasks, each when it is in the bank, and what became of all rows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FoundTask:
    """A task that a stream was found to hold.

    Attributes:
        position: Its number in the bank.
        first_row: Where it begins in the stream, from 1.
        last_row: Where it ends.
        new_labels: Labels that no task had before.
        plateau: Whether the loss was flat; else the stream ended.
        loss: Mean loss of its last batch.
        accuracy: On the rows that were held out, in the state as trained.
        low: Lower end of its 95 % interval.
        high: Upper end.
        eval_rows: How many rows were held out.
    """

    name: str
    position: int
    first_row: int
    last_row: int
    new_labels: tuple[str, ...]
    plateau: bool
    loss: float
    accuracy: float
    low: float
    high: float
    eval_rows: int


@dataclass(frozen=True)
class StreamResult:
    """What became of a stream.

    Attributes:
        bank: The bank's folder.
        bank_created: Whether the bank was made.
        tasks: The tasks that were found.
        rows: Rows that were read, without those that a resumed stream passed.
        left_over: Rows at the end that are too few for a task.
    """

    bank: str
    bank_created: bool
    tasks: tuple[FoundTask, ...]
    rows: int
    left_over: int
