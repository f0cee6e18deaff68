"""References in a sequence: all weights trained in memory, measured like a strategy, stored nowhere."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lorabank_cli.main import main
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from lorabank import api
from lorabank.core.config import TrainConfig
from lorabank.core.errors import ConfigError
from lorabank.core.observer import SilentObserver
from lorabank.core.records import TaskRecord
from lorabank.core.shelves import REFERENCES
from lorabank.models.answering.base import AnswerForm
from lorabank.models.bases.loading import describe_base
from lorabank.models.bases.open_base import OpenBase
from lorabank.models.bases.resolving import resolve_base
from lorabank.sequences.references.learner import InMemory, Learner
from lorabank.sequences.results import SequenceResult
from lorabank.workflows.task_data import load_data

TASKS = {"one": ("no", "yes"), "two": ("x", "y", "z")}
EXPERIMENT = """
name = "letters"
base = "base"
orders = [["one", "two"], ["two", "one"]]
strategies = ["seqlora", "full"]
selection = "not chosen"

[train]
epochs = 3.0
r = 2
batch_size = 8
learning_rate = 0.01
device = "cpu"
max_length = 16
set = ["*.max_new_tokens=8"]

[strategy.full]
learning_rate = 0.003

[tasks.one]
data = "one.jsonl"
eval_data = "one-test.jsonl"

[tasks.two]
data = "two.jsonl"
eval_data = "two-test.jsonl"

[[compositions]]
mode = "prototype"

