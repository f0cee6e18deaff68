"""Whole banks of text to text: every form of rows and way of scoring, evaluated, composed and asked."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import ComposeConfig, EvalConfig, GenerateConfig, InitConfig, PredictConfig, TrainConfig
from lorabank.core.errors import IncompatibleError
from lorabank.core.observer import SilentObserver
from lorabank.data.formats.parquet import from_parquet
from lorabank.training.layers.movement import Movement
from lorabank.workflows.results import Prediction

SETTINGS = {
    "eval_fraction": 0.5, "epochs": 1, "batch_size": 4, "r": 2, "lora_alpha": 8.0, "learning_rate": 1e-2,
    "keep_samples": 4, "clusters_per_task": 2, "device": "cpu", "set": ("*.max_new_tokens=4", "*.chat_template=none"),
}  # fmt: skip
WORDS = ["sun", "rain", "snow", "wind", "fog", "hail", "ice", "dew"]


def _row(form: str, i: int, word: str) -> dict[str, Any]:
    answer = "warm" if i % 2 else "cold"
    return {
        "classification": {"text": f"{word} {i}", "label": answer},
        "prompt-completion": {"prompt": f"What of {word}?", "completion": f"{answer} {word}"},
        "messages": {
            "messages": [
                {"role": "system", "content": "Be short."},
                {"role": "user", "content": f"Tell me about {word}"},
                {"role": "assistant", "content": f"It is {answer}."},
            ]
        },
        "alpaca": {"instruction": "Say the weather", "input": word, "output": answer},
        "sharegpt": {"conversations": [{"from": "human", "value": f"{word}?"}, {"from": "gpt", "value": answer}]},
        "text": {"text": f"The {word} came early, and it was {answer}."},
    }[form]


TASKS = {
    "labelled": ("classification", {}, "likelihood", "accuracy"),
    "pairs": ("prompt-completion", {}, "generation", "exact_match"),
    "chat": ("messages", {}, "generation", "exact_match"),
    "alpaca": ("alpaca", {"scoring": "likelihood"}, "likelihood", "accuracy"),
    "shared": ("sharegpt", {}, "generation", "exact_match"),
    "plain": ("text", {}, "perplexity", "inverse_perplexity"),
}
"""Task name to the form of its rows, what is set, how it is scored then, and its metric."""


class Told(SilentObserver):
    """Keeps notices and counts what is computed."""

    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, message: str) -> None:
        self.notices.append(message)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


class Place:
    """A tiny base, a bank on it with one task of every form or of some, and what its tasks' training said."""

    def __init__(self, kind: str, folder: Path, base: Path, tasks: Collection[str] = tuple(TASKS)) -> None:
        self.kind, self.folder, self.base, self.bank = kind, folder, base, folder / "bank"
        self.scores: dict[str, dict[str, Any]] = {}
        self.notices: dict[str, list[str]] = {}
        for name in tasks:
            form, changes, _, _ = TASKS[name]
            self.add(self.bank, name, [_row(form, i, word) for i, word in enumerate(WORDS)], **changes)

    def add(self, bank: Path, name: str, rows: list[dict[str, Any]], **config: Any) -> Any:
        data = write(self.folder / f"{name}.jsonl", rows)
        told = Told()
        settings = TrainConfig(**({"data": data} | SETTINGS | config))
        result = api.add_task(bank, name, settings, init=InitConfig(base=str(self.base)), observer=told)
        self.scores[name], self.notices[name] = result.score, told.notices
        return result

    def merged(self, tasks: Collection[str] = tuple(TASKS)) -> Any:
        """Plain transformers with all adapters added, or those of some tasks, and its tokenizer."""
        from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

        auto = AutoModelForSeq2SeqLM if self.kind == "t5" else AutoModelForCausalLM
        model = auto.from_pretrained(self.base).eval()
        snapshot = Bank.open(self.bank).snapshot()
        with torch.no_grad():
            for task in [one for one in snapshot.tasks if one.name in tasks]:
                tensors = load_file(self.bank / "adapters" / task.adapter / "adapter_model.safetensors")
                for key, a in tensors.items():
                    if ".lora_A." in key:
                        module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                        model.get_submodule(module).weight += 4.0 * tensors[key.replace("lora_A", "lora_B")] @ a
        return model, AutoTokenizer.from_pretrained(self.base)

    def rows(self, task: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        bank = Bank.open(self.bank)
        rows = from_parquet(bank.read_blob(bank.snapshot().dataset(task, "eval").blob))
        return rows.texts, rows.labels


@pytest.fixture(scope="module", params=["llama", "t5"])
def place(request: Any, tmp_path_factory: Any, save_language_model: Callable[..., Path]) -> Place:
    folder = tmp_path_factory.mktemp(request.param)
    return Place(request.param, folder, save_language_model(folder / "base", request.param))


@pytest.fixture
def mine(place: Place, tmp_path: Path) -> Path:
    """A copy of the bank, to change."""
    return Path(shutil.copytree(place.bank, tmp_path / "bank"))


def encoded(place: Place, tokenizer: Any, prompt: str) -> list[int]:
    """A prompt's tokens, with <s> once in front of a causal one and </s> behind an encoder's."""
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if place.kind == "t5":
        return [*ids, 2]
    return ids if ids[:1] == [0] else [0, *ids]


def plainly_generated(place: Place, prompt: str, tokens: int = 4, adapters: Collection[str] = tuple(TASKS)) -> str:
    model, tokenizer = place.merged(adapters)
    ids = torch.tensor([encoded(place, tokenizer, prompt)])
    out = model.generate(ids, do_sample=False, max_new_tokens=tokens, eos_token_id=2, pad_token_id=1)[0]
    return str(tokenizer.decode(out[1 if place.kind == "t5" else ids.shape[1] :], skip_special_tokens=True).strip())


def said(predictions: tuple[Prediction, ...]) -> list[str]:
    return [one.label for one in predictions]


# -------------------------------------------------------------------------------------------------------- add-task


@pytest.mark.by_turns
@pytest.mark.parametrize("task", TASKS)
def test_every_form_becomes_a_task(place: Place, task: str) -> None:
    form, _, scoring, metric = TASKS[task]
    snapshot = Bank.open(place.bank).snapshot()
    record, adapter = snapshot.task(task), snapshot.adapter_of(task)
    assert (adapter.config["format"], adapter.config["scoring"]) == (form, scoring)
    assert record.task_type == ("SEQ_2_SEQ_LM" if place.kind == "t5" else "CAUSAL_LM")
    assert record.labels == (("cold", "warm") if scoring == "likelihood" else ())
    template = "{text}\nOption: cold, warm\nAnswer:" if form == "classification" else None
    assert record.prompt_template == template
    assert place.scores[task]["metric"] == metric
    assert place.scores[task]["n"] == 4
    assert place.scores[task]["low"] <= place.scores[task]["value"] <= place.scores[task]["high"]


def test_what_is_learnt_is_told_before_it_is_learnt(place: Place) -> None:
    (told,) = (line for line in place.notices["chat"] if line.startswith("rows of the form"))
    assert told.startswith(
        "rows of the form messages, put into the base's chat template, scored by generation; the first: "
    )
    assert "<|system|>\\nBe short.</s>\\n<|user|>\\nTell me about" in told
    assert told.endswith('-> "It is cold."') or told.endswith('-> "It is warm."')


def test_the_bank_is_whole(place: Place) -> None:
    assert Bank.open(place.bank).verify(full=True) == []


# ------------------------------------------------------------------------------------------------------------ eval


def test_scores_of_different_metrics_stand_in_one_matrix_and_are_kept(mine: Path) -> None:
    told = Told()
    (report,) = api.evaluate(mine, EvalConfig(device="cpu"), told)
    (notice,) = told.notices
    assert "different metrics" in notice
    assert "labelled by accuracy, pairs by exact_match" in notice
    assert "plain by inverse_perplexity" in notice
    assert report.metric == "accuracy, exact_match, inverse_perplexity"
    assert all(0 <= value <= 1 for value in report.values[-1])
    (again,) = api.evaluate(mine, EvalConfig(device="cpu"), told)
    assert (again.computed, again.cached) == (0, 6)
    assert again.values == report.values


def test_perplexity_is_that_of_plain_transformers(place: Place, mine: Path) -> None:
    (report,) = api.evaluate(mine, EvalConfig(device="cpu"))
    model, tokenizer = place.merged()
    total, tokens = 0.0, 0
    prompts, texts = place.rows("plain")
    assert set(prompts) == {""}
    for text in texts:
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], 2]
        with torch.no_grad():
            if place.kind == "t5":
                loss = model(input_ids=torch.tensor([[2]]), labels=torch.tensor([ids])).loss
            else:
                loss = model(input_ids=torch.tensor([[0, *ids]]), labels=torch.tensor([[-100, *ids]])).loss
        total, tokens = total + float(loss) * len(ids), tokens + len(ids)
    assert report.values[-1][-1] == pytest.approx(math.exp(-total / tokens), rel=1e-4)


