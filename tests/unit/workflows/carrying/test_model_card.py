"""The card of an exported folder: its snippet runs with plain PEFT, and nothing from outside breaks out of it."""

from __future__ import annotations

import ast
import json
import re
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import EvalConfig, GenerateConfig, PredictConfig
from lorabank.core.records import BaseModelRecord
from lorabank.workflows.carrying.model_card import Facts, card
from tests.unit.workflows.language_models import TEMPLATE, add

NASTY = "a\"'b```|<script>\n---\n\\u202e\u202e{% x %}[x](http://x)"


def parts(page: str) -> tuple[dict[str, Any], str, str]:
    """Front matter, text, and the snippet."""
    _, front, rest = page.split("---\n", 2)
    found = re.search(r"^(`{3,})python\n(.*?)\n\1$", rest, re.DOTALL | re.MULTILINE)
    assert found is not None
    assert rest.count(found[1]) == 2, "the fence stands nowhere else"
    return yaml.safe_load(front), rest[: found.start()], found[2]


def run(folder: Path, text: str, capsys: pytest.CaptureFixture[str]) -> tuple[str, dict[str, Any]]:
    """What the snippet prints for a text, and its names; run beside the folder, as the card says."""
    _, _, code = parts((folder / "README.md").read_text(encoding="utf-8"))
    assert "lorabank" not in code
    names: dict[str, Any] = {}
    capsys.readouterr()
    with chdir(folder.parent), torch.inference_mode():
        exec(code.replace('"a text"', repr(text)), names)
    return capsys.readouterr().out.rstrip("\n"), names


def test_a_classifiers_snippet_answers_with_the_banks_labels(bert_bank, tmp_path, capsys) -> None:
    result = api.export(bert_bank, "second", tmp_path / "out")
    assert result.files == ("README.md", "adapter_config.json", "adapter_model.safetensors", "labels.json")
    assert json.loads((tmp_path / "out/labels.json").read_text(encoding="utf-8")) == ["one", "three", "two"]
    for text in ("a b c", "z y z", "m n o"):
        (expected,) = api.predict(bert_bank, [text], PredictConfig(task="second", device="cpu"))
        label, names = run(tmp_path / "out", text, capsys)
        assert label == expected.label
    assert names["model"].config.id2label == {0: "one", 1: "three", 2: "two"}


def test_the_card_says_what_the_exported_state_scored(bank, tmp_path) -> None:
    for state, row in (("learnt", 1), ("now", 2)):
        (report,) = api.evaluate(bank, EvalConfig(device="cpu", forgetting_matrix=True))
        api.export(bank, "first", tmp_path / state, state=state)
        _, text, _ = parts((tmp_path / state / "README.md").read_text(encoding="utf-8"))
        assert f"score on first | accuracy {report.values[row][0]:.3f} " in text
        assert "no, yes" in text
        assert Bank.open(bank).snapshot().base.fingerprint in text
    api.export(bank, "second", tmp_path / "own", own=True)  # alone it was never measured
    assert "score on" not in (tmp_path / "own/README.md").read_text(encoding="utf-8")


def test_a_sum_has_no_head_and_says_so(bank, compose, tmp_path) -> None:
    compose("manual")
    result = api.export(bank, "manual", tmp_path / "out")
    assert "labels.json" not in result.files
    _, text, code = parts((tmp_path / "out/README.md").read_text(encoding="utf-8"))
    assert "it holds no head" in text
    with chdir(tmp_path):
        exec(code, {})


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_language_models_snippet_asks_as_the_bank_does(kind, tmp_path, make_language_model, capsys) -> None:
    base, bank = make_language_model(kind), tmp_path / "bank"
    add(bank, base, "asked", ("no", "yes"), 0, target_modules="all-linear", lora_dropout=0.0)
    api.export(bank, "asked", tmp_path / "out", tokenizer=True)
    answer, names = run(tmp_path / "out", "a b", capsys)
    (expected,) = api.generate(bank, ["a b"], GenerateConfig(task="asked", device="cpu"))
    assert names["prompt"] == TEMPLATE.replace("{labels}", "no, yes").replace("{text}", "a b")
    assert answer.strip() == expected.label.strip()