[evaluation]
device = "cpu"
forward_transfer = true
"""


class Told(SilentObserver):
    """Keeps what is told; presses Ctrl-C at the n-th step of the n-th job."""

    def __init__(self, job: int = 0, step: int = 0) -> None:
        self.notices: list[str] = []
        self.jobs: list[str] = []
        self._at = (job, step)

    def notice(self, message: str) -> None:
        self.notices.append(message)

    def start(self, what: str, total: int) -> None:
        self.jobs.append(what)

    def advance(self, done: int, values: Mapping[str, float]) -> None:
        if (len(self.jobs), done) == self._at:
            raise KeyboardInterrupt


def write_rows(path: Path, labels: tuple[str, ...], rows: int, seed: int) -> None:
    chance = random.Random(seed)
    size = 26 // len(labels)
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    lines = [
        {"text": " ".join(chance.choices(alphabet[k * size : (k + 1) * size], k=8)), "label": labels[k]}
        for k in (row % len(labels) for row in range(rows))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, save_base: Callable[..., Path]) -> Path:
    """A folder with a base, rows, the file ``letters.toml``, and its whole run in ``letters``."""
    folder = tmp_path_factory.mktemp("references")
    save_base(folder / "base")
    for seed, (name, labels) in enumerate(TASKS.items()):
        write_rows(folder / f"{name}.jsonl", labels, 24, seed)
        write_rows(folder / f"{name}-test.jsonl", labels, 12, 10 + seed)
    (folder / "letters.toml").write_text(EXPERIMENT)
    api.run_sequence(folder / "letters.toml", out=folder / "letters", observer=SilentObserver())
    return folder


@pytest.fixture
def fresh(lab: Path, tmp_path: Path) -> Path:
    """The same without the run."""
    return Path(shutil.copytree(lab, tmp_path / "lab", ignore=shutil.ignore_patterns("letters")))


def again(folder: Path, observer: SilentObserver | None = None, **more: Any) -> SequenceResult:
    settings = {"out": folder / "letters", "observer": observer or SilentObserver()} | more
    return api.run_sequence(folder / "letters.toml", **settings)


def changed(file: Path, *changes: tuple[str, str]) -> Path:
    text = file.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)
    return file


def test_it_fills_the_same_matrix_and_says_that_it_cannot_be_stored(lab: Path) -> None:
    result = again(lab, told := Told())
    assert told.jobs == [], "everything was measured before"
    runs = {(run.order, run.strategy): run.report for run in result.runs if run.report.subject == "as-trained"}
    for order in (1, 2):
        adapters, whole = runs[order, "seqlora"], runs[order, "full"]
        assert (whole.tasks, whole.counts, whole.metric) == (adapters.tasks, adapters.counts, adapters.metric)
        values = np.array(whole.values, float)
        assert values.shape == (3, 2)
        assert not np.isnan(values).any()
        assert ((np.array(whole.low, float) <= values) & (values <= np.array(whole.high, float))).all()
        assert whole.values[0] == adapters.values[0], "both begin with the untrained base and the same heads"
        assert whole.scalars.keys() == adapters.scalars.keys()
        assert whole.scalars["average_accuracy"] == pytest.approx(values[-1].mean())
        assert whole.scalars["backward_transfer"] == pytest.approx(values[2, 0] - values[1, 0])
        assert whole.labels.keys() == set(TASKS)
        assert whole.settings["dtype"] == "float32"
    assert {row.strategy: row.mode for row in result.rows if row.answers == "as-trained"} == {
        "seqlora": "as-trained",
        "full": "not storable",
    }
    assert not any(run.strategy == "full" and run.report.subject != "as-trained" for run in result.runs)
    page = (lab / "letters/table.md").read_text(encoding="utf-8")
    assert "| full | as-trained (not storable) | given | 2 |" in page
    assert "3 epochs, learning rate 0.003 (constant), batch 8, all weights, not storable, 16 tokens" in page
    assert (lab / "letters/plots/full/as-trained.png").exists()


def test_the_scores_alone_are_kept(lab: Path) -> None:
    assert not list((lab / "letters/banks").glob("*/full"))
    files = [path.name for path in (lab / "letters/references/order1/full/seed0").rglob("*") if path.is_file()]
    assert sorted(files) == ["manifest.json", "run.json"]


def test_it_learns(lab: Path) -> None:
    result = again(lab)
    (row,) = (row for row in result.rows if row.strategy == "full")
    assert row.scalars["learning_accuracy"].mean > 0.6


@pytest.mark.parametrize(("job", "step"), [
    (2, 5), (5, 2), *(pytest.param(*one, marks=pytest.mark.slow) for one in ((1, 1), (3, 1), (4, 4)))
])  # fmt: skip
def test_a_run_that_was_stopped_gives_what_it_would_have_given(lab: Path, fresh: Path, job: int, step: int) -> None:
    """While it scores the base (1), learns (2, 4), or scores what it learnt (3, 5)."""
    with pytest.raises(KeyboardInterrupt):
        again(fresh, Told(job, step), only=("full",))
    plan = api.plan_sequence(fresh / "letters.toml", out=fresh / "letters", only=("full",))
    assert plan.cells[0].learnt == (() if job < 3 else ("one",) if job < 5 else ("one", "two"))
    result, whole = again(fresh, only=("full",)), again(lab, only=("full",))
    for one, other in zip(result.runs, whole.runs, strict=True):
        for name in ("values", "low", "high", "counts", "scalars"):
            assert getattr(one.report, name) == getattr(other.report, name), name


def test_the_state_of_a_mixture_holds_every_expert_once(make_language_model, tmp_path: Path) -> None:
    sizes = {"num_key_value_heads": 1, "num_local_experts": 3, "num_experts_per_tok": 2}
    folder = make_language_model("mixtral", **sizes)
    base = OpenBase(describe_base(resolve_base(str(folder)), "CAUSAL_LM"))
    state = Learner(REFERENCES.load("full"), base, "cpu", tmp_path).state()
    assert sum(one.numel() for one in state.values()) == AutoModelForCausalLM.from_pretrained(folder).num_parameters()


def test_it_is_scored_as_plain_transformers_answers(lab: Path) -> None:
    base = OpenBase(describe_base(resolve_base(str(lab / "base"))))
    config = TrainConfig(
        data=str(lab / "two.jsonl"), eval_data=str(lab / "two-test.jsonl"), batch_size=8, epochs=3, learning_rate=3e-3,
        device="cpu", max_length=16,
    )  # fmt: skip
    learner, data = Learner(REFERENCES.load("full"), base, "cpu", lab / "work"), load_data(config, base)
    form = AnswerForm(data.labels, 16)
    before = {name: one.clone() for name, one in learner.state().items()}
    head = learner.learn(config, data, 0, SilentObserver()).head
    said = InMemory(learner, learner.answerer([form], [head], [0], 5), [form], 1, None).answer(
        1, TaskRecord("two", 1, "SEQ_CLS", data.labels, "ready"), data.eval
    )
    model = AutoModelForSequenceClassification.from_pretrained(lab / "base", num_labels=3).eval()
    missing = model.load_state_dict({**learner.state(), **head}, strict=False)
    assert not missing.unexpected_keys
    tokenizer = AutoTokenizer.from_pretrained(lab / "base")
    with torch.no_grad():
        shares = [model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1) for text in data.eval.texts]
    assert list(said.answers) == [data.labels[int(one.argmax())] for one in shares]
    assert said.probabilities == pytest.approx([float(one.max()) for one in shares], abs=1e-5)
    learner.restore(before)
    assert all(torch.equal(one, before[name]) for name, one in learner.state().items())


def test_a_bank_refuses_it(lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["add-task", "one", "--data", str(lab / "one.jsonl"), "--base", str(lab / "base"), "--strategy", "full"]
    assert main([*words, "--bank", str(tmp_path / "bank")]) == 2
    said = capsys.readouterr().err
    assert "'full' is not offered: it trains weights of the base itself and not an adapter" in said
    assert "'sequence run' measures it" in said
    assert not (tmp_path / "bank").exists()
    with pytest.raises(ConfigError, match="there is no strategy 'full': it trains"):
        api.add_task(tmp_path / "bank", "one", TrainConfig(data=str(lab / "one.jsonl"), strategy="full"))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("learning_rate = 0.003", "r = 4"), "[strategy.full] r: full trains the base's own weights, and no adapter"),
        (
            ('mode = "prototype"', 'mode = "prototype"\non = ["full"]'),
            "on 'full', which leaves no adapters to compose",
        ),
        (("learning_rate = 0.003", 'set = ["replay_rows=3"]'), "there is no setting 'replay_rows'"),
        (('device = "cpu"\nmax', 'device = "cpu"\nhead = "shared"\nmax'), "full gives each task a head of its own"),
        (('"full"]', '"fullx"]'), "there is no strategy 'fullx'. Did you mean 'full'?"),
    ],
)
def test_what_says_nothing_to_it_is_refused(fresh: Path, change: tuple[str, str], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        api.plan_sequence(changed(fresh / "letters.toml", change))
    assert problem in caught.value.message


def test_a_variant_of_it_and_its_own_learning_rate(fresh: Path) -> None:
    """That of ``[train]`` is an adapter's."""
    table = '[strategy.whole]\nstrategy = "full"\nepochs = 1.0\n\n[tasks.one]\nlearning_rate = 0.5'
    file = changed(fresh / "letters.toml", ('"full"]', '"full", "whole"]'), ("[tasks.one]", table))
    plan = api.plan_sequence(file)
    settings = {one["name"]: one["groups"][0]["settings"] for one in plan.card["training"]}
    assert settings["whole"]["learning_rate"] == 2e-5
    assert (settings["whole"]["epochs"], settings["full"]["epochs"]) == (1.0, 3.0)
    assert settings["full"]["learning_rate"] == 0.003
    assert not {"r", "target_modules", "variant"} & settings["whole"].keys()
    assert {one["name"]: one.get("trained") for one in plan.card["training"]} == {
        "seqlora": None,
        "full": "all weights",
        "whole": "all weights",
    }
    assert asdict(plan.cells[1])["to_compose"] == ()


