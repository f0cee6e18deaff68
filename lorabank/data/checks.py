"""What a look at all rows of a task finds: how the labels are spread, and what is likely a mistake."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lorabank.data.rows import Rows

FEW = 10
"""Training rows of a label below which it is told."""

UNBALANCED = 10
"""Times as many rows as the rarest label that the most frequent one may have untold."""

_NAMED = 5
_SHOWN = 60


@dataclass(frozen=True)
class Repetitions:
    """Rows with the text of another, in the files as they are.

    Attributes:
        rows: Rows that repeat an earlier one, label or completion and all.
        conflicts: Texts that stand with different labels.
        first: The first of these, each with its labels and their lines.
    """

    rows: int = 0
    conflicts: int = 0
    first: tuple[str, ...] = ()


def find_repetitions(files: Iterable[Rows]) -> Repetitions:
    """The repetitions in each file; completions may differ, since they are not labels."""
    rows = conflicts = 0
    first: list[str] = []
    for read in files:
        rows += len(read) - len({*zip(read.texts, read.labels, strict=True)})
        if read.free:
            continue
        places: dict[str, dict[str, int]] = defaultdict(dict)
        for index, (key, label) in enumerate(zip(read.keys, read.labels, strict=True)):
            places[key].setdefault(label, index)
        for key, found in places.items():
            if len(found) > 1:
                conflicts += 1
                if len(first) < _NAMED:
                    said = ", ".join(f"{label!r} in {read.unit} {read.lines[i]}" for label, i in found.items())
                    first.append(f"{_short(key)} is {said}")
    return Repetitions(rows, conflicts, tuple(first))


def label_counts(labels: Sequence[str], train: Rows, evaluation: Rows) -> dict[str, dict[str, int]]:
    """Rows of each label, the most frequent first: ``{"spam": {"train": 40, "eval": 10}}``."""
    counts = {"train": Counter(train.labels), "eval": Counter(evaluation.labels)}
    order = sorted(labels, key=lambda label: -counts["train"][label] - counts["eval"][label])
    return {label: {split: count[label] for split, count in counts.items()} for label in order}


def warnings(counts: dict[str, dict[str, int]], found: Repetitions) -> tuple[str, ...]:
    """What a user should look at before the numbers are believed; nothing of free completions but repetitions."""
    said = []
    unmeasured = [label for label, rows in counts.items() if not rows["eval"]]
    if unmeasured:
        they = "it is" if len(unmeasured) == 1 else "they are"
        said.append(f"no evaluation row has {_labels(unmeasured)}, so {they} trained but not measured")
    if found.conflicts:
        count = "a text is repeated" if found.conflicts == 1 else f"{found.conflicts:,} texts are repeated"
        said.append(f"{count} with different labels: {_listed(found.first, found.conflicts, '; ')}")
    if found.rows:
        said.append("1 row repeats another one" if found.rows == 1 else f"{found.rows:,} rows repeat another one")
    trained = {label: rows["train"] for label, rows in counts.items()}
    if trained:
        most, least = max(trained, key=lambda label: trained[label]), min(trained, key=lambda label: trained[label])
        if trained[most] > UNBALANCED * trained[least]:
            said.append(
                f"the labels are unbalanced: {trained[most]:,} training rows are {_short(most)}, {trained[least]:,} "
                f"{_short(least)}; accuracy says little about the rare ones"
            )
        few = [f"{_short(label)} ({rows})" for label, rows in trained.items() if rows < FEW]
        if few:
            said.append(f"fewer than {FEW} training rows are {_listed(few[:_NAMED], len(few))}")
    return tuple(said)


def _labels(labels: Sequence[str]) -> str:
    return ("the label " if len(labels) == 1 else "the labels ") + _listed(
        [_short(label) for label in labels[:_NAMED]], len(labels)
    )


def _listed(shown: Sequence[str], count: int, between: str = ", ") -> str:
    return between.join(shown) + (f" and {count - len(shown):,} more" if count > len(shown) else "")


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}...")
