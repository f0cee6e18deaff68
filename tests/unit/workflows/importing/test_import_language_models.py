"""Imported adapters of language models: PEFT's logits, the task's own way of asking, no head."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import EvalConfig, InitConfig, TrainConfig
from lorabank.core.errors import ConfigError, DataError, IncompatibleError
from tests.unit.workflows.conftest import write_rows
from tests.unit.workflows.language_models import (
    CLOSE,
    KINDS,
    TASK_TYPES,
    TEMPLATE,
    bank_logits,
    label_scores,
    peft_logits,
    plain_model,
)

LABELS = ("one", "three", "two")
TARGETS = {"llama": ["q_proj", "v_proj"], "t5": ["q", "v"]}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def base(kind: str, make_language_model: Callable[..., Path]) -> Path:
    return make_language_model(kind, initializer_range=0.1)


def save_adapter(base: Path, folder: Path, kind: str, **changes: Any) -> Path:
    """What PEFT itself saves, with random factors."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    settings = {"task_type": TASK_TYPES[kind], "target_modules": TARGETS[kind], "r": 4, "lora_alpha": 6} | changes
    peft = get_peft_model(plain_model(base, None), LoraConfig(**settings))
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    peft.save_pretrained(folder)
    return folder


@pytest.fixture
def source(base: Path, kind: str, tmp_path: Path) -> Path:
    patterns = {"rank_pattern": {TARGETS[kind][0]: 2}, "alpha_pattern": {TARGETS[kind][1]: 3.0}}
    return save_adapter(base, tmp_path / "source", kind, use_rslora=True, lora_dropout=0.25, **patterns)


@pytest.fixture
def bring_in(base: Path, tmp_path: Path) -> Callable[..., Any]:
    """``bring_in(source, task="guest", labels=None, **config)``: import labelled letters into a bank on the base."""

    def run(source: Path, task: str = "guest", **options: Any) -> Any:
        passed = {name: options.pop(name) for name in ("labels", "observer") if name in options}
        options = {"data": "", "device": "cpu", "set": (f"prompt_template={TEMPLATE}",)} | options
        options["data"] = str(options["data"] or write_rows(tmp_path / f"{task}.jsonl", LABELS, rows=30, seed=5))
        init = InitConfig(base=str(base))
        return api.import_adapter(tmp_path / "bank", source, task, config=TrainConfig(**options), init=init, **passed)

    return run


