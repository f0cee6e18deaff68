"""``--task none``: what the base says without an adapter, as plain transformers lets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lorabank import api
from lorabank.bank.objects.layout import check_name
from lorabank.core.commands import ADD_TASK, Command
from lorabank.core.config import EvalConfig, GenerateConfig, InitConfig, PredictConfig, SamplingConfig, TrainConfig
from lorabank.core.errors import ConfigError, IncompatibleError, NotFoundError
from lorabank.core.observer import SilentObserver
from lorabank.workflows.asking import answer_rows
from lorabank.workflows.asking.bare import BARE
from tests.unit.models.answering.test_generating import drawn_by_hand

TEXTS = ("What of rain?", "a", "And </s> of snow, hail and ice?")


class Told(SilentObserver):
    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, message: str) -> None:
        self.notices.append(message)


def plain(base: Path, prompt: str) -> str:
    """One greedy answer of six tokens to a prompt that holds its special tokens, none added."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    auto = AutoModelForSeq2SeqLM if "t5" in (base / "config.json").read_text() else AutoModelForCausalLM
    model, tokenizer = auto.from_pretrained(base).eval(), AutoTokenizer.from_pretrained(base)
    behind = [2] if auto is AutoModelForSeq2SeqLM else []
    ids = torch.tensor([[*tokenizer(prompt, add_special_tokens=False)["input_ids"], *behind]])
    said = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False, pad_token_id=1)[0]
    return tokenizer.decode(said[1 if behind else ids.shape[1] :], skip_special_tokens=True).strip()


def ask(bank: Path, *texts: str, observer: Any = None, **more: Any) -> tuple[Any, ...]:
    config = GenerateConfig(task="none", device="cpu", max_new_tokens=6, **more)
    return api.generate(bank, texts, config, observer=observer or SilentObserver())


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_bank_without_a_task_answers_in_the_chat_template(
    kind: str, make_language_model: Any, tmp_path: Path
) -> None:
    base, bank, told = make_language_model(kind), tmp_path / "bank", Told()
    api.init_bank(bank, InitConfig(base=str(base)))
    answers = ask(bank, *TEXTS[:2], observer=told)
    assert [one.label for one in answers] == [
        plain(base, f"<s><|user|>\n{text}</s>\n<|assistant|>\n") for text in TEXTS[:2]
    ]
    assert {(one.task, one.state, one.composition, one.probability) for one in answers} == {
        ("none", "base", None, None)
    }
    assert [one.adapters for one in answers] == [{}, {}]
    assert any("the text is a user's turn in its chat template" in line for line in told.notices)
    (raw,) = ask(bank, "What of rain?", raw=True, observer=told)
    assert raw.label == plain(base, "What of rain?" if kind == "t5" else "<s>What of rain?")
    assert any("the text is the whole prompt" in line for line in told.notices)


def test_a_base_without_a_chat_template_reads_the_text(make_language_model: Any, tmp_path: Path) -> None:
    base, bank = make_language_model(), tmp_path / "bank"
    (base / "chat_template.jinja").unlink()
    api.init_bank(bank, InitConfig(base=str(base)))
    assert ask(bank, "What of rain?")[0].label == plain(base, "<s>What of rain?")


def test_a_chat_template_that_takes_no_turn_is_no_bar_to_the_raw_text(
    make_language_model: Any, tmp_path: Path
) -> None:
    base, bank = make_language_model(), tmp_path / "bank"
    (base / "chat_template.jinja").write_text("{{ raise_exception('never') }}")
    api.init_bank(bank, InitConfig(base=str(base)))
    with pytest.raises(IncompatibleError, match="never") as error:
        ask(bank, "hi")
    assert error.value.hint == "--raw takes the text as the whole prompt"
    assert ask(bank, "hi", raw=True)[0].label == plain(base, "<s>hi")


def learn(bank: Path, base: Path, name: str, **more: Any) -> None:
    rows = [{"instruction": f"Say {letter}", "output": letter * 3} for letter in "abcdefgh"]
    data = bank.parent / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"epochs": 4, "batch_size": 2, "learning_rate": 3e-2, "device": "cpu"} | more
    api.add_task(
        bank, name, TrainConfig(data=str(data), set=("max_new_tokens=4",), **settings), init=InitConfig(base=str(base))
    )