def test_generated_answers_are_those_of_plain_generate(place: Place) -> None:
    texts, _ = place.rows("pairs")
    found = api.predict(place.bank, texts, PredictConfig(task="pairs", device="cpu"))
    assert said(found) == [plainly_generated(place, text) for text in texts]
    assert {one.probability for one in found} == {None}


def test_an_exact_match_counts(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows whose completions are what the model says anyway (to any prompt its own)."""
    folder = tmp_path / "own"
    folder.mkdir()
    prompts = [f"about {word}" for word in WORDS]
    own = Place.__new__(Place)
    own.kind, own.folder, own.base, own.bank = place.kind, folder, place.base, folder / "bank"
    own.scores, own.notices = {}, {}
    own.add(own.bank, "first", [_row("prompt-completion", i, word) for i, word in enumerate(WORDS)])
    answers = said(api.generate(own.bank, prompts, GenerateConfig(task="first", device="cpu", raw=True)))
    usable = [(p, a) for p, a in zip(prompts, answers, strict=True) if a.strip()]
    if len(usable) < 4:
        pytest.skip("this model says nothing")
    rows = [{"prompt": p, "completion": a} for p, a in usable]
    monkeypatch.setattr(Movement, "check", lambda *_: None)  # the answers stay what they are
    own.add(own.bank, "echo", rows, learning_rate=1e-30, set=("chat_template=none",))
    assert own.scores["echo"]["value"] == 1.0


@pytest.mark.parametrize(
    ("task", "metric"), [("plain", "exact_match"), ("labelled", "inverse_perplexity"), ("pairs", "inverse_perplexity")]
)
def test_a_metric_that_a_task_does_not_have_is_refused(place: Place, tmp_path: Path, task: str, metric: str) -> None:
    from lorabank.core.errors import ConfigError

    with pytest.raises(ConfigError, match="scored by") as caught:
        api.evaluate(place.bank, EvalConfig(metric=metric, device="cpu"))
    assert "--metric auto" in (caught.value.hint or "")


def test_perplexity_of_answers_and_labels_as_free_text(place: Place, tmp_path: Path) -> None:
    pairs = [_row("prompt-completion", i, word) for i, word in enumerate(WORDS)]
    asked = place.add(tmp_path / "bank", "answers", pairs, scoring="perplexity")
    assert asked.score["metric"] == "inverse_perplexity"
    assert 0 < asked.score["value"] < 1
    labelled = [_row("classification", i, word) for i, word in enumerate(WORDS)]
    free = place.add(tmp_path / "bank", "free", labelled, scoring="generation")
    assert (free.score["metric"], free.task.labels) == ("exact_match", ())
    assert free.task.prompt_template == "{text}\nOption: cold, warm\nAnswer:"


# ------------------------------------------------------------------------------------------------- predict, generate


def test_labels_come_with_their_probability_and_nothing_else_does(place: Place) -> None:
    labelled, alpaca = (
        api.predict(place.bank, ["hot"], PredictConfig(task=t, device="cpu"))[0] for t in ("labelled", "alpaca")
    )
    for one in (labelled, alpaca):
        assert one.label in ("cold", "warm")
        assert 0.5 <= one.probability <= 1
    (free,) = api.generate(place.bank, ["hot"], GenerateConfig(task="labelled", device="cpu", max_new_tokens=4))
    assert free.probability is None
    assert free.label == plainly_generated(place, "hot\nOption: cold, warm\nAnswer:")


@pytest.mark.parametrize("task", ["chat", "shared"])
def test_a_user_s_words_are_put_into_the_chat_template(place: Place, task: str) -> None:
    words = "Tell me about hail"
    rendered = f"<s><|user|>\n{words}</s>\n<|assistant|>\n"
    expected = plainly_generated(place, rendered)
    predicted = api.predict(place.bank, [words], PredictConfig(task=task, device="cpu"))
    generated = api.generate(place.bank, [words], GenerateConfig(task=task, device="cpu", max_new_tokens=4))
    assert said(predicted) == said(generated) == [expected]
    assert [predicted[0].text, generated[0].text] == [words, words]
    raw = GenerateConfig(task=task, device="cpu", max_new_tokens=4, raw=True)
    assert said(api.generate(place.bank, [rendered, words], raw)) == [expected, plainly_generated(place, words)]


def test_raw_takes_no_template(place: Place) -> None:
    raw = GenerateConfig(task="labelled", device="cpu", max_new_tokens=4, raw=True)
    assert said(api.generate(place.bank, ["hot"], raw)) == [plainly_generated(place, "hot")]


def test_answers_are_no_longer_than_asked_for(place: Place) -> None:
    lengths = []
    for most in (1, 2, 9):
        config = GenerateConfig(task="pairs", device="cpu", max_new_tokens=most)
        (one,) = api.generate(place.bank, ["hot"], config)
        assert one.label == plainly_generated(place, "hot", most)
        lengths.append(len(one.label))
    assert lengths == sorted(lengths)


@pytest.mark.by_turns
@pytest.mark.parametrize("mode", ["prototype", "attention", "manual"])
def test_a_composition_of_all_forms_can_be_measured_and_asked(mine: Path, mode: str) -> None:
    api.compose(mine, ComposeConfig(mode=mode, set=("kmeans.clusters_per_task=2", "*.epochs=1"), device="cpu"))
    (report,) = api.evaluate(mine, EvalConfig(compositions=(mode,), device="cpu"))
    assert all(0 <= value <= 1 for value in report.values[-1])
    (again,) = api.evaluate(mine, EvalConfig(compositions=(mode,), device="cpu"))
    assert again.computed == 0
    texts = ("sun 0", "What of fog?", "The dew came early, and it was cold.")
    predicted = api.predict(mine, texts, PredictConfig(composition=mode, device="cpu"))
    labels = {"labelled", "alpaca"}
    assert [one.probability is not None for one in predicted] == [one.task in labels for one in predicted]
    assert {one.task_id for one in predicted} == {"routed"}
    generated = api.generate(mine, texts, GenerateConfig(composition=mode, device="cpu", max_new_tokens=4))
    assert [one.task for one in generated] == [one.task for one in predicted]
    for one, other in zip(predicted, generated, strict=True):
        assert other.probability is None
        if one.probability is None:
            assert one.label == other.label
    told = PredictConfig(composition=mode, task="pairs", device="cpu")
    assert {(one.task, one.task_id) for one in api.predict(mine, texts, told)} == {("pairs", "given")}


def test_a_batch_of_any_size_generates_the_same(mine: Path) -> None:
    api.compose(mine, ComposeConfig(mode="prototype", set=("clusters_per_task=2",), device="cpu"))
    chance = random.Random(5)
    texts = tuple(" ".join(chance.choices(WORDS, k=chance.randint(1, 6))) for _ in range(7))
    every = [
        said(api.generate(mine, texts, GenerateConfig(device="cpu", max_new_tokens=4, batch_size=size)))
        for size in (1, 5)
    ]
    assert every[0] == every[1]


def test_a_composition_of_some_tasks_picks_heads_among_them(mine: Path) -> None:
    api.compose(mine, ComposeConfig(mode="manual", name="some", tasks="chat,shared", device="cpu"))
    (report,) = api.evaluate(mine, EvalConfig(compositions=("some",), head_from="gaussian", device="cpu"))
    confusion = report.routing["confusion"]
    names = report.routing["tasks"]
    assert [sum(row) for row in confusion] == [4] * 6
    routed = {name for name, column in zip(names, zip(*confusion, strict=True), strict=True) if sum(column)}
    assert routed <= {"chat", "shared"}


def test_attention_over_a_task_some_of_whose_rows_were_too_long(place: Place, tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    rows = [_row("prompt-completion", i, word) for i, word in enumerate(WORDS)]
    place.add(bank, "short", rows)
    long = [row if i % 2 else row | {"completion": "very " * 80} for i, row in enumerate(rows)]
    result = place.add(bank, "long", long, keep_samples=64)
    assert 0 < result.adapter.metrics["rows_dropped"] < 4
    assert any("dropped" in notice for notice in place.notices["long"])
    api.compose(bank, ComposeConfig(mode="attention", device="cpu", batch_size=1, set=("epochs=1",)))
    api.evaluate(bank, EvalConfig(compositions=("attention",), device="cpu"))


# ------------------------------------------------------------------------------------------------------------ base


def test_another_chat_template_is_another_base(place: Place, tmp_path: Path) -> None:
    base = Path(shutil.copytree(place.base, tmp_path / "base"))
    bank = tmp_path / "bank"
    rows = [_row("messages", i, word) for i, word in enumerate(WORDS)]
    data = write(tmp_path / "chat.jsonl", rows)
    api.add_task(bank, "chat", TrainConfig(**({"data": data} | SETTINGS)), init=InitConfig(base=str(base)))
    files = [file for file in base.rglob("*") if file.is_file() and b"<|assistant|>" in file.read_bytes()]
    assert files
    for file in files:
        file.write_text(file.read_text(encoding="utf-8").replace("<|assistant|>", "<|model|>"))
    for ask in (
        lambda: api.generate(bank, ["hail"], GenerateConfig(task="chat", device="cpu")),
        lambda: api.add_task(bank, "more", TrainConfig(**({"data": data} | SETTINGS))),
    ):
        with pytest.raises(IncompatibleError, match="chat template"):
            ask()
    assert [task.name for task in Bank.open(bank).snapshot().tasks] == ["chat"]
