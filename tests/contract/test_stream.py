"""``stream``: rows in their order, tasks that are found by the loss alone, and a stream that was stopped."""

from __future__ import annotations

import io
import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lorabank_cli.main import main
from safetensors.torch import load_file

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import InitConfig, PredictConfig, TrainConfig
from lorabank.core.errors import ConfigError, DataError, NotFoundError
from lorabank.core.observer import SilentObserver
from lorabank.data.formats.parquet import from_parquet
from lorabank.models.tasks.heads import build_head
from lorabank.workflows.learning.found import StreamResult
from tests.contract.conftest import Lab

SETTINGS = {
    "batch_size": 4, "r": 2, "lora_alpha": 8.0, "learning_rate": 2e-2, "lora_dropout": 0.1, "keep_samples": 8,
    "clusters_per_task": 2, "device": "cpu", "set": ("window=3", "mean_threshold=0.75", "variance_threshold=0.05"),
}  # fmt: skip
LETTERS = {"a": "abcdef", "b": "uvwxyz", "c": "ghijk", "d": "opqrs"}


def rows() -> list[dict[str, str]]:
    """Two distributions one after the other, with labels of their own."""
    chance = random.Random(5)
    labels = [("a", "b")[k % 2] for k in range(80)] + [("c", "d")[k % 2] for k in range(120)]
    return [{"text": " ".join(chance.choices(LETTERS[label], k=6)), "label": label} for label in labels]


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def learn(lab: Lab, bank: Path, data: Path, **more: Any) -> StreamResult:
    config = TrainConfig(**({"data": str(data)} | SETTINGS | more.pop("settings", {})))
    return api.stream(bank, config, init=InitConfig(base=str(lab.base)), observer=SilentObserver(), **more)


def digests(bank: Path) -> list[str]:
    snapshot = Bank.open(bank).snapshot()
    return [snapshot.adapter_of(task.name).digest for task in snapshot.tasks]


