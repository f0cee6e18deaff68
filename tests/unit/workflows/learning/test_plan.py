"""``add-task --dry-run`` says what the adapter leaves as it is."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from lorabank_cli.main import main
from transformers import AutoModelForSequenceClassification


@pytest.mark.parametrize("targets", ["auto", "all-linear"])
def test_a_dry_run_lists_what_is_not_adapted(save_base, rows, tmp_path: Path, capsys, targets: str) -> None:
    base, data = save_base(tmp_path / "base"), rows("spam.jsonl", ("no", "yes"), seed=1)
    words = ["add-task", "spam", "--data", str(data), "--base", str(base), "--target-modules", targets, "--dry-run"]
    words += ["--bank", str(tmp_path / "bank")]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["not_adapted"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "\nnot adapted  " in text
    assert all(line in text for line in told)
    assert not (tmp_path / "bank").exists()

    model = AutoModelForSequenceClassification.from_pretrained(base)
    left: Counter[str] = Counter()
    for name, module in model.named_modules():
        linear = isinstance(module, torch.nn.Linear) and name != "classifier"
        adapted = linear and (targets == "all-linear" or name.endswith((".query", ".value")))
        if not adapted and any(True for _ in module.parameters(recurse=False)):
            left[type(module).__name__] += 1
    found: Counter[str] = Counter()
    for line in told:
        count, kind, example, why = re.fullmatch(r"(\d+) (\w+), such as ([\w.]+): (.+)", line).groups()
        assert type(model.get_submodule(example)).__name__ == kind
        assert (why == "the head, which is trained in full") == (example == "classifier")
        assert (why == "not among the target modules") == (example.startswith("bert.") and kind == "Linear")
        found[kind] += int(count)
    assert found == left
