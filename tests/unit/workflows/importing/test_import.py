"""Imported adapters: PEFT's answers, lorabank's guarantees."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import ComposeConfig, EvalConfig, InitConfig, TrainConfig
from lorabank.core.errors import DataError, IncompatibleError, NotFoundError
from lorabank.core.states import own_state
from lorabank.workflows.carrying.adapter_source import read_source

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LABELS = ("one", "three", "two")


class Notices:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def notice(self, message: str) -> None:
        self.told.append(message)

    def start(self, what: str, total: int) -> None: ...

    def advance(self, done: int, values: Any) -> None: ...

    def finish(self) -> None: ...


def test_it_answers_as_it_does_in_peft(bank, source, bring_in, bert_bank, logits, peft_logits) -> None:
    result = bring_in(source)
    assert (result.task.name, result.task.position, result.task.labels) == ("guest", 3, LABELS)
    expected = peft_logits(bert_bank.parent / "base", source, 3)
    torch.testing.assert_close(logits(bank, "guest", {result.adapter.digest: 1.0}), expected, atol=1e-5, rtol=1e-5)
    assert api.verify(bank, full=True) == ()


def test_the_record_says_where_it_came_from(bank, source, bring_in) -> None:
    adapter = bring_in(source, clusters_per_task=2, keep_samples=6).adapter
    assert (adapter.strategy, adapter.context, adapter.penalties, adapter.steps) == ("imported", (), {}, 0)
    assert (adapter.r, adapter.lora_alpha, adapter.use_rslora) == (4, 6.0, True)
    assert adapter.metrics["source"] == str(source)
    contents = [(name, (source / name).read_bytes()) for name in (CONFIG, WEIGHTS)]
    files = [[name, hashlib.sha256(data).hexdigest(), len(data)] for name, data in contents]
    listed = json.dumps(files, separators=(",", ":"))
    assert adapter.metrics["source_digest"] == hashlib.sha256(listed.encode()).hexdigest()
    assert adapter.metrics["overlap"].keys() == Bank.open(bank).snapshot().adapters.keys() - {adapter.digest}
    assert "epochs" not in adapter.config  # nothing was trained here
    snapshot = Bank.open(bank).snapshot()
    splits = {dataset.split: dataset.rows for dataset in snapshot.datasets if dataset.task == "guest"}
    assert splits["calibration"] == 6
    assert splits["train"] + splits["eval"] <= 30


def test_its_score_is_what_its_head_gives(bank, source, bring_in, rows, peft_logits, bert_bank) -> None:
    """Accuracy counted by hand from PEFT's own logits on the evaluation rows."""
    train, held_out = rows("t.jsonl", LABELS, rows=12, seed=1), rows("e.jsonl", LABELS, rows=30, seed=2)
    result = bring_in(source, data=train, eval_data=str(held_out))
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base = bert_bank.parent / "base"
    model = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base, num_labels=3), source)
    tokenizer, correct = AutoTokenizer.from_pretrained(base), 0
    for line in held_out.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        ids = tokenizer(row["text"], return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            correct += LABELS[int(model.eval()(input_ids=ids).logits.argmax())] == row["label"]
    assert result.score["n"] == 30
    assert result.score["value"] == pytest.approx(correct / 30)


def test_labels_are_in_the_order_of_the_heads_outputs(bank, source, bring_in) -> None:
    told = Notices()
    first = bring_in(source, observer=told)
    assert any("taken from the data: one, three, two" in line for line in told.told)
    other = bring_in(source, "other", labels=("two", "one", "three"))
    assert other.task.labels == ("two", "one", "three")
    assert first.adapter.digest == other.adapter.digest
    assert api.verify(bank, full=True) == ()


def test_it_answers_alone_whatever_is_learnt_later(bank, source, bring_in, rows) -> None:
    guest = bring_in(source).adapter
    data = rows("later.jsonl", ("no", "yes"), seed=9)
    settings = TrainConfig(data=str(data), epochs=1, r=2, device="cpu", max_length=16)
    later = api.add_task(bank, "later", settings).adapter
    assert guest.digest in later.context
    snapshot = Bank.open(bank).snapshot()
    from lorabank.core.states import deployed_state

    adapters = [snapshot.adapter_of(task.name) for task in snapshot.tasks]
    assert deployed_state(adapters, guest) == (guest.digest,)
    # and before `later` came, the guest was not what answered for the trained tasks
    second = snapshot.adapter_of("second")
    assert deployed_state(adapters[:3], snapshot.adapter_of("first")) == own_state(second)
    (report,) = api.evaluate(bank, EvalConfig(device="cpu"))
    assert report.values[-1][2] is not None


def test_exported_and_imported_again_it_is_the_same_adapter(bank, source, bring_in, tmp_path) -> None:
    guest = bring_in(source).adapter
    api.export(bank, "guest", tmp_path / "out")
    again = bring_in(tmp_path / "out", "again").adapter
    assert again.digest == guest.digest
    # the head's digest is made the same way for trained and for imported adapters
    api.export(bank, "second", tmp_path / "second", own=True)
    second = Bank.open(bank).snapshot().adapter_of("second")
    assert bring_in(tmp_path / "second", "second-again").adapter.head_digest == second.head_digest


def test_it_makes_a_bank_where_there_is_none(source, bring_in, tmp_path, bert_bank) -> None:
    base = str(bert_bank.parent / "base")
    result = bring_in(source, path=tmp_path / "new", init=InitConfig(base=base))
    assert result.bank_created
    assert [task.name for task in Bank.open(tmp_path / "new").snapshot().tasks] == ["guest"]


def test_a_composition_says_that_it_holds_an_imported_adapter(bank, source, bring_in) -> None:
    trained = api.compose(bank, ComposeConfig(mode="manual", name="trained", device="cpu"))
    assert "imported_adapters" not in trained.report
    bring_in(source)
    mixed = api.compose(bank, ComposeConfig(mode="manual", name="mixed", device="cpu"))
    assert mixed.report["imported_adapters"] == ["guest"]


def edit(source: Path, **fields: Any) -> None:
    (source / CONFIG).write_text(json.dumps(json.loads((source / CONFIG).read_text(encoding="utf-8")) | fields))


def test_a_huge_update_is_told(source, bring_in) -> None:
    edit(source, lora_alpha=1e6, alpha_pattern={})
    told = Notices()
    result = bring_in(source, observer=told)
    assert any("times as large as the weights" in line for line in told.told)
    assert result.adapter.metrics["largest_update"] > 1e3


@pytest.mark.parametrize("named", ["someone/else", None, "/etc/passwd"])
def test_another_base_needs_the_fingerprint_of_the_banks(bank, source, bring_in, named) -> None:
    edit(source, base_model_name_or_path=named)
    fingerprint = Bank.open(bank).snapshot().base.fingerprint
    with pytest.raises(IncompatibleError, match=named or "names no base model") as refused:
        bring_in(source)
    assert refused.value.hint == f"if the weights are the same: --base-fingerprint {fingerprint[:16]}"
    for wrong in ("0" * 16, fingerprint[:15], ""):
        with pytest.raises(IncompatibleError, match="is not that of the bank's base model"):
            bring_in(source, base_fingerprint=wrong)
    adapter = bring_in(source, base_fingerprint=fingerprint[:16].upper()).adapter
    assert (adapter.metrics["source_base"], adapter.metrics["trusted"]) == (named or "", False)


def test_unknown_fields_are_passed_over_on_request_and_listed(source, bring_in) -> None:
    edit(source, a_field_of_tomorrow="x", trust_remote_code=True)
    with pytest.raises(DataError, match=r"'a_field_of_tomorrow'.* is unknown") as refused:
        bring_in(source)
    assert "--ignore-unknown" in str(refused.value.hint)
    told = Notices()
    adapter = bring_in(source, ignore_unknown=True, observer=told).adapter
    assert adapter.metrics["ignored_fields"] == ["a_field_of_tomorrow", "trust_remote_code"]
    assert any("skipped: a_field_of_tomorrow, trust_remote_code" in line for line in told.told)
    edit(source, use_dora=True)
    with pytest.raises(DataError, match="'use_dora'"):
        bring_in(source, "other", ignore_unknown=True)


def test_an_adapter_of_the_hub_is_read_from_its_cache(source, bring_in, tmp_path, monkeypatch) -> None:
    """The cache keeps a link for each file of a commit."""
    from huggingface_hub import constants

    commit, cached = "c" * 40, tmp_path / "hub" / "models--some-one--guest"
    (cached / "blobs").mkdir(parents=True)
    (cached / "snapshots" / commit).mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    for name in (CONFIG, WEIGHTS):
        (source / name).rename(cached / "blobs" / name)
        (cached / "snapshots" / commit / name).symlink_to(f"../../blobs/{name}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cached.parent))
    for number, name in enumerate(("some-one/guest", "some-one/guest@main", f"some-one/guest@{commit}")):
        adapter = bring_in(name, f"guest-{number}").adapter
        assert (adapter.metrics["source"], adapter.metrics["source_revision"]) == (name, commit)


def test_an_adapter_that_is_nowhere_is_not_found(bring_in) -> None:
    with pytest.raises(NotFoundError, match="of adapter 'some-one/guest' is not in the Hugging Face cache"):
        bring_in("some-one/guest")
    for name in ("./some-one/guest", "some-one", "../nowhere/x", "~/x", "hf://some-one/guest", "a/b/c"):
        with pytest.raises(NotFoundError, match="there is no folder"):
            bring_in(name)


def test_a_link_to_the_folder_is_followed(source, bring_in, tmp_path) -> None:
    (tmp_path / "link").symlink_to(source)
    assert bring_in(tmp_path / "link").task.name == "guest"


def test_what_else_lies_in_the_folder_is_not_looked_at(source, tmp_path) -> None:
    _, digest = read_source(source)
    (source / "adapter_model.bin").write_bytes(b"\x80\x04cos\nsystem\n.")
    (source / "README.md").write_text("---\nbase_model: x\n---\n")
    (source / "tokenizer_config.json").symlink_to("/dev/zero")
    assert read_source(source)[1] == digest
