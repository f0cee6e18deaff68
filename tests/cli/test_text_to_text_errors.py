"""Bad input to text to text through the real command: one line, the documented exit code, the bank as it was."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lorabank_cli.main import main

from lorabank.bank.bank import Bank

FAST = (
    "--epochs", "1", "--batch-size", "4", "--r", "2", "--eval-fraction", "0.5", "--clusters-per-task", "2",
    "--keep-samples", "4", "--device", "cpu", "--max-new-tokens", "4",
)  # fmt: skip
PAIRS = [{"prompt": f"what is {i}", "completion": f"it is {i}"} for i in range(6)]
LABELLED = [{"text": f"{word} {i}", "label": "ab"[i % 2]} for i, word in enumerate("cdefghij")]


def write(name: str, rows: list[Any]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: Any, save_base: Callable[..., Path], save_language_model: Callable[..., Path]
) -> dict[str, Path]:
    """A base of each kind, and a bank on it with one task that keeps nothing for later strategies."""
    folder = tmp_path_factory.mktemp("banks")
    bases = {"llama": save_language_model(folder / "llama"), "bert": save_base(folder / "bert")}
    for kind, rows in (("llama", PAIRS), ("bert", LABELLED)):
        data = folder / f"{kind}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        words = ("-b", folder / f"{kind}-bank", "add-task", "first", "--data", data, "--base", bases[kind], *FAST)
        assert main([*map(str, words), "--quiet"]) == 0
    return {kind: folder / f"{kind}-bank" for kind in bases} | {f"{kind} base": base for kind, base in bases.items()}


def state(bank: Path) -> Any:
    """Everything of a bank that must stay: its files by content, its tasks, the operations that go on."""
    files = {
        str(file.relative_to(bank)): hashlib.sha256(file.read_bytes()).hexdigest()
        for part in ("adapters", "blobs", "work", "staging")
        for file in (bank / part).rglob("*")
        if file.is_file()
    }
    opened = Bank.open(bank)
    return files, opened.snapshot(), opened.operations()


@pytest.fixture
def refused(run: Any, made: dict[str, Path], tmp_path: Path) -> Callable[..., str]:
    """``refused(code, *words, bank="llama")``: run it on a copy of a bank; gives the error's line and hint."""

    def call(code: int, *words: str, bank: str = "llama") -> str:
        copy = Path(shutil.copytree(made[bank], tmp_path / "bank"))
        before = state(copy)
        shown = run(*words)
        assert (shown.code, shown.out) == (code, ""), shown.err
        lines = shown.err.splitlines()
        (first,) = (i for i, line in enumerate(lines) if line.startswith("error: "))
        assert len([line for line in lines[first:] if not line.startswith("    lorabank ")]) <= 3
        assert all(line.startswith("  ") for line in lines[first + 1 :])
        assert "Traceback" not in shown.err
        assert "internal error" not in shown.err
        assert state(copy) == before
        return "\n".join(lines[first:])

    return call


def add(data: str, *more: str) -> tuple[str, ...]:
    return ("add-task", "second", "--data", data, *FAST, *more)


# ------------------------------------------------------------------------------------------------------------ rows


@pytest.mark.parametrize("empty", ["", "   ", None])
def test_an_empty_completion(refused: Any, empty: str | None) -> None:
    data = write("p.jsonl", [*PAIRS[:2], {"prompt": "why", "completion": empty}, *PAIRS[2:]])
    said = refused(6, *add(data))
    assert "p.jsonl" in said
    assert "line 3, column 'completion'" in said


def test_a_conversation_without_an_answer(refused: Any) -> None:
    turns = [{"role": "user", "content": "hello"}]
    good = [{"messages": [*turns, {"role": "assistant", "content": f"hi {i}"}]} for i in range(4)]
    said = refused(6, *add(write("c.jsonl", [*good, {"messages": turns}])))
    assert "line 5, column 'messages'" in said
    assert "no assistant turn" in said


def test_a_conversation_that_ends_with_a_question(refused: Any) -> None:
    turns = [("user", "hello"), ("assistant", "hi"), ("user", "and now?")]
    row = {"messages": [{"role": role, "content": words} for role, words in turns]}
    said = refused(6, *add(write("c.jsonl", [row])))
    assert "ends with the user" in said


