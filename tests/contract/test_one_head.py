"""One head for all tasks (``--head shared``): each task grows it, and no task id is needed to answer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import ComposeConfig, EvalConfig, PredictConfig
from lorabank.core.errors import ConfigError, IncompatibleError
from lorabank.core.observer import SilentObserver
from lorabank.data.formats.parquet import from_parquet
from lorabank.models.tasks.heads import Head, grow_head
from lorabank.workflows.learning.one_head import grown_labels
from tests.contract.conftest import PLAIN, Lab, write_task

HEAD = "base_model.model.classifier"
STRATEGIES = ("olora", "isolated", "seqlora", "olora-distil")


def _add(lab: Lab, bank: Path, task: str, **config: Any) -> Any:
    return lab.add(bank, task, head="shared", **config)


def _bank(lab: Lab, strategy: str) -> Path:
    """Tasks "one" (part0, part1), "two" (part0 to part2) and "late" (part5 to part7), under one head; read only."""
    path = lab.folder / f"shared-{strategy}"
    if not path.exists():
        for task in ("one", "two"):
            _add(lab, path, task, strategy=strategy)
        rows = write_task(lab.folder / "late.jsonl", labels=3, seed=7)
        text = rows.read_text()
        for number in range(3):
            text = text.replace(f"part{number}", f"part{number + 5}")
        rows.write_text(text)
        api.add_task(
            path,
            "late",
            lab.settings("two", data=str(rows), strategy=strategy, head="shared"),
            observer=SilentObserver(),
        )
    return path


def _head(bank: Path, digest: str) -> tuple[torch.Tensor, torch.Tensor]:
    tensors = load_file(bank / "adapters" / digest / "adapter_model.safetensors")
    return tensors[f"{HEAD}.weight"], tensors[f"{HEAD}.bias"]


@pytest.fixture(params=STRATEGIES)
def strategy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.by_turns
def test_the_labels_of_each_task_come_behind_those_before(lab: Lab, strategy: str, adapters: Any) -> None:
    bank = _bank(lab, strategy)
    labels = [task.labels for task in Bank.open(bank).snapshot().tasks]
    assert labels[0] == ("part0", "part1")
    assert labels[1] == ("part0", "part1", "part2")
    assert labels[2] == (*labels[1], "part5", "part6", "part7")
    assert [len(_head(bank, one.digest)[1]) for one in adapters(bank)] == [2, 3, 6]


def test_a_head_begins_as_the_one_before_it_left_it(lab: Lab, tmp_path: Path, adapters: Any) -> None:
    """With a learning rate near 0 the first rows are those of the task before, and the new ones as they were drawn."""
    bank = Path(shutil.copytree(_bank(lab, "olora"), tmp_path / "bank"))
    rows = write_task(tmp_path / "more.jsonl", labels=7, seed=3, rows=70)
    config = lab.settings("two", data=str(rows), head="shared", learning_rate=1e-7, epochs=0.1)
    api.add_task(bank, "more", config, observer=SilentObserver())
    before, after = (_head(bank, one.digest) for one in adapters(bank)[2:])
    for old, new in zip(before, after, strict=True):
        assert torch.allclose(new[: len(old)], old, atol=1e-6)
    assert len(after[1]) == 8  # part3 and part4 are new
    new = after[0][len(before[0]) :]
    assert new.abs().max() > 1e-4
    assert not torch.allclose(new[0], new[1])


@pytest.mark.parametrize("state", ["now", "learnt"])
def test_every_task_is_answered_by_the_head_that_goes_with_the_adapters(
    lab: Lab, strategy: str, state: Any, by_hand: Callable[..., torch.Tensor], adapters: Any, texts: list[str]
) -> None:
    bank = _bank(lab, strategy)
    records, tasks = adapters(bank), Bank.open(bank).snapshot().tasks
    for task, own in zip(tasks, records, strict=True):
        answers = own if state == "learnt" else records[-1]
        labels = tasks[records.index(answers)].labels
        expected = by_hand(bank, (*answers.context, answers.digest), answers.digest, texts)
        found = api.predict(bank, texts, PredictConfig(task=task.name, state=state, device="cpu"))
        assert [one.label for one in found] == [labels[i] for i in expected.argmax(-1).tolist()]
        assert [one.probability for one in found] == pytest.approx(expected.max(-1).values.tolist(), abs=1e-5)
        assert {one.task for one in found} == {answers.task}


def test_no_task_id_is_needed(lab: Lab, strategy: str, texts: list[str]) -> None:
    bank = _bank(lab, strategy)
    answers = [
        [(one.label, one.probability) for one in api.predict(bank, texts, PredictConfig(task=task, device="cpu"))]
        for task in (None, "one", "two", "late")
    ]
    assert answers[0] == answers[1] == answers[2] == answers[3]


def test_the_matrix_uses_the_head_of_each_stage(lab: Lab, by_hand: Callable[..., torch.Tensor], adapters: Any) -> None:
    path = _bank(lab, "olora")
    bank = Bank.open(path)
    records, tasks = adapters(path), bank.snapshot().tasks
    (report,) = api.evaluate(path, EvalConfig(forgetting_matrix=True, device="cpu"), SilentObserver())
    for i, stage in enumerate(records):
        for j in range(i + 1):
            rows = from_parquet(bank.read_blob(bank.snapshot().dataset(tasks[j].name, "eval").blob))
            expected = by_hand(path, (*stage.context, stage.digest), stage.digest, list(rows.texts)).argmax(-1)
            right = [tasks[i].labels[k] == label for k, label in zip(expected.tolist(), rows.labels, strict=True)]
            assert report.values[i + 1][j] == pytest.approx(sum(right) / len(right))


def test_an_export_is_what_answers(lab: Lab, adapters: Any, texts: list[str], tmp_path: Path) -> None:
    from peft import PeftModel

    bank = _bank(lab, "olora")
    newest = adapters(bank)[-1]
    api.export(bank, "one", tmp_path / "one", state="now")
    model, answer = PLAIN["bert"](lab.base, bank, newest.digest)
    for part in (model.classifier.weight, model.classifier.bias):
        torch.nn.init.zeros_(part)
    PeftModel.from_pretrained(model, str(tmp_path / "one")).eval()
    with torch.no_grad():
        expected = torch.stack([answer(text) for text in texts]).softmax(-1)
    found = api.predict(bank, texts, PredictConfig(task="one", device="cpu"))
    assert [one.probability for one in found] == pytest.approx(expected.max(-1).values.tolist(), abs=1e-5)


def test_a_merge_answers_with_the_newest_head_and_a_router_with_its_tasks_own(
    lab: Lab, by_hand: Callable[..., torch.Tensor], adapters: Any, texts: list[str], tmp_path: Path
) -> None:
    bank = Path(shutil.copytree(_bank(lab, "isolated"), tmp_path / "bank"))
    records, tasks = adapters(bank), {task.name: task for task in Bank.open(bank).snapshot().tasks}
    quiet = SilentObserver()
    api.compose(bank, ComposeConfig(mode="merged", name="sum", device="cpu"), quiet)
    api.compose(bank, ComposeConfig(mode="routed", name="routes", device="cpu"), quiet)
    api.compose(bank, ComposeConfig(mode="gated", name="gate", device="cpu", set=("epochs=1",)), quiet)
    expected = by_hand(bank, [one.digest for one in records], records[-1].digest, texts)
    for task in (None, "one"):
        found = api.predict(bank, texts, PredictConfig(composition="sum", task=task, device="cpu"))
        assert [one.probability for one in found] == pytest.approx(expected.max(-1).values.tolist(), abs=1e-5)
        assert {one.task for one in found} == {"late"}
    for text, one in zip(
        texts, api.predict(bank, texts, PredictConfig(composition="routes", device="cpu")), strict=True
    ):
        own = next(record for record in records if record.task == one.task)
        (row,) = by_hand(bank, [own.digest], own.digest, [text])
        assert one.label == tasks[one.task].labels[int(row.argmax())]
    reports = api.evaluate(bank, EvalConfig(all=True, forgetting_matrix=True, device="cpu"), quiet)
    assert [report.subject for report in reports] == ["as-trained", "sum", "routes", "gate"]
    assert {one.task for one in api.predict(bank, texts, PredictConfig(composition="gate", device="cpu"))} == {"late"}


def test_rows_that_are_replayed_are_judged_by_the_shared_head(lab: Lab, adapters: Any) -> None:
    """An absent label's bias has its mean probability as gradient, so it falls, unless its rows come again."""
    fell = {}
    for strategy in ("isolated", "joint"):
        bank = _bank(lab, strategy)
        before, after = (_head(bank, one.digest)[1] for one in adapters(bank)[1:])
        fell[strategy] = before - after[: len(before)]
    assert bool((fell["isolated"] > 0).all())
    assert fell["joint"].mean() < fell["isolated"].mean() / 2


