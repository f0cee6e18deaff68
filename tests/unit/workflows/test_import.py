"""Imported adapters: PEFT's answers, lorabank's guarantees; whatever is wrong is told and changes nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import EvalConfig, InitConfig, TrainConfig
from lorabank.core.errors import ConfigError, DataError, ExistsError, IncompatibleError, LorabankError, NotFoundError
from lorabank.training.strategies import own_state
from lorabank.workflows.import_ import read_source

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


@pytest.fixture(scope="session")
def peft_folder(bert_bank: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What PEFT itself saves: three labels, random factors, ranks and alphas by pattern."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(bert_bank.parent / "base", num_labels=3)
    settings = LoraConfig(
        task_type="SEQ_CLS",
        target_modules=["query", "value"],
        r=4,
        lora_alpha=6,
        use_rslora=True,
        lora_dropout=0.25,
        rank_pattern={"0.attention.self.query": 2},
        alpha_pattern={"value": 3.0},
    )
    peft = get_peft_model(model, settings)
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("peft") / "adapter"
    peft.save_pretrained(folder)
    return folder


@pytest.fixture
def source(peft_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(peft_folder, tmp_path / "source"))


@pytest.fixture
def bring_in(bank: Path, rows: Callable[..., Path]) -> Callable[..., Any]:
    """``bring_in(source, task="guest", path=bank, labels=None, observer, **config)``: import with 3-label rows."""

    def run(source: Path, task: str = "guest", **options: Any) -> Any:
        keys = ("labels", "observer", "init")
        passed = {name: options.pop(name) for name in keys if name in options}
        path = options.pop("path", bank)
        data = options.pop("data", None) or rows("guest.jsonl", LABELS, rows=30, seed=5)
        config = TrainConfig(**({"data": str(data), "device": "cpu", "max_length": 16} | options))
        return api.import_adapter(path, source, task, config=config, **passed)

    return run


def edit(source: Path, **fields: Any) -> None:
    config = json.loads((source / CONFIG).read_text()) | fields
    (source / CONFIG).write_text(json.dumps(config))


def edit_tensors(source: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(source / WEIGHTS)
    change(tensors)
    save_file(tensors, source / WEIGHTS)


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
    for line in held_out.read_text().splitlines():
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
    from lorabank.training.strategies import deployed_state

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


def test_another_base_and_a_huge_update_are_told(source, bring_in) -> None:
    edit(source, base_model_name_or_path="someone/else")
    edit(source, lora_alpha=1e6, alpha_pattern={})
    told = Notices()
    result = bring_in(source, observer=told)
    assert any("names the base model 'someone/else'" in line for line in told.told)
    assert any("times as large as the weights" in line for line in told.told)
    assert result.adapter.metrics["largest_update"] > 1e3


def remove(name: str) -> Callable[[Path], None]:
    return lambda source: (source / name).unlink()


def link(name: str) -> Callable[[Path], None]:
    def make(source: Path) -> None:
        (source / name).rename(source / "real")
        (source / name).symlink_to("real")

    return make


def pipe(name: str) -> Callable[[Path], None]:
    def make(source: Path) -> None:
        (source / name).unlink()
        os.mkfifo(source / name)

    return make


def folder(name: str) -> Callable[[Path], None]:
    def make(source: Path) -> None:
        (source / name).unlink()
        (source / name).mkdir()

    return make


def only_a_pickle(source: Path) -> None:
    (source / WEIGHTS).unlink()
    (source / "adapter_model.bin").write_bytes(b"\x80\x04cos\nsystem\n.")


def large_config(source: Path) -> None:
    with (source / CONFIG).open("ab") as file:
        file.write(b" " * (256 * 1024))


def sparse_weights(source: Path) -> None:
    os.truncate(source / WEIGHTS, 2 * 1024**3 + 1)


def cut_off(source: Path) -> None:
    os.truncate(source / WEIGHTS, 1000)


def trailing(source: Path) -> None:
    with (source / WEIGHTS).open("ab") as file:
        file.write(b"PK")


def duplicate_key(source: Path) -> None:
    data = (source / WEIGHTS).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].decode().rstrip()
    key = next(key for key in json.loads(header) if key != "__metadata__")
    entry = json.dumps({key: json.loads(header)[key]})[1:-1]
    header = header[:-1] + "," + entry + "}"
    (source / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header.encode() + data[8 + size :])


def tensor(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    return lambda source: edit_tensors(source, change)


def first(tensors: dict[str, torch.Tensor], ending: str) -> str:
    return next(name for name in sorted(tensors) if name.endswith(ending))


def nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors[first(tensors, "lora_A.weight")][0, 0] = float("nan")


def infinite(tensors: dict[str, torch.Tensor]) -> None:
    tensors[first(tensors, "classifier.bias")][0] = float("inf")


def zero(tensors: dict[str, torch.Tensor]) -> None:
    for name in tensors:
        if name.endswith("lora_B.weight"):
            tensors[name].zero_()


def base_weights(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.bert.encoder.layer.0.attention.self.query.weight"] = torch.eye(32)


def half(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if "layer.1." in name]:
        del tensors[name]


def headless(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if "classifier" in name]:
        del tensors[name]


def more_layers(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if "layer.1." in name]:
        tensors[name.replace("layer.1.", "layer.7.")] = tensors[name].clone()


@pytest.mark.parametrize(
    ("damage", "error", "reason"),
    [
        (remove(CONFIG), DataError, "adapter_config.json is missing"),
        (remove(WEIGHTS), DataError, "adapter_model.safetensors is missing"),
        (link(CONFIG), DataError, "is a link"),
        (link(WEIGHTS), DataError, "is a link"),
        (pipe(CONFIG), DataError, "no regular file"),
        (pipe(WEIGHTS), DataError, "no regular file"),
        (folder(CONFIG), DataError, "no regular file"),
        (folder(WEIGHTS), DataError, "no regular file"),
        (only_a_pickle, DataError, "adapter_model.bin is a pickle"),
        (large_config, DataError, "larger than 262144 bytes"),
        (sparse_weights, DataError, "larger than 2147483648 bytes"),
        (cut_off, DataError, "adapter_model.safetensors"),
        (trailing, DataError, "adapter_model.safetensors"),
        (duplicate_key, DataError, "a key appears twice"),
        (tensor(nan), DataError, "lora_A.weight' holds values that are not finite"),
        (tensor(infinite), DataError, "classifier.bias' holds values that are not finite"),
        (tensor(zero), DataError, "every delta weight is zero"),
        (tensor(base_weights), DataError, "self.query.weight' is neither a LoRA factor"),
        (tensor(half), DataError, "is missing"),
        (tensor(headless), DataError, r"head tensor 'classifier.bias' is missing"),
        (tensor(more_layers), IncompatibleError, "layer.7.attention.self"),
        (lambda source: edit(source, r=1_000_000), DataError, "'r'"),
        (lambda source: edit(source, target_modules="(a+)+$"), DataError, "target_modules"),
        (lambda source: edit(source, use_dora=True), DataError, "use_dora"),
        (lambda source: edit(source, task_type="CAUSAL_LM"), IncompatibleError, "CAUSAL_LM"),
        (shutil.rmtree, NotFoundError, "there is no folder"),
    ],
)
@pytest.mark.parametrize("fresh", [False, True], ids=["bank", "no-bank"])
def test_a_bad_folder_changes_nothing(
    bank, source, bring_in, bert_bank, tmp_path, tree, damage, error, reason, fresh
) -> None:
    damage(source)
    path = tmp_path / "none" if fresh else bank
    before = tree(bank)
    with pytest.raises(error, match=reason) as refused:
        bring_in(source, path=path, init=InitConfig(base=str(bert_bank.parent / "base")))
    assert "\n" not in refused.value.message
    assert refused.value.unchanged
    assert tree(bank) == before
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"task": "second"}, ExistsError, "has a task 'second' already"),
        ({"task": "mixed"}, ExistsError, "has a composition 'mixed' already"),
        ({"task": "../x"}, ConfigError, "cannot be a name"),
        ({"labels": ("one", "two")}, DataError, "the data has the label 'three'"),
        ({"labels": ("one", "two", "three", "two")}, ConfigError, "stands twice"),
        ({"labels": ("one", "two", "three", "")}, ConfigError, "empty"),
        ({"labels": ("one", "two", "three", "four")}, IncompatibleError, "4 labels need"),
        ({"init": InitConfig(base="someone/else")}, IncompatibleError, "not 'someone/else'"),
    ],
)
def test_a_request_that_cannot_be_met_changes_nothing(
    bank, source, bring_in, compose, tree, options, error, reason
) -> None:
    compose("manual", name="mixed")
    before = tree(bank)
    with pytest.raises(error, match=reason):
        bring_in(source, **options)
    assert tree(bank) == before


def test_a_name_that_cannot_be_used_makes_no_bank_and_loads_no_model(
    bank, source, bring_in, tmp_path, bert_bank, monkeypatch
) -> None:
    from lorabank.workflows import import_

    monkeypatch.setattr(import_, "load_base", None)
    with pytest.raises(ConfigError, match="cannot be a name"):
        bring_in(source, "../x", path=tmp_path / "none", init=InitConfig(base=str(bert_bank.parent / "base")))
    assert not (tmp_path / "none").exists()
    with pytest.raises(ExistsError, match="'second' already"):
        bring_in(source, "second")


def test_labels_that_do_not_fit_the_head_say_what_to_type(source, bring_in, rows) -> None:
    with pytest.raises(IncompatibleError, match="2 labels need") as refused:
        bring_in(source, data=rows("two.jsonl", ("no", "yes")))
    assert "--labels A,B,..." in str(refused.value.hint)


def test_a_link_to_the_folder_is_followed(source, bring_in, tmp_path) -> None:
    (tmp_path / "link").symlink_to(source)
    assert bring_in(tmp_path / "link").task.name == "guest"


def test_what_else_lies_in_the_folder_is_not_looked_at(source, tmp_path) -> None:
    _, digest = read_source(source)
    (source / "adapter_model.bin").write_bytes(b"\x80\x04cos\nsystem\n.")
    (source / "README.md").write_text("---\nbase_model: x\n---\n")
    (source / "tokenizer_config.json").symlink_to("/dev/zero")
    assert read_source(source)[1] == digest


def test_no_mutation_of_the_weights_gets_past_with_another_error(source) -> None:
    """Bytes flipped, cut or doubled at random: refused by name, or read as what they are."""
    import random

    chance = random.Random(0)
    good = (source / WEIGHTS).read_bytes()
    refused = 0
    for _ in range(400):
        data = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            start = chance.randrange(min(len(data), 4000))
            kind = chance.randrange(3)
            if kind == 0:
                data[start] ^= 1 << chance.randrange(8)
            elif kind == 1:
                del data[start : start + chance.randint(1, 64)]
            else:
                data[start:start] = data[start : start + chance.randint(1, 64)]
        (source / WEIGHTS).write_bytes(data)
        try:
            read_source(source)
        except LorabankError as error:
            refused += error.exit_code == DataError.exit_code
    assert refused > 200


def test_an_interrupted_import_leaves_the_name_free(bank, source, bring_in, monkeypatch) -> None:
    from lorabank.workflows import import_

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(import_, "commit_and_score", stop)
        with pytest.raises(KeyboardInterrupt):
            bring_in(source)
    assert Bank.open(bank).operations() == []
    assert bring_in(source).task.position == 3