def test_conversations_for_a_base_without_a_chat_template(refused: Any, made: dict[str, Path], tmp_path: Path) -> None:
    base = Path(shutil.copytree(made["llama base"], tmp_path / "plain"))
    for file in base.rglob("*"):
        if file.suffix == ".jinja":
            file.unlink()
        elif file.name == "tokenizer_config.json":
            config = json.loads(file.read_text(encoding="utf-8"))
            config.pop("chat_template", None)
            file.write_text(json.dumps(config))
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    data = write("c.jsonl", [row] * 4)
    said = refused(5, "-b", "other", *add(data, "--base", str(base)))
    assert "no chat template" in said
    assert not Path("other").exists()


def test_answers_longer_than_the_window(refused: Any) -> None:
    data = write("p.jsonl", [{"prompt": f"q {i}", "completion": "very " * 200} for i in range(4)])
    said = refused(6, *add(data, "--max-length", "100000"))
    assert "no answer fits into 512 tokens" in said


def test_an_answer_length_that_fills_the_window(refused: Any) -> None:
    data = write("p.jsonl", PAIRS)
    said = refused(2, *add(data, "--max-new-tokens", "512"))
    assert "max_new_tokens = 512 leaves no room for a prompt: the base model takes 512 tokens" in said
    assert "hint: --set max_new_tokens=256; of generate, --max-new-tokens 256" in said


@pytest.mark.parametrize("rows", [PAIRS, [{"instruction": "a", "output": "b"}] * 4])
def test_completions_for_a_classifier(refused: Any, rows: list[Any]) -> None:
    said = refused(6, *add(write("p.jsonl", rows)), bank="bert")
    assert "a classifier learns only labelled texts" in said
    assert "--task-type CAUSAL_LM" in said


def test_columns_of_no_form(refused: Any) -> None:
    said = refused(6, *add(write("p.jsonl", [{"q": "a", "a": "b"}] * 4)))
    assert "p.jsonl" in said


# -------------------------------------------------------------------------------------------------------- settings


def test_a_template_without_text(refused: Any) -> None:
    said = refused(2, *add(write("l.jsonl", LABELLED), "--prompt-template", "Is it {labels}?"))
    assert "the prompt template has no {text}" in said


def test_a_template_longer_than_the_rows_may_be(refused: Any) -> None:
    data = write("l.jsonl", LABELLED)
    said = refused(6, *add(data, "--prompt-template", "{text} " + "please " * 20, "--max-length", "64"))
    assert "the prompt template without its text takes" in said


def test_a_template_for_rows_that_bring_their_prompts(refused: Any) -> None:
    said = refused(2, *add(write("p.jsonl", PAIRS), "--prompt-template", "{text} Answer:"))
    assert "form prompt-completion and scoring generation: there is no setting 'prompt_template'" in said


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        (("--set", "prompt_template={text}"), "prompt_template"),
        (("--prompt-template", "{text}"), "prompt_template"),
        (("--set", "label_words=a=b"), "label_words"),
        (("--scoring", "generation"), "--scoring"),
    ],
)
def test_settings_of_text_to_text_for_a_classifier(refused: Any, setting: tuple[str, str], named: str) -> None:
    said = refused(2, *add(write("l.jsonl", LABELLED), *setting), bank="bert")
    assert f"{named} is for text to text" in said


@pytest.mark.parametrize("words", ["a=good,b=good", "a=good", "a=good,b=", "a=good,c=bad"])
def test_label_words_that_do_not_fit_the_labels(refused: Any, words: str) -> None:
    refused(2, *add(write("l.jsonl", LABELLED), "--label-words", words))


def test_label_words_that_are_the_same_tokens(refused: Any, made: dict[str, Path], tmp_path: Path) -> None:
    """To a tokenizer that knows small letters alone."""
    base = Path(shutil.copytree(made["llama base"], tmp_path / "small"))
    file = base / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    tokenizer["normalizer"] = {"type": "Lowercase"}
    file.write_text(json.dumps(tokenizer))
    data = write("l.jsonl", LABELLED)
    said = refused(6, "-b", "other", *add(data, "--base", str(base), "--label-words", "a=good,b=Good"))
    assert "the labels 'good' and 'Good' are the same tokens to this model" in said
    assert "--set 'label_words=" in said
    assert not Path("other").exists()


def test_plain_text_has_no_answers(refused: Any) -> None:
    said = refused(2, *add(write("t.jsonl", [{"text": "once upon a time"}] * 4), "--scoring", "generation"))
    assert "--scoring perplexity" in said


def test_a_renaming_of_a_column_that_is_not_there(refused: Any) -> None:
    said = refused(6, *add(write("p.jsonl", PAIRS), "--map", "question=prompt"))
    assert "no column 'question'; its columns are 'prompt', 'completion'" in said