def test_a_bank_has_heads_of_one_kind(lab: Lab, copy: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="have a head each, and the new task would have the shared head"):
        _add(lab, copy("olora", 1), "two")
    bank = Path(shutil.copytree(_bank(lab, "olora"), tmp_path / "shared"))
    before = Bank.open(bank).snapshot()
    with pytest.raises(ConfigError, match="share one head, and the new task would have a head of its own"):
        lab.add(bank, "three")
    with pytest.raises(ConfigError, match="share one head"):
        api.plan_task(bank, "three", lab.settings("three"))
    api.export(bank, "one", tmp_path / "one", own=True)
    with pytest.raises(ConfigError, match="share one head"):
        api.import_adapter(bank, tmp_path / "one", "three", config=lab.settings("one"), observer=SilentObserver())
    assert Bank.open(bank).snapshot() == before


def test_what_needs_a_head_for_each_task_is_refused(lab: Lab) -> None:
    bank = _bank(lab, "olora")
    for config in (EvalConfig(forward_transfer=True, device="cpu"), EvalConfig(head_from="gaussian", device="cpu")):
        with pytest.raises(ConfigError, match="needs a head for each task"):
            api.evaluate(bank, config, SilentObserver())


def test_a_language_model_has_no_head_to_share(make_lab: Callable[[str], Lab], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--head shared is for classifiers"):
        _add(make_lab("llama"), tmp_path / "bank", "one")
    assert not (tmp_path / "bank").exists()


def test_a_plan_counts_the_head_of_all_labels(lab: Lab) -> None:
    plan = api.plan_task(_bank(lab, "olora"), "three", lab.settings("three", head="shared"))
    assert plan.labels == ("part0", "part1", "part2", "part5", "part6", "part7")


def test_without_its_newest_task_the_head_is_the_one_before(lab: Lab, adapters: Any, tmp_path: Path) -> None:
    bank = Path(shutil.copytree(_bank(lab, "isolated"), tmp_path / "bank"))
    api.remove(bank, "late")
    assert {one.task for one in api.predict(bank, ["a b"], PredictConfig(device="cpu"))} == {"two"}


def _plain(labels: int) -> Head:
    torch.manual_seed(labels)
    return Head({"dense": torch.nn.Linear(4, 4), "out": torch.nn.Linear(4, labels)}, labels)


def test_a_head_grows_by_its_new_rows_alone() -> None:
    small, large = _plain(2), _plain(5)
    drawn = {name: tensor.clone() for name, tensor in large.state().items()}
    grow_head(large, small.state())
    grown, old = large.state(), small.state()
    assert torch.equal(grown["dense.weight"], old["dense.weight"])
    assert torch.equal(grown["dense.bias"], old["dense.bias"])
    for name in ("out.weight", "out.bias"):
        assert torch.equal(grown[name], torch.cat([old[name], drawn[name][2:]]))
    with pytest.raises(IncompatibleError, match="could grow into"):
        grow_head(_plain(2), large.state())
    with pytest.raises(IncompatibleError, match=r"'dense\.bias'"):
        grow_head(_plain(2), {name: one for name, one in old.items() if name != "dense.bias"})


def test_labels_keep_their_places() -> None:
    assert grown_labels(None, ("b", "a")) == ("b", "a")


def test_old_heads_cannot_be_asked_where_there_are_none(lab: Lab, tmp_path: Path) -> None:
    bank = Path(shutil.copytree(_bank(lab, "seqlora"), tmp_path / "bank"))
    rows = write_task(tmp_path / "more.jsonl", labels=2, seed=3)
    config = lab.settings("two", data=str(rows), head="shared", strategy="lwf")
    with pytest.raises(ConfigError, match="this bank's tasks share one"):
        api.add_task(bank, "more", config, observer=SilentObserver())