@pytest.fixture(scope="module")
def whole(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A stream that was learnt in one go: its rows, the bank, and what was found."""
    folder = tmp_path_factory.mktemp("stream")
    data = write(folder / "rows.jsonl", rows())
    return SimpleNamespace(data=data, bank=folder / "bank", result=learn(lab, folder / "bank", data))


def test_tasks_are_found_where_the_loss_is_flat(whole: SimpleNamespace) -> None:
    result, tasks = whole.result, whole.result.tasks
    assert (result.bank_created, result.rows, result.left_over) == (True, 200, 0)
    assert [task.name for task in tasks] == [f"stream-{k + 1}" for k in range(len(tasks))]
    assert [task.first_row for task in tasks] == [1, *(task.last_row + 1 for task in tasks[:-1])]
    assert [task.plateau for task in tasks] == [*[True] * (len(tasks) - 1), False]
    assert tasks[0].last_row <= 80
    assert tasks[0].new_labels == ("a", "b")
    assert [task.new_labels for task in tasks[1:]].count(("c", "d")) == 1
    assert next(task for task in tasks[1:] if task.new_labels).last_row > 80
    assert Bank.open(whole.bank).verify(full=True) == []


def test_texts_are_held_out_or_trained_on(whole: SimpleNamespace) -> None:
    bank = Bank.open(whole.bank)
    snapshot, texts = bank.snapshot(), [row["text"] for row in rows()]
    for task in whole.result.tasks:
        part = texts[task.first_row - 1 : task.last_row]
        held_out = from_parquet(bank.read_blob(snapshot.dataset(task.name, "eval").blob)).texts
        train = snapshot.dataset(task.name, "train")
        assert len(held_out) == task.eval_rows
        assert train.rows + len(held_out) == len(part)
        assert set(held_out) <= set(part)
        kept = from_parquet(bank.read_blob(snapshot.dataset(task.name, "calibration").blob)).texts
        assert not set(kept) & set(held_out)


def test_the_sum_of_the_adapters_answers_under_the_shared_head(
    whole: SimpleNamespace, by_hand: Callable[..., torch.Tensor], texts: list[str]
) -> None:
    snapshot = Bank.open(whole.bank).snapshot()
    newest = snapshot.adapter_of(snapshot.tasks[-1].name)
    expected = by_hand(whole.bank, (*newest.context, newest.digest), newest.digest, texts)
    found = api.predict(whole.bank, texts, PredictConfig(device="cpu"))
    assert len(newest.context) == len(snapshot.tasks) - 1
    assert [one.label for one in found] == [snapshot.tasks[-1].labels[k] for k in expected.argmax(-1).tolist()]
    assert [one.probability for one in found] == pytest.approx(expected.max(-1).values.tolist(), abs=1e-5)


def test_later_adapters_are_held_by_the_importance(whole: SimpleNamespace) -> None:
    snapshot = Bank.open(whole.bank).snapshot()
    penalties = [snapshot.adapter_of(task.name).penalties for task in snapshot.tasks]
    assert penalties == [{}, *[{"importance": 2000.0}] * (len(penalties) - 1)]


class Stop(SilentObserver):
    """Ctrl-C when so many rows are taken."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def advance(self, done: int, values: Any) -> None:
        if "loss" in values and done >= self.rows:
            raise KeyboardInterrupt


def test_a_stream_that_was_stopped_resumes_to_the_same_bytes(lab: Lab, whole: SimpleNamespace, tmp_path: Path) -> None:
    """By Ctrl-C in the second task, then by a bad row, whose line is named, and which is mended."""
    bank, config = tmp_path / "bank", TrainConfig(data=str(whole.data), **SETTINGS)
    end = whole.result.tasks[0].last_row
    with pytest.raises(KeyboardInterrupt):
        api.stream(bank, config, init=InitConfig(base=str(lab.base)), observer=Stop(end + 20))
    assert digests(bank) == digests(whole.bank)[:1]
    lines: list[Any] = rows()
    lines[whole.result.tasks[1].last_row + 2]["label"] = ""
    broken = write(tmp_path / "broken.jsonl", lines)
    with pytest.raises(DataError, match=rf"line {whole.result.tasks[1].last_row + 3}, column 'label'") as error:
        learn(lab, bank, broken, resume=True)
    assert "the 1 tasks found before it are in the bank" in str(error.value.unchanged)
    assert digests(bank) == digests(whole.bank)[:2]
    result = learn(lab, bank, whole.data, resume=True)
    assert digests(bank) == digests(whole.bank)
    assert result.rows == 200 - whole.result.tasks[1].last_row
    assert learn(lab, bank, whole.data, resume=True).tasks == ()


def test_other_rows_are_not_resumed(lab: Lab, whole: SimpleNamespace, tmp_path: Path) -> None:
    other = write(tmp_path / "other.jsonl", rows()[::-1])
    short = write(tmp_path / "short.jsonl", rows()[:50])
    before = digests(whole.bank)
    for data in (other, short):
        with pytest.raises(DataError, match="does not begin with the 200 rows"):
            learn(lab, whole.bank, data, resume=True)
    with pytest.raises(ConfigError, match=r"others are given: r was 2, batch_size was 4$"):
        learn(lab, whole.bank, whole.data, resume=True, settings={"r": 3, "batch_size": 8})
    tokens = Bank.open(whole.bank).snapshot().adapter_of("stream-1").config["max_length"]
    with pytest.raises(ConfigError, match=rf"others are given: max_length was {tokens}$"):
        learn(lab, whole.bank, whole.data, resume=True, settings={"max_length": 4})
    more = learn(lab, whole.bank, whole.data, resume=True, settings={"max_length": 100_000})
    assert more.tasks == (), "no text has more tokens than the base takes"
    assert digests(whole.bank) == before


def test_the_first_loss_is_that_of_the_untouched_base(lab: Lab, tmp_path: Path) -> None:
    """One batch and no plateau: plain transformers under the head that the seed draws."""
    from transformers import AutoModelForSequenceClassification

    lines = rows()[:12]
    data = write(tmp_path / "rows.jsonl", lines)
    result = learn(lab, tmp_path / "bank", data, settings={"batch_size": 64, "lora_dropout": 0.0})
    bank = Bank.open(tmp_path / "bank")
    blob = bank.snapshot().dataset("stream-1", "eval").blob
    held_out = set(from_parquet(bank.read_blob(blob)).texts)
    model = AutoModelForSequenceClassification.from_pretrained(lab.base, num_labels=2).eval()
    model.classifier = build_head(model, ["classifier"], 2, 0).modules["classifier"]
    losses = []
    for line in lines:
        if line["text"] not in held_out:
            ids = [0, *(4 + ord(letter) - ord("a") for letter in line["text"].split()), 2]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits[0].double()
            losses.append(-float(logits.log_softmax(-1)["ab".index(line["label"])]))
    assert result.tasks[0].loss == pytest.approx(sum(losses) / len(losses), abs=1e-6)


def test_a_stream_from_standard_input_prints_a_line_for_each_task(
    lab: Lab,
    whole: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items() if name != "set"]
    words += [word for one in SETTINGS["set"] for word in ("--set", one)]  # type: ignore[attr-defined]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(whole.data.read_bytes())))
    base = ["-b", str(tmp_path / "bank"), "stream", "--data", "-", "--base", str(lab.base), "--json"]
    assert main([*base, *words]) == 0
    *tasks, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert [task["name"] for task in tasks] == [task.name for task in whole.result.tasks]
    assert (last["rows"], last["left_over"]) == (200, 0)
    assert digests(tmp_path / "bank") == digests(whole.bank)


def test_more_rows_continue_the_stream(lab: Lab, whole: SimpleNamespace, tmp_path: Path) -> None:
    bank = Path(shutil.copytree(whole.bank, tmp_path / "bank"))
    count = len(whole.result.tasks)
    result = learn(lab, bank, write(tmp_path / "more.jsonl", rows()[:30]))
    assert result.tasks[0].name == f"stream-{count + 1}"
    assert result.tasks[0].new_labels == ()


def test_what_is_no_stream_for_this_bank_is_refused(
    lab: Lab, copy: Callable[..., Path], whole: SimpleNamespace, tmp_path: Path, make_lab: Callable[[str], Lab]
) -> None:
    with pytest.raises(ConfigError, match="have a head each"):
        learn(lab, copy("olora", 1), whole.data)
    with pytest.raises(NotFoundError, match="no stream to resume"):
        learn(lab, tmp_path / "none", whole.data, resume=True)
    with pytest.raises(DataError, match="holds no rows"):
        learn(lab, tmp_path / "none", write(tmp_path / "empty.jsonl", []))
    with pytest.raises(NotFoundError, match="there is no file"):
        learn(lab, tmp_path / "none", tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match="line 1: no column 'label'"):
        learn(lab, tmp_path / "none", write(tmp_path / "texts.jsonl", [{"text": "a b"}]))
    with pytest.raises(ConfigError, match="the base is a language model"):
        learn(make_lab("llama"), tmp_path / "none", whole.data)
    assert not (tmp_path / "none").exists()


def test_too_few_rows_make_no_task(lab: Lab, tmp_path: Path) -> None:
    one_label = [row for row in rows() if row["label"] == "a"][:8]
    result = learn(lab, tmp_path / "bank", write(tmp_path / "rows.jsonl", one_label))
    assert (result.tasks, result.left_over) == ((), 8)
    assert Bank.open(tmp_path / "bank").snapshot().tasks == ()


def test_savings_are_refused_before_a_row_is_read(lab: Lab, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", rows())
    with pytest.raises(ConfigError, match="a stream is learnt without savings"):
        learn(lab, tmp_path / "bank", data, settings={"savings": ("gradient-checkpointing",)})
    assert not (tmp_path / "bank").exists()


@pytest.mark.parametrize(("variant", "settings", "ratio"), [("lora", (), 1), ("lora-plus", ("lora-plus.ratio=4",), 4)])
def test_the_variant_says_how_fast_its_factors_learn(
    lab: Lab, tmp_path: Path, variant: str, settings: tuple[str, ...], ratio: float
) -> None:
    """One batch, so one step of AdamW, which moves each entry by its learning rate: ``lr g / (|g| + eps)``."""
    data, rate = write(tmp_path / "rows.jsonl", rows()[:12]), SETTINGS["learning_rate"]
    more = {"batch_size": 64, "lora_dropout": 0.0, "max_grad_norm": 0.0, "variant": variant, "set": settings}
    learn(lab, tmp_path / "bank", data, settings=more)
    (digest,) = digests(tmp_path / "bank")
    tensors = load_file(tmp_path / "bank" / "adapters" / digest / "adapter_model.safetensors")
    moved = torch.cat([tensor.flatten().abs() for name, tensor in tensors.items() if "lora_B" in name])
    assert float(moved.max()) == pytest.approx(ratio * rate, rel=1e-3)  # of the entries with the largest gradients
