"""``lorabank generate``: prompts in, text out; what a model says cannot steer the terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest

from lorabank.core.commands import Command
from lorabank.core.errors import IncompatibleError
from lorabank.workflows.results import Prediction


def _says(*answers: str) -> Any:
    """One answer after the other, beside the prompts."""

    def generate(texts: tuple[str, ...], **_: Any) -> tuple[Prediction, ...]:
        given = answers * len(texts) if len(answers) == 1 else answers
        pairs = zip(texts, given, strict=True)
        told = (None, "tales", "given", {"tales": 1.0}, "now", None)
        return tuple(Prediction(text, said, *told) for text, said in pairs)

    return generate


def test_the_text_alone_is_printed(run: Any, api: Any) -> None:
    api["generate"] = _says("upon a time", "two\nlines")
    shown = run("generate", "Once", "More", "--task", "tales")
    assert (shown.code, shown.out, shown.err) == (
        0,
        "upon a time\ntwo\nlines\n",
        "task tales answers in its state now\n",
    )


def test_json_says_who_answered_and_hides_no_character(run: Any, api: Any) -> None:
    api["generate"] = _says("red \x1b[31m\nü")
    shown = run("generate", "Once", "--json")
    assert shown.document["answers"] == [
        {
            "text": "Once",
            "label": "red \x1b[31m\nü",
            "probability": None,
            "task": "tales",
            "task_id": "given",
            "adapters": {"tales": 1.0},
            "state": "now",
            "composition": None,
        }
    ]
    assert "\x1b" not in shown.out


@pytest.mark.parametrize(
    ("said", "printed"),
    [
        ("\x1b[2J\x1b]0;owned\x07", "\\x1b[2J\\x1b]0;owned\\x07"),
        ("over\rwritten", "over\\x0dwritten"),
        ("evil\u202etxt", "evil\\u202etxt"),
        ("tab\there", "tab\\x09here"),
        ("日本 é", "日本 é"),
    ],
)
def test_control_characters_are_escaped(run: Any, api: Any, said: str, printed: str) -> None:
    api["generate"] = _says(said)
    assert run("generate", "x").out == printed + "\n"


def test_prompts_from_stdin_one_a_line(run: Any, api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    api["generate"] = _says("yes")
    monkeypatch.setattr("sys.stdin", io.StringIO("one \n\n   \ntwo\r\nthree"))
    document = run("generate", "-", "--json").document
    assert [answer["text"] for answer in document["answers"]] == ["one ", "two", "three"]


def test_a_dash_among_prompts_is_a_prompt(run: Any, api: Any) -> None:
    api["generate"] = _says("yes")
    assert run("generate", "-", "a").code == 0
    assert api.called("generate")["texts"] == ("-", "a")


def test_answers_to_a_file_stand_below_what_was_asked(run: Any, api: Any) -> None:
    told = (None, "none", "given", {}, "base", None)
    api["generate"] = (Prediction("Once?\nor twice", "upon\na time", *told), Prediction("\x1b[2J", "", *told))
    shown = run("generate", "--data", "rows.jsonl", "--task", "none")
    assert shown.out == (
        "asked:  Once?\n        or twice\nanswer: upon\n        a time\n\nasked:  \\x1b[2J\nanswer:\n"
    )
    assert shown.err == ""  # who answers was told by the library


def test_an_empty_answer_keeps_its_line(run: Any, api: Any) -> None:
    api["generate"] = _says("", "b")
    assert run("generate", "x", "y").out == "\nb\n"


def test_settings_reach_the_library(run: Any, api: Any) -> None:
    api["generate"] = _says("yes")
    run("generate", "x", "--composition", "routed", "--max-new-tokens", "7", "--raw", "--batch-size", "3")
    called = api.called("generate")
    config = called["config"]
    assert (called["texts"], config.composition, config.max_new_tokens) == (("x",), "routed", 7)
    assert (config.raw, config.batch_size, config.task) == (True, 3, None)


@pytest.mark.parametrize("words", [("generate",), ("generate", "--json"), ("generate", "-")])
def test_without_a_prompt_it_is_a_usage_error(
    run: Any, api: Any, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    api["generate"] = _says("never")
    monkeypatch.setattr("sys.stdin", io.StringIO("\n \n"))
    shown = run(*words)
    assert shown.code == 2
    assert "Missing a TEXT, '-' or '--data'" in shown.out + shown.err
    assert api.calls == []


@pytest.mark.parametrize("tokens", ["0", "-1", "many"])
def test_a_length_that_is_none_is_refused(run: Any, api: Any, tokens: str) -> None:
    api["generate"] = _says("never")
    shown = run("generate", "x", "--max-new-tokens", tokens)
    assert shown.code == 2
    assert api.calls == []


def test_an_error_is_one_line(run: Any, api: Any) -> None:
    api["generate"] = IncompatibleError("the bank's base 'x' is a classifier", commands=[Command("predict", "TEXT")])
    shown = run("generate", "x")
    assert (shown.code, shown.out) == (5, "")
    assert shown.err == "error: the bank's base 'x' is a classifier\n  hint:\n    lorabank predict TEXT\n"


def test_sampling_is_a_section_of_its_own(run: Any, api: Any) -> None:
    api["generate"] = _says("yes")
    words = "--temperature 0.5 --top-p 0.9 --repetition-penalty 1.2 --seed 7 --stop . --stop END --max-new-tokens 9"
    assert run("generate", "x", *words.split()).code == 0
    config = api.called("generate")["config"]
    assert (config.temperature, config.top_p, config.repetition_penalty, config.seed) == (0.5, 0.9, 1.2, 7)
    assert (config.stop, config.max_new_tokens) == ((".", "END"), 9)
    help = run("generate", "--help").out
    assert help.index("\nAnswering:\n") < help.index("--raw") < help.index("\nSampling:\n") < help.index("--top-p")


@pytest.mark.parametrize(
    "words",
    [
        "--temperature -0.1",
        "--temperature 2.1",
        "--top-p 0",
        "--top-p 1.1",
        "--repetition-penalty 0",
        "--repetition-penalty 1e-39",
    ],
)
def test_sampling_has_bounds(run: Any, api: Any, words: str) -> None:
    api["generate"] = _says("never")
    shown = run("generate", "x", *words.split())
    assert shown.code == 2
    assert words.split()[0] in shown.err


@pytest.mark.parametrize("stops", [[""], [".", ""]])
def test_an_empty_stop_text_is_refused(run: Any, api: Any, stops: list[str]) -> None:
    api["generate"] = _says("never")
    shown = run("generate", "x", *(word for stop in stops for word in ("--stop", stop)))
    assert (shown.code, shown.out) == (2, "")
    assert shown.err == "error: generate: stop = '': the text is empty\n  nothing was changed\n"
    assert api.calls == []