def test_beside_a_task_the_base_says_what_it_said_before(make_language_model: Any, tmp_path: Path) -> None:
    base, bank = make_language_model(), tmp_path / "bank"
    api.init_bank(bank, InitConfig(base=str(base)))
    before = ask(bank, *TEXTS)
    learn(bank, base, "letters")
    assert ask(bank, *TEXTS) == before
    after = api.generate(bank, TEXTS, GenerateConfig(task="letters", device="cpu", max_new_tokens=6))
    assert [one.label for one in after] != [one.label for one in before]
    with pytest.raises(ConfigError, match="has no labels") as error:
        api.predict(bank, TEXTS, PredictConfig(task="none"))
    assert error.value.commands == (Command("generate", "--task", "none", "TEXT"),)
    with pytest.raises(ConfigError, match="the bare base is not a task") as error:
        api.evaluate(bank, EvalConfig(task="none", device="cpu"))
    assert error.value.commands == (Command("eval", "--forward-transfer"),)
    for beside in ({"state": "learnt"}, {"composition": "x"}):
        with pytest.raises(ConfigError, match=f"--{next(iter(beside))} is about adapters"):
            ask(bank, "hi", **beside)


def test_an_empty_bank_proposes_the_base(make_language_model: Any, tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    api.init_bank(bank, InitConfig(base=str(make_language_model())))
    with pytest.raises(NotFoundError, match="the bank has no task") as error:
        api.generate(bank, TEXTS)
    assert error.value.commands[0] == Command("generate", "--task", "none", "TEXT")
    with pytest.raises(NotFoundError, match="the bank has no task") as error:
        api.predict(bank, TEXTS)
    assert error.value.commands == (ADD_TASK,)


def test_no_task_can_have_that_name() -> None:
    with pytest.raises(ConfigError, match="the word is reserved"):
        check_name(BARE)


def test_a_classifier_has_nothing_to_say(make_base: Any, tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    api.init_bank(bank, InitConfig(base=str(make_base("bert"))))
    with pytest.raises(IncompatibleError, match="is a classifier"):
        ask(bank, "hi")
    with pytest.raises(ConfigError, match="has no labels"):
        api.predict(bank, ["hi"], PredictConfig(task="none"))


def test_a_file_of_rows_gets_its_answers(make_language_model: Any, tmp_path: Path) -> None:
    bank, base = tmp_path / "bank", make_language_model()
    api.init_bank(bank, InitConfig(base=str(base)))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text, "id": 7}) + "\n" for text in TEXTS))
    config = GenerateConfig(data=str(tmp_path / "rows.jsonl"), task="none", device="cpu", max_new_tokens=6)
    answers = api.generate(bank, config=config)
    assert [one.text for one in answers] == list(TEXTS)
    assert answers == ask(bank, *TEXTS)


def test_a_row_draws_by_its_seed_and_its_number_alone(
    make_language_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever part or batch it is answered, and where a bad row before it is skipped; as by hand."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    bank, base = tmp_path / "bank", make_language_model()
    api.init_bank(bank, InitConfig(base=str(base)))
    texts = ["a", "What of rain?", "", "a", "ice", "a"]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base).eval(), AutoTokenizer.from_pretrained(base)
    drawing = {"max_new_tokens": 6, "temperature": 1.5, "top_p": 0.9, "repetition_penalty": 1.2}
    expected: list[str | None] = []
    for number, text in enumerate(texts):
        settings = SamplingConfig(**drawing, seed=5 + number)
        prompt = tokenizer(f"<s><|user|>\n{text}</s>\n<|assistant|>\n", add_special_tokens=False)["input_ids"]
        said = tokenizer.decode(drawn_by_hand(model, prompt, settings), skip_special_tokens=True).strip()
        expected.append(said if text else None)
    assert len({expected[0], expected[3], expected[5]}) == 3, "one prompt, three draws"
    monkeypatch.setattr(answer_rows, "PART", 2)
    for size in (1, 16):
        config = GenerateConfig(
            data=str(data), task="none", device="cpu", skip_bad=True, batch_size=size, seed=5, **drawing
        )
        api.answer_file(bank, tmp_path / "out.jsonl", config=config, overwrite=True)
        rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
        assert [row["answer"] for row in rows] == expected
    assert [one.label for one in api.generate(bank, config=config)] == [text for text in expected if text is not None]