@pytest.mark.parametrize("form", ["messages", "alpaca"])
def test_a_chats_snippet_asks_through_the_chat_template(tmp_path, make_language_model, capsys, form) -> None:
    base, bank = make_language_model("llama"), tmp_path / "bank"
    turns = [[{"role": "user", "content": c}, {"role": "assistant", "content": c * 2}] for c in "abcdefgh"]
    data = tmp_path / "chats.jsonl"
    rows = [{"messages": turn} for turn in turns]
    if form == "alpaca":
        rows = [{"instruction": asked["content"], "output": answer["content"]} for asked, answer in turns]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    add(bank, base, "asked", ("no", "yes"), 0, data=str(data), set=("max_new_tokens=4",))
    api.export(bank, "asked", tmp_path / "out", tokenizer=True)
    _, names = run(tmp_path / "out", "a b", capsys)
    assert names["prompt"] == "<s><|user|>\na b</s>\n<|assistant|>\n"
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert "the text as a user's turn in the base's chat template" in card
    ids = names["inputs"]["input_ids"][0].tolist()
    assert ids.count(names["tokenizer"].bos_token_id) == 1
    assert names["output"].shape[1] <= len(ids) + 4


def test_the_tokenizer_is_the_bases_with_its_chat_template(tmp_path, make_language_model) -> None:
    from transformers import AutoTokenizer

    base, bank = make_language_model("llama"), tmp_path / "bank"
    add(bank, base, "asked", ("no", "yes"), 0)
    api.export(bank, "asked", tmp_path / "out", tokenizer=True)
    mine, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "out", base))
    turn = [{"role": "user", "content": "a b"}]
    assert mine("a b c")["input_ids"] == theirs("a b c")["input_ids"]
    assert mine.apply_chat_template(turn, tokenize=False) == theirs.apply_chat_template(turn, tokenize=False)
    assert (tmp_path / "out/chat_template.jinja").read_bytes() == (base / "chat_template.jinja").read_bytes()


def record(**fields: Any) -> BaseModelRecord:
    plain = {"source": "local", "revision": None, "config_hash": "", "fingerprint": "f" * 64, "tokenizer_hash": ""}
    plain |= {"dtype": "float32", "task_type": "CAUSAL_LM", "hidden_size": 1, "parameters": 1, "name": "/base"}
    return BaseModelRecord(**(plain | fields))


@pytest.mark.parametrize("task_type", ["SEQ_CLS", "CAUSAL_LM", "SEQ_2_SEQ_LM"])
def test_what_came_from_outside_stays_text(task_type) -> None:
    facts = Facts(
        name="x", note=NASTY, base=record(task_type=task_type, name=NASTY), loads_as=NASTY, folder=NASTY,
        labels=(NASTY, "|"), template=NASTY + "{text}", strategy=NASTY, scores={NASTY: NASTY},
    )  # fmt: skip
    page = card(facts).decode()
    front, text, code = parts(page)
    assert front["library_name"] == "peft"
    assert "base_model" not in front
    literals = {node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)}
    assert NASTY in literals
    cells = [line for line in text.splitlines() if line.startswith("|")]
    assert all(re.sub(r"\\.", "", line).count("|") == 3 for line in cells)
    assert "<script" not in re.sub(r"\\.", "", page.replace(code, ""))
    assert "\u202e" not in page


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"source": "hub", "name": "owner/name"}, "owner/name"),
        ({"source": "package", "name": "owner/name"}, "owner/name"),
        ({"source": "gguf", "name": "owner/name/file.gguf"}, "owner/name"),
        ({"source": "gguf", "name": "/home/me/file.gguf"}, None),
        ({"source": "local", "name": "/home/me/model"}, None),
    ],
)
def test_the_hub_is_told_a_base_that_it_knows(fields, named) -> None:
    front, _, _ = parts(card(Facts("x", "y", record(**fields), "/folder", "out")).decode())
    assert front.get("base_model") == named
    assert (f"base_model:adapter:{named}" in front["tags"]) is (named is not None)
    assert front["pipeline_tag"] == "text-generation"
