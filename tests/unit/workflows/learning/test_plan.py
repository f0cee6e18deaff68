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
        able = example.startswith("bert.") and kind in ("Linear", "Embedding")
        assert (why == "not among the target modules") == able
        found[kind] += int(count)
    assert found == left


REFUSED = {
    "--saving s2-attention": (5, "not a causal decoder with rotary positions"),
    "--saving hiddenkey --saving s2-attention": (2, "'hiddenkey' and 's2-attention' do not go together"),
    "--saving dropbp --target-modules word_embeddings": (5, "or nothing there is adapted"),
    "--saving hiddenkey --target-modules word_embeddings": (5, "or nothing there is adapted"),
    "--variant galore --strategy isolated --weight-decay 0.1": (2, "weight decay shrinks the whole weight"),
    "--variant flora --strategy isolated --weight-decay 0.1": (2, "weight decay shrinks the whole weight"),
    "--variant relora --strategy isolated --set restarts=600": (2, "above the limit of 1024"),
    "--variant cola --strategy isolated --set length=600": (2, "above the limit of 1024"),
    "--variant galore --strategy isolated --target-modules word_embeddings": (2, "the gradient of a whole weight"),
    "--variant qa-lora --strategy isolated --set qa-lora.group=7": (2, "not a multiple of the group of 7"),
    "--start orthogonal --r 64": (2, "cannot be orthonormal"),
    "--start pissa --r 64": (2, "32 singular values"),
    "--start lora-ga --r 32": (2, "the start needs 64"),
}
"""Settings of a task of an encoder of 32 features, the exit code and a part of the message."""


@pytest.mark.parametrize("words", REFUSED)
@pytest.mark.parametrize("dry", [True, False])
@pytest.mark.parametrize("exists", [True, False])
def test_what_the_base_decides_is_refused_before_rows_are_read(
    save_base, rows, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, words: str, dry: bool, exists: bool
) -> None:
    base, bank = str(save_base(tmp_path / "base")), str(tmp_path / "bank")
    if exists:
        assert main(["init", "--base", base, "--bank", bank]) == 0
    for module in ("plan", "train"):
        monkeypatch.setattr(f"lorabank.workflows.learning.{module}.load_data", lambda *_: pytest.fail("rows are read"))
    data = str(rows("spam.jsonl", ("no", "yes"), seed=1))
    capsys.readouterr()
    given = ["--data", data, "--base", base, "--bank", bank, "--device", "cpu", *words.split(), *["--dry-run"] * dry]
    code, reason = REFUSED[words]
    assert main(["add-task", "spam", *given]) == code
    said = capsys.readouterr().err
    assert reason in said
    assert "nothing was changed" in said
    assert Path(bank).exists() == exists
