"""eval --lm-eval: the harness asks the bank's own model, and gets what plain PEFT gives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lorabank_cli.main import main

from lorabank import api
from lorabank.core.config import ComposeConfig, EvalConfig
from lorabank.core.errors import ConfigError, DataError, IncompatibleError, MissingExtraError, NotFoundError
from lorabank.workflows.asking import harness
from tests.unit.workflows.language_models import fill_language_bank, plain_model

ROWS = [
    {"question": question, "choices": ["a b", "x y z", "m"], "gold": gold}
    for gold, question in enumerate(("a a b", "z y x", "m m m n"))
] * 4
CHOICE = """
task: letters
dataset_path: json
dataset_kwargs:
  data_files: {file}
test_split: train
output_type: multiple_choice
doc_to_text: "Q: {{{{question}}}}\\nA:"
doc_to_target: "{{{{gold}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
GENERATED = """
task: written
dataset_path: json
dataset_kwargs:
  data_files: {file}
test_split: train
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 6
  do_sample: {sample}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
PERPLEXITY = """
task: prose
dataset_path: json
dataset_kwargs:
  data_files: {file}
test_split: train
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list:
  - metric: byte_perplexity
"""
CPU: dict[str, Any] = {"device": "cpu", "dtype": "float32"}


@pytest.fixture
def lab(make_language_model, tmp_path: Path) -> SimpleNamespace:
    """A bank, and a folder of tasks."""
    base = make_language_model("llama")
    bank = fill_language_bank(tmp_path / "bank", base)
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, text in (("letters", CHOICE), ("written", GENERATED), ("prose", PERPLEXITY)):
        (tasks / f"{name}.yaml").write_text(text.format(file=tasks / "rows.jsonl", sample="false"))
    return SimpleNamespace(base=base, bank=bank, tasks=tasks, folder=tmp_path)


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tasks of the test's folder alone: to read all of the harness's own takes half a minute."""
    tasks = pytest.importorskip("lm_eval.tasks")

    def manager(config: EvalConfig) -> Any:
        return tasks.TaskManager(include_path=config.include_path, include_defaults=False)

    monkeypatch.setattr(harness, "_manager", manager)


def log_likelihood(model: Any, tokenizer: Any, context: str, continuation: str) -> float:
    """From one plain pass."""
    whole, before = tokenizer(context + continuation)["input_ids"], len(tokenizer(context)["input_ids"])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([whole])).logits[0, before - 1 : -1].double()
    return float(logits.log_softmax(-1)[range(len(whole) - before), whole[before:]].sum())


def accuracy(model: Any, tokenizer: Any) -> float:
    """Of the likeliest choice of each row."""
    right = []
    for row in ROWS:
        context = f"Q: {row['question']}\nA:"
        scores = [log_likelihood(model, tokenizer, context, f" {choice}") for choice in row["choices"]]
        right.append(int(np.argmax(scores)) == row["gold"])
    return float(np.mean(right))


def evaluate(lab: SimpleNamespace, *tasks: str, names: Sequence[str] = (), **config: Any) -> Any:
    settings = {"lm_eval": tasks, "include_path": str(lab.tasks), "compositions": tuple(names)}
    return api.evaluate(lab.bank, EvalConfig(**settings, **CPU, **config))


