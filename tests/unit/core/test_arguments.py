"""Arguments of `lorabank.api`: what does not fit the signature is refused by name, before anything is done."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from lorabank import api
from lorabank.core.arguments import by_path, checked
from lorabank.core.config import (
    AdviseConfig,
    ComposeConfig,
    EvalConfig,
    FoldConfig,
    GenerateConfig,
    InitConfig,
    LoralibConfig,
    PredictConfig,
    TrainConfig,
)
from lorabank.core.errors import ConfigError
from lorabank.core.observer import SilentObserver
from lorabank.workflows.asking.chat_config import ChatConfig
from lorabank.workflows.open_bank import OpenBank
from lorabank.workflows.results import MatrixReport

FUNCTIONS = {
    name: value
    for name, value in vars(api).items()
    if inspect.isfunction(value) and value.__module__ != checked.__module__
}
REPORT = MatrixReport.__new__(MatrixReport)
NO_TEXT: list[Any] = [5, b"a", {"a": 1}, ["a"], ("a",), object(), str]
NO_PATH: list[Any] = [*NO_TEXT, "a\0b", "a\ud800", Path("a\0b")]
NO_TEXTS: list[Any] = ["a text", b"a", 5, {"a": 1}, [5], ["a", None], [["a"]], ("a", b"b"), PredictConfig(), object()]
NO_FLAG: list[Any] = [1, 0, "yes", None, [True], {}]
NO_COUNT: list[Any] = ["1", 1.0, True, [1], {}]
NO_CONFIG: list[Any] = ["rows.jsonl", {"data": "rows.jsonl"}, ["a"], 5, Path("a"), TrainConfig, object()]
CASES: dict[str, tuple[Any, list[Any]]] = {
    "str | Path": ("nowhere", [None, *NO_PATH]),
    "str | Path | None": ("nowhere", NO_PATH),
    "str": ("spam", [None, Path("a"), *NO_TEXT]),
    "str | None": (None, [Path("a"), *NO_TEXT]),
    "bool": (True, NO_FLAG),
    "int": (1, [None, *NO_COUNT]),
    "int | None": (None, NO_COUNT),
    "float": (1.0, [None, "1", True, [1.0], float("nan"), float("inf"), 1j]),
    "float | None": (None, ["1", True, [1.0], float("nan")]),
    "tuple[int, int] | None": (None, [1, (1,), (1, 2, 3), "12", (1, "2"), {1: 2}]),
    "Literal['now', 'learnt'] | None": (None, ["NOW", 1, ["now"], {}]),
    "bool | Literal['gguf']": (False, ["merged", 2, ["gguf"], {}]),
    "Literal['float32', 'float16', 'bfloat16'] | None": (None, ["int8", 1, ["float32"], {}]),
    "Iterable[str] | None": (None, NO_TEXTS),
    "Sequence[str] | None": (None, NO_TEXTS),
    "Sequence[str]": (["spam"], [None, *NO_TEXTS]),
    "Sequence[str | Path]": (["bank"], [None, "a", {}, [1], [None]]),
    "MatrixReport": (REPORT, [None, "a", {}, [REPORT], MatrixReport]),
    "Sequence[MatrixReport]": ([REPORT], [None, REPORT, "a", {}, ["a"], [REPORT, None]]),
    "Listener": (print, [None, "a", {}, 5, ["a"]]),
    "BufferedIOBase | None": (None, ["a", b"a", 5, io.StringIO("a"), Path("a")]),
    "Observer": (SilentObserver(), [None, "a", {}, print, SilentObserver]),
    "InitConfig": (InitConfig(), [None, TrainConfig(), *NO_CONFIG]),
    "InitConfig | None": (None, [TrainConfig(), *NO_CONFIG]),
    "LoralibConfig | None": (LoralibConfig(), [InitConfig(), *NO_CONFIG]),
    "TrainConfig": (TrainConfig(), [None, InitConfig(), *NO_CONFIG]),
    "TrainConfig | None": (None, [InitConfig(), *NO_CONFIG]),
    "ComposeConfig": (ComposeConfig(), [None, EvalConfig(), *NO_CONFIG]),
    "FoldConfig": (FoldConfig(), [None, EvalConfig(), *NO_CONFIG]),
    "AdviseConfig": (AdviseConfig(), [None, EvalConfig(), *NO_CONFIG]),
    "EvalConfig": (EvalConfig(), [None, ComposeConfig(), *NO_CONFIG]),
    "PredictConfig": (PredictConfig(), [None, GenerateConfig(), *NO_CONFIG]),
    "PredictConfig | GenerateConfig": (PredictConfig(), [None, EvalConfig(), *NO_CONFIG]),
    "Literal['jsonl', 'csv', 'tsv', 'parquet'] | None": (None, ["xlsx", 1, ["csv"], {}]),
    "GenerateConfig": (GenerateConfig(), [None, PredictConfig(), *NO_CONFIG]),
    "ChatConfig": (ChatConfig(), [None, GenerateConfig(), *NO_CONFIG]),
}
"""Annotation to a value that fits and values that do not."""


def annotation(parameter: inspect.Parameter) -> str:
    return str(parameter.annotation).replace('"', "'")


def parameters() -> list[Any]:
    return [
        pytest.param(function, parameter.name, id=f"{name}-{parameter.name}")
        for name, function in FUNCTIONS.items()
        for parameter in inspect.signature(function).parameters.values()
    ]


class Shop:
    def __init__(self, path: str | Path) -> None:
        self.path = path

    def sell(self, what: str, *, count: int = 1) -> tuple[str | Path, str, int]:
        """Sell things."""
        return self.path, what, count


def test_a_method_as_a_function_of_a_path() -> None:
    sell = by_path(Shop, Shop.sell)
    assert sell("town", "a pen", count=2) == ("town", "a pen", 2)
    assert str(inspect.signature(sell)).startswith("(path: 'str | Path', what: 'str', *, count: 'int' = 1)")
    assert (sell.__name__, sell.__doc__) == ("sell", "Sell things.")
    with pytest.raises(ConfigError, match=r"api\.sell: count is the str '2', not a whole number"):
        sell("town", "a pen", count="2")
    with pytest.raises(ConfigError, match=r"api\.sell: path is the int 5, not a path"):
        sell(5, "a pen")


def test_every_use_case_is_looked_at() -> None:
    assert {
        "init_bank",
        "add_task",
        "answer_file",
        "predict",
        "generate",
        "demo",
        "run_sequence",
        "restore",
        "gc",
    } <= set(FUNCTIONS)
    assert [name for name, function in FUNCTIONS.items() if not hasattr(function, "__wrapped__")] == []


@pytest.mark.parametrize(("function", "name"), parameters())
def test_a_wrong_type_is_refused_by_name(function: Callable[..., Any], name: str) -> None:
    wanted = inspect.signature(function).parameters
    right = {other: CASES[annotation(p)][0] for other, p in wanted.items()}
    for wrong in CASES[annotation(wanted[name])][1]:
        with pytest.raises(ConfigError) as caught:
            function(**{**right, name: wrong})
        message = caught.value.message
        assert message.startswith(f"api.{function.__name__}: {name}"), (wrong, message)
        assert ", not " in message
        assert "\n" not in message
        assert f"{name}=" in str(caught.value.hint)
        assert caught.value.unchanged == "nothing was changed"


@pytest.mark.parametrize(
    ("call", "message", "hint"),
    [
        (
            lambda: api.predict("bank", "one"),
            "api.predict: texts is the str 'one', not a list of strings or None",
            'for example api.predict(..., texts=["a text", ...])',
        ),
        (
            lambda: api.predict("bank", ["a", float("nan")]),
            "api.predict: texts[1] is the float nan, not a string",
            'for example api.predict(..., texts=["a text", ...])',
        ),
        (
            lambda: api.predict("bank", PredictConfig(task="spam")),
            "api.predict: texts is a PredictConfig, not a list of strings or None",
            'for example api.predict(..., texts=["a text", ...])',
        ),
        (
            lambda: api.add_task("bank", "spam", "rows.jsonl"),
            "api.add_task: config is the str 'rows.jsonl', not a TrainConfig or None",
            'for example api.add_task(..., config=TrainConfig(data="rows.jsonl"))',
        ),
        (
            lambda: api.evaluate(["bank"], EvalConfig()),
            "api.evaluate: path is a list, not a path",
            'for example api.evaluate(..., path="bank")',
        ),
        (
            lambda: api.verify("bank", part=(1, None)),
            "api.verify: part[1] is None, not a whole number",
            "for example api.verify(..., part=(1, 1))",
        ),
    ],
)
def test_the_message_says_what_was_given_and_what_is_wanted(call: Any, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        call()
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_values_of_settings_are_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"batch_size = 0: .*; max_resident = 5: "):
        api.predict("nowhere", ["a"], PredictConfig(batch_size=0, max_resident=5))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"alpha = -1: "):
        api.import_adapter("nowhere", "lora", "spam", config=TrainConfig(), loralib=LoralibConfig(alpha=-1))


def test_what_fits_arrives_as_pythons_own() -> None:
    @checked
    def work(
        path: str | Path,
        texts: Iterable[str] | None = None,
        *,
        many: Sequence[str] = (),
        count: int = 0,
        share: float = 0.0,
        part: tuple[int, int] | None = None,
        state: Literal["now"] | None = None,
        config: TrainConfig | None = None,
    ) -> tuple[Any, ...]:
        return path, texts, many, count, share, part, state, config

    assert work("bank") == ("bank", None, (), 0, 0.0, None, None, None)
    given = work(
        Path("bank"),
        np.array(["a", "b"]),
        many=["c"],
        count=np.int64(3),
        share=np.float32(0.5),
        part=[1, 2],
        state="now",
        config=TrainConfig(data="a", r=4),
    )
    assert given == (Path("bank"), ("a", "b"), ("c",), 3, 0.5, (1, 2), "now", TrainConfig(data="a", r=4))
    assert [type(value) for value in given[3:5]] == [int, float]
    assert work("bank", (text for text in ("a", "b")))[1] == ("a", "b")


def test_too_many_or_unknown_arguments_stay_pythons_errors() -> None:
    with pytest.raises(TypeError, match=r"show\(\)"):
        api.show("bank")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"show\(\)"):
        api.show("bank", "spam", surprise=1)  # type: ignore[call-arg]


def test_texts_among_the_settings_are_taken_with_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As scripts wrote it before texts were an argument."""
    asked: list[tuple[object, ...]] = []

    def predict(opened: OpenBank, *rest: object) -> tuple[()]:
        asked.append((opened.path, *rest[:2]))
        return ()

    monkeypatch.setattr("lorabank.workflows.asking.predict.predict", predict)
    settings = PredictConfig(texts=["a", "b"], task="spam")  # a list, as an argument may be
    for call in (lambda: api.predict("x", settings), lambda: api.predict("x", config=settings)):
        with pytest.warns(DeprecationWarning, match=r"call api\.predict\(path, texts, config\)"):
            call()
    api.predict("x", ("a", "b"), PredictConfig(task="spam"))
    assert asked == [("x", ("a", "b"), PredictConfig(task="spam"))] * 3
