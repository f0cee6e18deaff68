"""``--task T --state S`` is one state wherever it stands: predict, export, and what plain PEFT makes of the export."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import ComposeConfig, EvalConfig, PredictConfig
from lorabank.core.errors import ConfigError
from lorabank.core.records import AdapterRecord
from lorabank.core.shelves import STRATEGIES
from lorabank.data.formats.parquet import from_parquet
from tests.contract.conftest import KINDS, PLAIN, Attended, Lab

STATES = ("now", "learnt")


@pytest.fixture(scope="session", params=KINDS)
def lab(request: pytest.FixtureRequest, make_lab: Any) -> Lab:
    made: Lab = make_lab(request.param)
    return made


@pytest.fixture(params=sorted(STRATEGIES))
def strategy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _answers(bank: Path, texts: list[str], task: str, **question: Any) -> tuple[list[str], list[float]]:
    found = api.predict(bank, texts, PredictConfig(task=task, device="cpu", **question))
    assert {one.task_id for one in found} == {"given"}
    assert {one.state for one in found} == {question.get("state", "composition" if question else "now")}
    return [one.label for one in found], [float(one.probability or 0) for one in found]


def _adapters_of(state: str, task: AdapterRecord, newest: AdapterRecord) -> AdapterRecord:
    """Whose state answers in a bank of two tasks of one strategy."""
    return task if state == "learnt" or task.strategy == "isolated" else newest


def _by_hand(bank: Path, adapter: AdapterRecord) -> Any:
    """What `by_hand` takes for the state that training an adapter left."""
    active = (*adapter.context, adapter.digest)
    if "selector" not in adapter.objects:
        return active
    return Attended(active, load(Bank.open(bank).read_blob(adapter.objects["selector"])))


def _in_peft(lab: Lab, folder: Path, bank: Path, head_of: str, texts: list[str]) -> torch.Tensor:
    """Probabilities ``[n, labels]`` of an exported folder on the plain base, by PEFT alone."""
    from peft import PeftModel

    model, answer = PLAIN[lab.kind](lab.base, bank, head_of)
    for name, parameter in model.named_parameters():
        if lab.kind == "bert" and name.startswith("classifier"):
            torch.nn.init.zeros_(parameter)  # the folder must bring the head
    PeftModel.from_pretrained(model, str(folder)).eval()
    with torch.no_grad():
        return torch.stack([answer(text) for text in texts]).softmax(-1)


@pytest.mark.by_turns
@pytest.mark.parametrize("state", STATES)
def test_predict_answers_as_the_state_says(lab, adapters, by_hand, texts, strategy: str, state: str) -> None:
    bank = lab.bank(strategy, 2)
    records = adapters(bank)
    for name, own in zip(("one", "two"), records, strict=True):
        expected = by_hand(bank, _by_hand(bank, _adapters_of(state, own, records[-1])), own.digest, texts)
        labels = Bank.open(bank).snapshot().task(name).labels
        said, probabilities = _answers(bank, texts, name, state=state)
        assert said == [labels[i] for i in expected.argmax(-1).tolist()]
        assert probabilities == pytest.approx(expected.max(-1).values.tolist(), abs=1e-5)
    assert _answers(bank, texts, "one") == _answers(bank, texts, "one", state="now")


@pytest.mark.by_turns
@pytest.mark.parametrize("state", STATES)
def test_plain_peft_answers_with_an_export_as_predict_does(
    lab, adapters, texts, strategy: str, state: str, tmp_path: Path
) -> None:
    bank = lab.bank(strategy, 2)
    records = adapters(bank)
    for name, own in zip(("one", "two"), records, strict=True):
        folder = tmp_path / name
        if "selector" in _adapters_of(state, own, records[-1]).objects:
            with pytest.raises(ConfigError, match="attention over several adapters"):
                api.export(bank, name, folder, state=state)
            assert not folder.exists()
            continue
        result = api.export(bank, name, folder, state=state)
        assert result.state == state
        assert result.note.startswith(f"state {state}: ")
        found = _in_peft(lab, folder, bank, own.digest, texts)
        labels = Bank.open(bank).snapshot().task(name).labels
        said, probabilities = _answers(bank, texts, name, state=state)
        assert said == [labels[i] for i in found.argmax(-1).tolist()]
        assert probabilities == pytest.approx(found.max(-1).values.tolist(), abs=1e-5)


@pytest.mark.by_turns
@pytest.mark.parametrize("state", STATES)
def test_eval_of_a_task_scores_what_predict_says(lab, strategy: str, state: str, tmp_path: Path) -> None:
    path = Path(shutil.copytree(lab.bank(strategy, 2), tmp_path / "bank"))
    bank = Bank.open(path)
    for name in ("one", "two"):
        rows = from_parquet(bank.read_blob(bank.snapshot().dataset(name, "eval").blob))
        said, _ = _answers(path, list(rows.texts), name, state=state)
        (report,) = api.evaluate(path, EvalConfig(task=name, state=state, device="cpu"))  # type: ignore[arg-type]
        assert (report.state, report.tasks, report.counts) == (state, (name,), [len(rows)])
        right = sum(one == gold for one, gold in zip(said, rows.labels, strict=True))
        assert report.values == [[None], [right / len(rows)]]
        assert report.scalars["average_accuracy"] == right / len(rows)


def test_eval_of_a_task_is_a_cell_of_the_matrix(copy) -> None:
    bank = copy("olora", 2)
    (matrix,) = api.evaluate(bank, EvalConfig(forgetting_matrix=True, device="cpu"))
    (now,) = api.evaluate(bank, EvalConfig(task="one", device="cpu"))
    (learnt,) = api.evaluate(bank, EvalConfig(task="one", state="learnt", device="cpu"))
    assert (now.computed, learnt.computed) == (0, 0)
    assert (now.values[1], learnt.values[1]) == (matrix.values[2][:1], matrix.values[1][:1])


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"state": "learnt"}, "applies to one task"),
        ({"task": "one", "all": True}, "--all scores something else"),
        ({"task": "one", "forgetting_matrix": True}, "--forgetting-matrix scores something else"),
        ({"task": "one", "compositions": ("routed",)}, "--composition scores something else"),
        ({"task": "one", "head_from": "kmeans"}, "--head-from scores something else"),
    ],
)
def test_eval_of_a_task_is_asked_alone(lab, config: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        api.evaluate(lab.bank("olora", 2), EvalConfig(**config))


def test_the_states_differ_where_later_tasks_count(copy, texts) -> None:
    bank = copy("olora", 2)
    now, learnt = (_answers(bank, texts, "one", state=state)[1] for state in STATES)
    assert max(abs(a - b) for a, b in zip(now, learnt, strict=True)) > 1e-4
    api.remove(bank, "two")
    assert _answers(bank, texts, "one")[1] == pytest.approx(learnt, abs=1e-6)


def test_with_a_task_no_router_picks_the_adapters(copy, texts) -> None:
    """Each text is answered as the routed composition answers the texts that it routes there."""
    bank = copy("olora", 2)
    api.compose(bank, ComposeConfig(mode="prototype", name="routed", set=("clusters_per_task=2",), device="cpu"))
    routed = api.predict(bank, texts, PredictConfig(composition="routed", device="cpu"))
    assert {one.task for one in routed} == {"one", "two"}
    for task in ("one", "two"):
        given = api.predict(bank, texts, PredictConfig(composition="routed", task=task, device="cpu"))
        assert {one.composition for one in given} == {"routed"}
        there = [(a, b) for a, b in zip(routed, given, strict=True) if a.task == task]
        assert [b.label for _, b in there] == [a.label for a, _ in there]
        assert [b.probability for _, b in there] == pytest.approx([a.probability for a, _ in there], abs=1e-5)
        learnt = _answers(bank, texts, task, state="learnt")
        assert [one.label for one in given] == learnt[0]
        assert [one.probability for one in given] == pytest.approx(learnt[1], abs=1e-5)


def test_a_composition_is_a_state_of_its_own(copy, lab, texts) -> None:
    bank = copy("olora", 2)
    api.compose(
        bank,
        ComposeConfig(mode="prototype", name="routed", tasks="one", set=("clusters_per_task=2",), device="cpu"),
    )
    for question in ({"composition": "routed", "task": "one"}, {"composition": "routed"}, {}):
        with pytest.raises(ConfigError, match="a state of its own"):
            api.predict(bank, texts, PredictConfig(state="now", **question))
    with pytest.raises(ConfigError, match="never routes to 'two'"):
        api.predict(bank, texts, PredictConfig(composition="routed", task="two"))


def test_own_is_no_state(copy, tmp_path: Path) -> None:
    bank = copy("olora", 2)
    assert api.export(bank, "two", tmp_path / "own", own=True).state is None
    with pytest.raises(ConfigError, match="--own and --state exclude each other"):
        api.export(bank, "two", tmp_path / "out", own=True, state="now")
    api.compose(bank, ComposeConfig(mode="manual", device="cpu"))
    assert api.export(bank, "manual", tmp_path / "manual").state is None
    with pytest.raises(ConfigError, match="--state is for tasks"):
        api.export(bank, "manual", tmp_path / "out", state="now")
    assert not (tmp_path / "out").exists()


def test_the_only_task_answers_where_nothing_is_named(lab, copy) -> None:
    """Where there are several, or a composition, nobody guesses."""
    texts, bank = ["a b c", "x y z"], copy("olora", 1)
    assert api.predict(bank, texts, PredictConfig()) == api.predict(bank, texts, PredictConfig(task="one"))
    with pytest.raises(ConfigError, match="no task is named"):
        api.predict(lab.bank("olora", 2), texts, PredictConfig())