def test_the_model_gives_what_plain_peft_gives(lab: SimpleNamespace) -> None:
    """Log-likelihoods of a constant state and of a routed one; greedy texts; perplexity."""
    pytest.importorskip("lm_eval")
    from functools import partial

    from transformers import AutoTokenizer

    from lorabank.workflows.asking.general import plain_settings, state_of
    from lorabank.workflows.asking.harness_model import BankModel
    from lorabank.workflows.open_bank import OpenBank

    api.export(lab.bank, "second", lab.folder / "peft")
    tokenizer, model = AutoTokenizer.from_pretrained(lab.base), plain_model(lab.base, lab.folder / "peft")
    opened = OpenBank(lab.bank)
    settings, limit = plain_settings(opened, EvalConfig(batch_size=3, **CPU))
    runtime = partial(opened.runtime, settings, lambda message: None)
    asked = BankModel(runtime(), state_of(opened, "as-trained", runtime), limit)
    pairs = [("a b ", "c"), ("x y", " z z"), ("", "m m"), ("the cat", " sat on the mat")]
    found = asked.loglikelihood([SimpleNamespace(args=pair) for pair in pairs])
    for (context, continuation), (value, _) in zip(pairs, found, strict=True):
        kept = context.rstrip()
        more = context[len(kept) :] + continuation
        assert value == pytest.approx(log_likelihood(model, tokenizer, kept, more), abs=1e-4)
    texts = ["a b c d", "where it was warm"]
    rolled = asked.loglikelihood_rolling([SimpleNamespace(args=(text,)) for text in texts])
    whole = [asked.tok_encode(text) for text in texts]
    for value, ids in zip(rolled, whole, strict=True):
        with torch.no_grad():
            rows = [asked.prefix_token_id, *ids]
            logits = model(input_ids=torch.tensor([rows])).logits[0, :-1].double()
        assert value == pytest.approx(float(logits.log_softmax(-1)[range(len(ids)), ids].sum()), abs=1e-4)
    stops = {"until": ["\n"], "max_gen_toks": 5, "do_sample": False}
    said = asked.generate_until([SimpleNamespace(args=(text, stops)) for text in texts])
    for text, answer in zip(texts, said, strict=True):
        with torch.no_grad():
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            new = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)[
                0, ids.shape[1] :
            ]
        assert answer == tokenizer.decode(new, skip_special_tokens=True).split("\n")[0]
    with pytest.raises(IncompatibleError, match="asks for do_sample = True"):
        asked.generate_until([SimpleNamespace(args=("a", {"do_sample": True}))])


@pytest.mark.usefixtures("local")
def test_tasks_before_and_after(lab: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoTokenizer

    api.export(lab.bank, "second", lab.folder / "peft")
    tokenizer = AutoTokenizer.from_pretrained(lab.base)
    api.compose(lab.bank, ComposeConfig(mode="routed", name="routed", device="cpu"))
    reports = evaluate(lab, "letters", "prose", "written", names=("as-trained", "routed"))
    for report in reports:
        scores = {(one.task, one.metric): one for one in report.harness}
        found = scores["letters", "acc"]
        assert found.rows == 12
        assert found.higher_is_better
        assert found.before == pytest.approx(accuracy(plain_model(lab.base, None), tokenizer))
        assert found.change.difference == pytest.approx(found.after - found.before)
        assert ("prose", "byte_perplexity") in scores
        assert ("written", "exact_match") in scores
    own = {(one.task, one.metric): one for one in reports[0].harness}
    assert own["letters", "acc"].after == pytest.approx(
        accuracy(plain_model(lab.base, lab.folder / "peft"), tokenizer)
    )
    words = ["eval", "--bank", str(lab.bank), "--lm-eval", "letters", "--include-path", str(lab.tasks)]
    assert main([*words, "--lm-eval-limit", "5", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "general skills  metric" in out
    assert main([*words, "--lm-eval-limit", "5", "--device", "cpu", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["reports"][0]["harness"]
    assert (told["task"], told["metric"], told["rows"]) == ("letters", "acc", 5)


@pytest.mark.usefixtures("local")
def test_what_the_harness_does_not_have(lab: SimpleNamespace) -> None:
    with pytest.raises(ConfigError, match=r"the harness has no task 'lettres'\. Did you mean 'letters'\?"):
        evaluate(lab, "lettres")
    (lab.tasks / "rows.jsonl").unlink()
    with pytest.raises(DataError, match="--lm-eval letters: "):
        evaluate(lab, "letters")


def test_without_the_package_it_says_what_to_install(lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="lm-evaluation-harness, which is not installed") as caught:
        evaluate(lab, "letters")
    assert caught.value.hint == 'pip install "lm-eval>=0.4.13"'


def test_an_encoder_is_not_asked(bank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "find_spec", lambda name: object())
    with pytest.raises(IncompatibleError, match="not a causal language model"):
        api.evaluate(bank, EvalConfig(lm_eval=("letters",), **CPU))


def test_what_it_cannot_be_asked(lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "find_spec", lambda name: object())
    with pytest.raises(NotFoundError, match="--include-path: no such folder"):
        api.evaluate(lab.bank, EvalConfig(lm_eval=("letters",), include_path="nowhere", **CPU))
    for option in ({"include_path": str(lab.tasks)}, {"lm_eval_limit": 3}):
        with pytest.raises(ConfigError, match="is about tasks of the lm-evaluation-harness, and none is named"):
            api.evaluate(lab.bank, EvalConfig(**option, **CPU))
    with pytest.raises(ConfigError, match="--lm-eval scores something else"):
        api.evaluate(lab.bank, EvalConfig(lm_eval=("letters",), task="first", **CPU))