def write_json(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_it_answers_as_it_does_in_peft(kind, base, source, bring_in, tmp_path) -> None:
    result = bring_in(source)
    assert result.task.task_type == TASK_TYPES[kind]
    expected = peft_logits(base, source)
    same(bank_logits(tmp_path / "bank", {result.adapter.digest: 1.0}), expected)
    assert (expected[0] - peft_logits(base, None)[0]).abs().max() > 1e-2
    assert api.verify(tmp_path / "bank", full=True) == ()


def test_every_linear_module_can_be_adapted(kind, base, bring_in, tmp_path) -> None:
    source = save_adapter(base, tmp_path / "source", kind, target_modules="all-linear", r=2)
    result = bring_in(source)
    # two layers; T5's decoder layers hold two attentions
    assert len(result.adapter.target_modules) == {"llama": 2 * 7, "t5": 2 * (4 + 2) + 2 * (4 + 4 + 2)}[kind]
    same(bank_logits(tmp_path / "bank", {result.adapter.digest: 1.0}), peft_logits(base, source))


def test_the_record_keeps_how_it_is_asked(source, bring_in, tmp_path) -> None:
    rows = [
        json.loads(line)
        for line in write_rows(tmp_path / "rows.jsonl", LABELS).read_text(encoding="utf-8").splitlines()
    ]
    data = write_json(tmp_path / "rows.jsonl", [{"letters": row["text"], "label": row["label"]} for row in rows])
    options = {
        "set": (f"prompt_template={TEMPLATE}", "label_words=one=uno,two=dos,three=tres"),
        "map": ("letters=text",),
        "max_length": 64,
        "keep_samples": 6,
    }
    result = bring_in(source, data=data, **options)
    task, adapter = result.task, result.adapter
    assert task.labels == ("uno", "tres", "dos")
    assert task.prompt_template == "{text} is uno, tres, dos:"
    kept = {"format": "classification", "scoring": "likelihood", "chat_template": "none", "max_length": 64}
    assert kept.items() <= adapter.config.items()
    assert adapter.config["set"] == list(options["set"])
    assert list(adapter.config["map"]) == ["letters=text"]
    assert "epochs" not in adapter.config
    assert (adapter.head_digest, adapter.strategy) == (None, "imported")


def test_its_score_is_what_plain_peft_reaches(base, source, bring_in, tmp_path) -> None:
    """Accuracy counted by hand: the likeliest label, one plain pass of PEFT's model for each."""
    from transformers import AutoTokenizer

    train = write_rows(tmp_path / "t.jsonl", LABELS, rows=12, seed=1)
    held_out = write_rows(tmp_path / "e.jsonl", LABELS, rows=15, seed=2)
    result = bring_in(source, data=train, eval_data=str(held_out))
    model, tokenizer, correct = plain_model(base, source), AutoTokenizer.from_pretrained(base), 0
    for line in held_out.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        scores = label_scores(model, tokenizer, f"{row['text']} is one, three, two:", LABELS)
        correct += LABELS[scores.index(max(scores))] == row["label"]
    assert (result.score["metric"], result.score["n"]) == ("accuracy", 15)
    assert result.score["value"] == pytest.approx(correct / 15)


def test_exported_and_imported_again_it_is_the_same_adapter(source, bring_in, tmp_path) -> None:
    guest = bring_in(source).adapter
    api.export(tmp_path / "bank", "guest", tmp_path / "out")
    assert bring_in(tmp_path / "out", "again").adapter.digest == guest.digest


def test_later_tasks_are_learnt_on_top_of_it(source, bring_in, tmp_path) -> None:
    guest = bring_in(source).adapter
    data = write_rows(tmp_path / "later.jsonl", ("no", "yes"), seed=9)
    later = api.add_task(tmp_path / "bank", "later", TrainConfig(data=str(data), epochs=1, r=2, device="cpu"))
    assert later.adapter.context == (guest.digest,)
    (report,) = api.evaluate(tmp_path / "bank", EvalConfig(device="cpu"))
    assert None not in report.values[-1]


@pytest.mark.parametrize(
    ("form", "scoring", "metric"),
    [("prompt-completion", "generation", "exact_match"), ("text", "perplexity", "inverse_perplexity")],
)
def test_other_forms_of_rows(kind, source, bring_in, tmp_path, form, scoring, metric) -> None:
    rows = [
        {"prompt": f"say {c}", "completion": c * 2} if form != "text" else {"text": f"{c} {c} {c}"} for c in "abcdefgh"
    ]
    data = write_json(tmp_path / "rows.jsonl", rows)
    result = bring_in(source, data=data, format=form, set=("max_new_tokens=4",))
    turn = "<s><|user|>\n{text}</s>\n<|assistant|>\n"
    assert (result.task.labels, result.task.prompt_template) == ((), None if form == "text" else turn)
    assert result.adapter.config["chat_template"] == ("none" if form == "text" else "auto")
    assert (result.adapter.config["format"], result.adapter.config["scoring"]) == (form, scoring)
    assert result.score["metric"] == metric
    assert api.verify(tmp_path / "bank", full=True) == ()


def test_a_missing_task_type_is_the_banks(kind, source, bring_in) -> None:
    edit(source, task_type=None)
    assert bring_in(source).task.task_type == TASK_TYPES[kind]


def edit(source: Path, **fields: Any) -> None:
    config = json.loads((source / "adapter_config.json").read_text(encoding="utf-8")) | fields
    (source / "adapter_config.json").write_text(json.dumps(config))


def test_labels_are_refused_with_what_to_type(source, bring_in, tmp_path) -> None:
    with pytest.raises(ConfigError, match="no head whose outputs could be named") as refused:
        bring_in(source, labels=LABELS)
    assert "--set label_words=" in str(refused.value.hint)
    assert not (tmp_path / "bank").exists()


@pytest.mark.parametrize("other", ["SEQ_CLS", "CAUSAL_LM", "SEQ_2_SEQ_LM"])
def test_another_task_type_than_the_banks_is_refused(kind, source, bring_in, tmp_path, tree, other) -> None:
    if other == TASK_TYPES[kind]:
        pytest.skip("the same")
    bring_in(source)
    before = tree(tmp_path / "bank")
    edit(source, task_type=other)
    with pytest.raises(IncompatibleError, match=f"trained for '{other}'"):
        bring_in(source, "other")
    assert tree(tmp_path / "bank") == before


def test_whole_modules_are_refused(kind, base, bring_in, tmp_path) -> None:
    source = save_adapter(base, tmp_path / "source", kind, modules_to_save=["lm_head"])
    with pytest.raises(DataError, match=r"whole modules \(lm_head\)") as refused:
        bring_in(source)
    assert refused.value.unchanged == "nothing was changed"
    assert not (tmp_path / "bank").exists()


def test_the_adapters_task_type_decides_what_bank_is_made(tmp_path, make_language_model) -> None:
    """A classifier's adapter on a base that was made to write: the bank is one of classifiers."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    base = make_language_model("llama")
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    peft = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], r=2))
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    peft.save_pretrained(tmp_path / "source")
    data = write_rows(tmp_path / "rows.jsonl", LABELS, rows=12)
    config = TrainConfig(data=str(data), device="cpu")
    api.import_adapter(tmp_path / "bank", tmp_path / "source", "x", config=config, init=InitConfig(base=str(base)))
    snapshot = Bank.open(tmp_path / "bank").snapshot()
    assert (snapshot.base.task_type, snapshot.tasks[0].task_type) == ("SEQ_CLS", "SEQ_CLS")