def test_a_language_model_learns_whole(tmp_path: Path, save_language_model: Callable[..., Path]) -> None:
    """Its tasks have no heads, and the weights of its first and last layer are one tensor where they are tied."""
    save_language_model(tmp_path / "base", "llama", tie_word_embeddings=True)
    for seed, (name, labels) in enumerate(TASKS.items()):
        write_rows(tmp_path / f"{name}.jsonl", labels, 24, seed)
        write_rows(tmp_path / f"{name}-test.jsonl", labels, 12, 10 + seed)
    text = EXPERIMENT.replace('strategies = ["seqlora", "full"]', 'strategies = ["full"]')
    text = text.replace("max_length = 16", "max_length = 64").replace(
        '[["one", "two"], ["two", "one"]]', '[["one", "two"]]'
    )
    (tmp_path / "letters.toml").write_text(text.replace("forward_transfer = true", ""))
    told = Told()
    result = again(tmp_path, told)
    (run,) = result.runs
    assert run.report.values[0] == [None, None]
    assert [sum(one is not None for one in row) for row in run.report.values[1:]] == [1, 2]
    assert run.report.scalars["learning_accuracy"] > 0.6
    with pytest.raises(KeyboardInterrupt):
        again(tmp_path, Told(3, 2), out=tmp_path / "other")
    resumed = again(tmp_path, out=tmp_path / "other")
    assert resumed.runs[0].report.values == run.report.values


def test_weights_that_a_merger_does_not_take_are_named_with_their_table(fresh: Path) -> None:
    merged = 'mode = "merged"\nmerger = "slao"\nweights = "one=1"'
    with pytest.raises(ConfigError, match=r"compositions.. 1 weights: merger slao: there is no setting 'weights'"):
        api.plan_sequence(changed(fresh / "letters.toml", ('mode = "prototype"', merged)))
