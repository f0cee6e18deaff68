"""docs/bases.md: what came of every class, as a page that can be read back."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

import transformers

from tests.architectures.contract import Verdict
from tests.architectures.zoo import Pair

PAGE = Path(__file__).parents[2] / "docs" / "bases.md"
TASK_TYPES = {
    "SEQ_CLS": "Sequence classification",
    "CAUSAL_LM": "Causal language models",
    "SEQ_2_SEQ_LM": "Encoder-decoders",
}
HEADER = "| class | default modules | `all-linear` |\n| --- | --- | --- |"
BOTH = "any"
"""Target modules of a verdict that does not depend on them."""


def cells(verdicts: Sequence[Verdict]) -> tuple[str, str]:
    """What a row says about the default target modules and about every linear layer."""
    found = {verdict.targets: _cell(verdict) for verdict in verdicts}
    return (found[BOTH], found[BOTH]) if BOTH in found else (found["auto"], found["all-linear"])


def _cell(verdict: Verdict) -> str:
    reason = re.sub(r"{[^{}]*}", _sorted, verdict.reason).replace("|", "\\|").replace("<", "&lt;")
    return f"{verdict.kind}: {reason}" if reason else verdict.kind


def _sorted(found: re.Match[str]) -> str:
    """A set that somebody printed, in an order that does not change."""
    return "{" + ", ".join(sorted(found[0][1:-1].split(", "))) + "}"


def row(pair: Pair, verdicts: Sequence[Verdict]) -> str:
    """A class's line of the table."""
    form = f" ({pair.form})" if pair.form else ""
    usual, every = cells(verdicts)
    return (
        f"| {pair.model_class.__name__} of {pair.config}{form} | {usual} | {every if every != usual else 'the same'} |"
    )


def rows_of(page: str) -> set[str]:
    """The lines of the tables of a written page."""
    return {line for line in page.splitlines() if line.startswith("| ") and " of " in line}


def version_of(page: str) -> str:
    """The version of transformers that a page is about."""
    return page.partition("transformers ")[2].split()[0].rstrip(",.")


def counted(verdicts: Iterable[Verdict]) -> Counter[str]:
    """How many pairs there are of each kind; the worst of a pair's verdicts counts."""
    order = ("wrong", "right", "refused", "not built")
    worst: dict[Pair, str] = {}
    for verdict in verdicts:
        known = worst.get(verdict.pair, verdict.kind)
        worst[verdict.pair] = min(known, verdict.kind, key=order.index)
    return Counter(worst.values())


def page(verdicts: Sequence[Verdict]) -> str:
    """The whole of docs/bases.md."""
    count = counted(verdicts)
    parts = [
        f"""# Base models

This page lists every class that transformers {transformers.__version__} loads for one of the three task types. Each
was tested as a tiny model with random weights: {count.total()} pairs of class and task type, {count["right"]} right,
{count["refused"]} refused with a reason, {count["wrong"]} wrong, {count["not built"]} that could not be built small.
`python -m tests.architectures --write` writes this page, and `.ci/run` fails if the command finds anything else.

**right** means that one training step follows the gradient of plain transformers, that a batch of texts with an
adapter each gives what every text gives alone, that padding changes nothing, that features and generated text do not
depend on the batch, and that plain PEFT gives the same answers from the exported folder. All of this is compared
with plain transformers, one row at a time. **refused** means that `init` or `add-task` says so in one line and
changes nothing. **not built** means that nothing is known, because transformers itself could not make or run the
tiny model.

*Default modules* are the query and value projections (`--target-modules auto`). If a class has none of a known name,
name them with `--target-modules`, or adapt every linear layer with `all-linear`, each matrix of each expert of a
mixture among them. Tables of embeddings and convolutions are adapted where `--target-modules` names them; each group
of a convolution has an adapter of its own. torch's `nn.MultiheadAttention`, which parts for images of some classes
have, and classes from other packages, is adapted as four linear layers, `q_proj`, `k_proj`, `v_proj` and `out_proj`;
a quantised base keeps only the last in few bits. A class has several rows if its checkpoints run different code; the
form follows the name."""
    ]
    for task_type, group in groupby(verdicts, key=lambda verdict: verdict.pair.task_type):
        lines = [row(pair, list(own)) for pair, own in groupby(group, key=lambda verdict: verdict.pair)]
        parts.append(f"## {TASK_TYPES[task_type]} (`{task_type}`)\n\n{HEADER}\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"