@pytest.mark.parametrize("renaming", ["prompt", "=prompt", "prompt="])
def test_a_renaming_that_is_none(refused: Any, renaming: str) -> None:
    said = refused(2, *add(write("p.jsonl", PAIRS), "--map", renaming))
    assert "map" in said


@pytest.mark.skipif(importlib.util.find_spec("datasets") is not None, reason="datasets is installed")
def test_a_hub_name_without_the_package_for_it(refused: Any) -> None:
    said = refused(7, *add("hf:someone/something"))
    assert "datasets" in said


def test_a_hub_name_where_there_is_no_hub(refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    said = refused(7, *add("hf:someone/something"))
    assert "pip install" in said


# ------------------------------------------------------------------------------------------------------ strategies


@pytest.mark.parametrize("bank", ["llama", "bert"])
@pytest.mark.parametrize("strategy", ["replay", "joint", "ewc", "inflora", "der", "slao"])
def test_a_strategy_that_needs_what_earlier_tasks_did_not_keep(refused: Any, bank: str, strategy: str) -> None:
    data = write("d.jsonl", PAIRS if bank == "llama" else LABELLED)
    said = refused(2, *add(data, "--strategy", strategy), bank=bank)
    assert f"strategy {strategy!r}" in said
    assert "'first'" in said
    assert "use another --strategy" in said


def test_a_strategy_that_is_none(refused: Any) -> None:
    said = refused(2, *add(write("p.jsonl", PAIRS), "--strategy", "ewk"))
    assert "'ewc'" in said


# ------------------------------------------------------------------------------------------------- generate, predict


def test_a_classifier_generates_nothing(refused: Any) -> None:
    said = refused(5, "generate", "hello", "--task", "first", bank="bert")
    assert "is a classifier, which generates nothing" in said
    assert "    lorabank predict TEXT" in said


@pytest.mark.parametrize("verb", ["generate", "predict"])
def test_a_task_or_composition_that_is_not_there(refused: Any, verb: str) -> None:
    assert "'frist'" in refused(3, verb, "hello", "--task", "frist")


@pytest.mark.parametrize("verb", ["generate", "predict"])
def test_nobody_says_who_answers(run: Any, made: dict[str, Path], tmp_path: Path, verb: str) -> None:
    """The only task answers, until compositions stand beside it of which none routes."""
    shutil.copytree(made["llama"], tmp_path / "bank")
    asked = (verb, "hello", "--device", "cpu")
    assert run(*asked, "--json").document == run(*asked, "--json", "--task", "first").document
    for name in ("one", "two"):
        assert run("compose", "--mode", "manual", "--name", name).code == 0
    said = run(*asked)
    assert (said.code, said.out) == (2, "")
    assert "--task first" in said.err


def test_a_generated_answer_that_fills_the_window(refused: Any) -> None:
    said = refused(2, "generate", "hello", "--task", "first", "--max-new-tokens", "512", "--device", "cpu")
    assert "max_new_tokens = 512 leaves no room for a prompt" in said


@pytest.mark.parametrize("verb", ["generate", "predict"])
def test_a_prompt_longer_than_the_window_is_answered_from_its_end(
    run: Any, made: dict[str, Path], tmp_path: Path, verb: str
) -> None:
    shutil.copytree(made["llama"], tmp_path / "bank")
    words = ("--task", "first", "--device", "cpu", "--json")
    tail = "the end of it all " * 20  # more than the 256 bytes that are read
    said = []
    for prompt in ("x" * 900 + tail, "y" * 2000 + tail):
        shown = run(verb, prompt, *words)
        assert shown.code == 0, shown.err
        (answer,) = next(iter(shown.document.values()))
        said.append(answer["label"])
    assert said[0] == said[1] != ""


@pytest.mark.parametrize("empty", ["", "   "])
@pytest.mark.parametrize("verb", ["generate", "predict"])
def test_an_empty_prompt_is_no_crash(run: Any, made: dict[str, Path], tmp_path: Path, verb: str, empty: str) -> None:
    shutil.copytree(made["llama"], tmp_path / "bank")
    shown = run(verb, empty, "--task", "first", "--device", "cpu", "--json")
    assert shown.code in (0, 6)
    assert "internal error" not in shown.out + shown.err


def test_a_metric_that_the_tasks_do_not_have(refused: Any) -> None:
    said = refused(2, "eval", "--metric", "inverse_perplexity", "--device", "cpu")
    assert "task 'first' is scored by generation, which has no inverse_perplexity" in said
