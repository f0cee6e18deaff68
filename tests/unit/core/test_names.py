"""General code knows no entry of a shelf by name: what it must know, the entry says itself."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from lorabank.core.shelf import Shelf
from lorabank.core.shelves import SHELVES

ROOT = Path(__file__).parents[3]
OTHER = {
    "lorabank/core/shelves.py": "the shelves",
    "lorabank/core/config.py": "the defaults",
    "lorabank/core/task_kinds.py": "the facts of task types that need no torch",
    "lorabank/models/bases/supported.py": "models of transformers that cannot be a base of a task type",
    "lorabank/exchange/config_fields.py": "values of PEFT's own fields",
    "lorabank/demo": "what the demo shows",
    "lorabank/training/strategies": "which penalty is a strategy's default",
    "lorabank/evaluation/reporting": "which metrics the report shows at a glance",
    "lorabank/sequences": "which metrics a table shows, and how copies of rows are written",
    "lorabank/models/answering/scorings": "which metric is a scoring's default",
    "lorabank/data/forms/plain.py": "which scoring is a form's default",
    "lorabank/compose/routed.py": "which router is a mode's default, and which one picks heads",
}
"""Where names may stand beside the entries' own files."""

WORDS = {
    "bias": {"lorabank/exchange", "lorabank/models", "lorabank/workflows/carrying/checkpoint.py"},
    "hydralora": {"lorabank/training/variants/hydralora.py"},
    "replay": {"lorabank/core/records.py", "lorabank/workflows", "lorabank/bank/catalog/columns.py"},
    "lora": {"lorabank/workflows/carrying/hub_card.py"},
    "full": {"cli/lorabank_cli/commands/verify.py", "lorabank/workflows/doctor.py"},
    "embedding": {"lorabank/models/gates", "lorabank/models/mixing/first_pass.py"},
    "perplexity": {"lorabank/evaluation/scoring.py"},
    "messages": {"lorabank/serving"},
    "text": {"lorabank", "cli"},
    ".json": {"lorabank"},
    "average_accuracy": {"cli/lorabank_cli/commands/sequence_run.py"},
    "forgetting": {"cli/lorabank_cli/commands/sequence_tradeoff.py"},
    "forward_transfer": {"lorabank/workflows/evaluate.py"},
    "attention": {"lorabank/workflows/scored.py", "lorabank/compose/gated.py", "lorabank/compose/gate_fitting.py"},
    "routed": {
        "cli/lorabank_cli/commands/eval.py",
        "cli/lorabank_cli/render/routing.py",
        "lorabank/bank/catalog/columns.py",
        "lorabank/compose/posterior.py",
        "lorabank/core/records.py",
        "lorabank/evaluation",
        "lorabank/sequences/results.py",
        "lorabank/workflows",
    },
}
"""Names that mean something else there: a split or a column of the data, a state under a gate, a field of a call, a
parameter of a module, a variant that has the name of a gate, or a tag on the hub."""


@cache
def literals(file: Path) -> tuple[tuple[int, str], ...]:
    """Lines and values of its strings."""
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return tuple(
        (node.lineno, node.value) for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def own_files(shelf: Shelf) -> set[str]:
    """The files of the entries."""
    modules = [target.partition(":")[0] for target in shelf.table.values()]
    return {module.replace(".", "/") + ".py" for module in modules}


@pytest.mark.parametrize("shelf", SHELVES, ids=lambda shelf: shelf.plural)
def test_no_entry_is_named_in_general_code(shelf: Shelf) -> None:
    allowed = {*OTHER, *own_files(shelf)}
    found = []
    for file in sorted([*(ROOT / "lorabank").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]):
        path = file.relative_to(ROOT).as_posix()
        if any(path == place or path.startswith(f"{place}/") for place in allowed):
            continue
        for line, text in literals(file):
            elsewhere = WORDS.get(text, set())
            if text in shelf.table and not any(path == p or path.startswith(f"{p}/") for p in elsewhere):
                found.append(f"{path}:{line}: {text!r}")
    assert found == []
