"""Rows of a task: texts and labels, where each came from, and what is done with them as a whole."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from lorabank.data.bad_rows import LeftOut


@dataclass(frozen=True)
class Rows:
    """Checked rows of one file, in its order.

    Of a labelled text, ``texts`` and ``labels`` hold what their names say. In text to text they hold prompt and
    completion: where no prompt template makes the prompt of a labelled text, the text is the whole prompt, and of
    plain text the prompt is empty.

    Attributes:
        texts: The texts or prompts; none is blank, but of plain text all are empty.
        labels: One label or completion for each text; empty where no label column was asked for.
        source: The file's name as it was given.
        columns: The columns that were read, as the file names them: text, then label.
        lines: Where each row starts in the file, from 1.
        unit: What ``lines`` counts: ``"line"``, ``"entry"`` (of a JSON list) or ``"row"``.
        free: Whether ``labels`` are free completions, not labels of a list; no share of theirs is kept in a sample.
        left_out: The bad rows that are not among these; of all rows of a file.
        bad_lines: Where these start.
        notes: How the file was read, where that is not plain; of all rows of a file.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    source: str
    columns: tuple[str, ...]
    lines: tuple[int, ...]
    unit: str = "row"
    free: bool = False
    left_out: LeftOut | None = None
    bad_lines: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def told(self) -> tuple[str, ...]:
        """What its user should know about the file."""
        return (*self.notes, *([str(self.left_out)] if self.left_out else []))

    @property
    def numbers(self) -> list[int]:
        """Which row of the file each is, from 0, bad ones counted; of all rows of a file."""
        bad = sorted(self.bad_lines)
        return [i + bisect(bad, line) for i, line in enumerate(self.lines)]

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def sha256(self) -> str:
        """Hex digest over the canonical rows: the same for equal rows of any file and format."""
        digest = hashlib.sha256()
        for index, text in enumerate(self.texts):
            row = {"label": self.labels[index], "text": text} if self.labels else {"text": text}
            digest.update(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
        return digest.hexdigest()

    def take(self, indices: Iterable[int]) -> Rows:
        """The rows at these indices, in this order."""
        kept = tuple(indices)
        return Rows(
            texts=tuple(self.texts[i] for i in kept),
            labels=tuple(self.labels[i] for i in kept) if self.labels else (),
            source=self.source,
            columns=self.columns,
            lines=tuple(self.lines[i] for i in kept),
            unit=self.unit,
            free=self.free,
        )

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """What training and evaluation rows must not share: each row's text or prompt, or all of a plain text."""
        if "" not in self.texts:
            return self.texts
        return tuple(text or label for text, label in zip(self.texts, self.labels or self.texts, strict=True))

    def where(self, index: int) -> str:
        """The place of a row in words, for example ``'data.csv' line 7``."""
        return f"{self.source!r} {self.unit} {self.lines[index]}"


def shuffled_key(text: str, seed: int) -> bytes:
    """Sort key that puts texts in a seeded random order.

    A keyed hash instead of a random generator: the order depends on the seed and the text alone, not on the other
    rows, their order or the version of a library.
    """
    return hashlib.blake2b(text.encode(), key=seed.to_bytes(8, "little"), digest_size=16).digest()


def sample_rows(rows: Rows, n: int, seed: int) -> Rows:
    """A seeded sample in which each label keeps its share; free completions have no shares.

    Args:
        rows: Rows, with or without labels.
        n: Rows wanted; all rows are returned where there are no more.
        seed: Seed of the choice, in [0, 2**64).

    Returns:
        ``min(n, len(rows))`` rows in their old order.
    """
    return rows if n >= len(rows) else rows.take(sample_indices(rows, n, seed))


def sample_indices(rows: Rows, n: int, seed: int) -> list[int]:
    """The places of the rows that `sample_rows` gives, ascending."""
    if n >= len(rows):
        return list(range(len(rows)))
    labels = rows.labels if rows.labels and not rows.free else ("",) * len(rows)
    quotas = _quotas(Counter(labels), n)
    chosen = []
    for index in sorted(range(len(rows)), key=lambda i: (shuffled_key(rows.keys[i], seed), i)):
        if quotas[labels[index]] > 0:
            quotas[labels[index]] -= 1
            chosen.append(index)
    return sorted(chosen)


def _quotas(sizes: Counter[str], n: int) -> Counter[str]:
    """Largest remainders: whole numbers that sum to ``n``, each within one of its exact share."""
    total = sizes.total()
    quotas = Counter({label: n * size // total for label, size in sizes.items()})
    by_remainder = sorted(sizes, key=lambda label: (-(n * sizes[label] % total), label))
    quotas.update(by_remainder[: n - quotas.total()])
    return quotas
