"""Training and evaluation rows: one set aside from the other, and none in both."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from lorabank.core.errors import DataError
from lorabank.data.bad_rows import UNCHANGED
from lorabank.data.rows import Rows, shuffled_key


def split_rows(rows: Rows, fraction: float, seed: int) -> tuple[Rows, Rows, int]:
    """Set a part of the rows aside for evaluation; rows with one text or prompt stay together.

    Args:
        rows: Rows with labels or completions.
        fraction: Part that is set aside, in (0, 1): of each label's distinct texts, at least one where the label has
            two; of free completions of the distinct prompts, at least one.
        seed: Seed of the choice, in [0, 2**64).

    Returns:
        Training rows (every label is among them), evaluation rows, and how many repetitions of an evaluation row
        were dropped.

    Raises:
        DataError: No label has two distinct texts; of free completions, all prompts are the same.
    """
    by_key: dict[str, list[int]] = defaultdict(list)
    for index, key in enumerate(rows.keys):
        by_key[key].append(index)
    if rows.free:
        aside = set(_chosen(list(by_key), fraction, seed))
        problem = "all prompts are the same" if "" not in rows.texts else "all texts are the same"
    else:
        aside = _stratified(rows, by_key, fraction, seed)
        problem = "no label with two different texts"
    if not aside:
        raise DataError(
            f"{rows.source!r}: too few rows to set some aside for evaluation ({len(rows)} rows, {problem})",
            unchanged=UNCHANGED,
            hint="give evaluation rows with --eval-data FILE",
        )
    train = [index for index, key in enumerate(rows.keys) if key not in aside]
    held = [index for index, key in enumerate(rows.keys) if key in aside]
    once = list({(rows.texts[index], rows.labels[index]): index for index in reversed(held)}.values())
    return rows.take(train), rows.take(sorted(once)), len(held) - len(once)


def hold_out(rows: Rows, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Hold a part of the training rows out of the training, as `split_rows` sets rows aside.

    Returns:
        The rows that are trained on, and those that are measured meanwhile, each once.

    Raises:
        DataError: They are too few.
    """
    try:
        train, held, _ = split_rows(rows, fraction, seed)
    except DataError as error:
        raise DataError(
            f"{rows.source!r}: too few training rows to hold some out ({len(rows)} rows beside those for evaluation)",
            unchanged=UNCHANGED,
            hint="leave out --eval-every and --early-stopping",
        ) from error
    return train, held


def _chosen(keys: Sequence[str], fraction: float, seed: int) -> list[str]:
    """A seeded choice that leaves at least one."""
    shuffled = sorted(keys, key=lambda key: shuffled_key(key, seed))
    return shuffled[: min(max(1, round(fraction * len(keys))), len(keys) - 1)]


def _stratified(rows: Rows, by_key: Mapping[str, list[int]], fraction: float, seed: int) -> set[str]:
    by_label: dict[str, list[str]] = defaultdict(list)
    for key, indices in by_key.items():
        by_label[rows.labels[indices[0]]].append(key)
    aside = {key for keys in by_label.values() for key in _chosen(keys, fraction, seed)}
    _return_lost_labels(rows, by_key, aside)
    return aside


def _return_lost_labels(rows: Rows, by_key: Mapping[str, list[int]], aside: set[str]) -> None:
    """Take texts back from ``aside`` until every label is among the training rows.

    Needed only where one text has several labels: it was set aside under the first, and took the last row of
    another label with it.
    """
    trained = {label for key, label in zip(rows.keys, rows.labels, strict=True) if key not in aside}
    for key, indices in by_key.items():
        own = {rows.labels[index] for index in indices}
        if key in aside and not own <= trained:
            aside.discard(key)
            trained |= own


def check_overlap(train: Rows, evaluation: Rows) -> None:
    """Refuse evaluation rows whose text or prompt is that of a training row.

    Raises:
        DataError: Naming how many there are and the lines of the first pair.
    """
    first = {key: index for index, key in reversed(list(enumerate(train.keys)))}
    shared = [index for index, key in enumerate(evaluation.keys) if key in first]
    if shared:
        twin = first[evaluation.keys[shared[0]]]
        what = "prompt" if train.free and "" not in train.texts else "text"
        count = f"{len(shared)} evaluation rows repeat" if len(shared) > 1 else "an evaluation row repeats"
        raise DataError(
            f"{count} a training {what}, the first in {evaluation.where(shared[0])}, as {train.where(twin)}",
            unchanged=UNCHANGED,
            hint="remove these rows from one file, or leave out --eval-data to have a part of --data set aside",
        )
