"""Options are the fields of the configs; flags win over the environment, the environment over the file."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest
from lorabank_cli.commands.add_task import add_task
from lorabank_cli.commands.advise import advise
from lorabank_cli.commands.compose import compose
from lorabank_cli.commands.eval import evaluate
from lorabank_cli.commands.generate import generate
from lorabank_cli.commands.init import init
from lorabank_cli.commands.predict import predict
from lorabank_cli.docs import commands

from lorabank.core.config import ComposeConfig, EvalConfig, GenerateConfig, InitConfig, PredictConfig, TrainConfig
from lorabank.core.errors import ConfigError
from lorabank.core.shelves import COMPOSERS
from lorabank.workflows.results import ComposeResult, TaskPlan

PLAN = TaskPlan(
    name="spam",
    settings={"penalty": "orthogonal", "penalty_weight": 0.5, "target_modules": "query,value", "max_length": 512},
    train_rows=384,
    eval_rows=96,
    labels=("ham", "spam"),
    example=("You have won a prize", "spam"),
    tokens={"mean": 20.5, "p95": 40.0, "max": 60.0},
    rows_cut=0,
    rows_dropped=0,
    steps=120,
    trainable_parameters=36_864,
    adapter_bytes=147_456,
    context=("sentiment",),
    penalty={"orthogonal": 0.5},
    bank_exists=True,
    modules_left_out=None,
)


@pytest.mark.parametrize(
    ("command", "config"),
    [
        (init, InitConfig),
        (add_task, TrainConfig),
        (add_task, InitConfig),
        (compose, ComposeConfig),
        (evaluate, EvalConfig),
        (predict, PredictConfig),
        (generate, GenerateConfig),
    ],
)
def test_every_field_is_a_parameter_with_its_default(command: Any, config: Any) -> None:
    params = {p.name: p for p in command.params}
    for field in fields(config):
        assert field.name in params
        if field.name != "mode":  # the one that must be given
            assert (params[field.name].default or None) == (field.default or None)


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--r 16", "r", 16),
        ("--lora-alpha 64", "lora_alpha", 64.0),
        ("--use-rslora", "use_rslora", True),
        ("--no-use-rslora", "use_rslora", False),
        ("--penalty-weight 0", "penalty_weight", 0.0),
        ("--penalty none", "penalty", "none"),
        ("--strategy seqlora", "strategy", "seqlora"),
        ("--eval-data e.jsonl", "eval_data", "e.jsonl"),
        ("--learning-rate 1e-4", "learning_rate", 1e-4),
        ("--max-grad-norm 0", "max_grad_norm", 0.0),
        ("--seed 4294967295", "seed", 4294967295),
        ("--target-modules query,key", "target_modules", "query,key"),
        ("--first-layer 3", "first_layer", 3),
    ],
)
def test_an_option_becomes_its_field(run: Any, api: Any, words: str, name: str, value: object) -> None:
    api["plan_task"] = PLAN
    assert run("add-task", "spam", "--data", "s.jsonl", "--dry-run", *words.split()).code == 0
    config = api.called("plan_task")["config"]
    assert getattr(config, name) == value
    assert type(getattr(config, name)) is type(value)


def test_what_nobody_sets_has_the_default(run: Any, api: Any) -> None:
    api["plan_task"] = PLAN
    run("add-task", "spam", "--data", "s.jsonl", "--dry-run")
    assert api.called("plan_task")["config"] == TrainConfig(data="s.jsonl")
    assert api.called("plan_task")["init"] == InitConfig()


@pytest.mark.parametrize(
    "words",
    [
        "--r 0",
        "--r 2.5",
        "--epochs 0",
        "--epochs nan",
        "--learning-rate inf",
        "--lora-dropout 1",
        "--seed -1",
        "--strategy olara",
    ],
)
def test_out_of_bounds_is_a_usage_error_that_names_the_option(run: Any, api: Any, words: str) -> None:
    shown = run("add-task", "spam", "--data", "s.jsonl", *words.split())
    assert shown.code == 2
    assert words.split()[0] in shown.err.splitlines()[0]
    assert api.calls == []


@pytest.mark.parametrize(
    ("flag", "env", "file", "value", "source"),
    [
        (None, None, None, 8, "default"),
        (None, None, 9, 9, "file lora.toml"),
        (None, 10, 9, 10, "env LORABANK_ADD_TASK_R"),
        (None, 10, None, 10, "env LORABANK_ADD_TASK_R"),
        (11, 10, 9, 11, "flag"),
        (11, None, 9, 11, "flag"),
    ],
)
def test_flags_then_environment_then_file_then_default(
    run: Any, api: Any, monkeypatch: pytest.MonkeyPatch, flag: Any, env: Any, file: Any, value: int, source: str
) -> None:
    api["plan_task"] = PLAN
    words = ["add-task", "spam", "--data", "s.jsonl", "--dry-run", "--json"]
    if flag:
        words += ["--r", str(flag)]
    if env:
        monkeypatch.setenv("LORABANK_ADD_TASK_R", str(env))
    if file:
        Path("lora.toml").write_text(f"[add-task]\nr = {file}\n")
        words += ["--config", "lora.toml"]
    assert run(*words).document["settings"]["r"] == {"value": value, "source": source}
    assert api.called("plan_task")["config"].r == value


def test_verbose_shows_settings_on_stderr(run: Any, api: Any) -> None:
    api["plan_task"] = PLAN
    shown = run("-v", "add-task", "spam", "--data", "s.jsonl", "--dry-run", "--json")
    assert shown.document["steps"] == 120
    assert any(line.split() == ["r", "8", "default"] for line in shown.err.splitlines())


def test_the_whole_file_is_checked_and_every_mistake_named(run: Any, api: Any) -> None:
    Path("lora.toml").write_text(
        "\n".join(
            [
                "quite = true",
                "[add-task]",
                'strategie = "olora"',
                "r = 8.5",
                "epochs = true",
                "lora_alpha = 16",
                'learning-rate = "fast"',
                "[evl]",
                "all = true",
                "[compose]",
                'mode = "prototyp"',
            ]
        )
    )
    shown = run("add-task", "spam", "--data", "s.jsonl", "--config", "lora.toml", "--json")
    assert shown.code == 2
    message = shown.document["error"]["message"]
    for part in [
        "unknown key quite. Did you mean 'quiet'?",
        "unknown key [add-task] strategie. Did you mean 'strategy'?",
        "[add-task] r = 8.5: expected an integer",
        "[add-task] epochs = True: expected a number",
        "[add-task] learning-rate = 'fast': expected a number",
        "unknown table [evl]. Did you mean 'eval'?",
        "[compose] mode = 'prototyp': ",
    ]:
        assert part in message
    assert "lora_alpha" not in message
    assert api.calls == []


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("[add-task.csv]", """[add-task.csv]: there is no method 'csv'; the settings of a method stand in {}"""),
        (
            '[add-task.format.".csv"]',
            "[add-task.format]: there is no method 'format'; the settings of a method stand in {}",
        ),
        (
            "[add-task.set]",
            "[add-task.set]: there is no method 'set'; the settings of a method stand in [add-task.NAME]",
        ),
        ('[add-task.".csv".more]', '[add-task.".csv"] more is a table: a setting is a text, a number, true or false'),
    ],
)
def test_a_table_that_is_not_of_a_method_is_named_with_the_form_that_works(
    run: Any, api: Any, table: str, problem: str
) -> None:
    works = '[add-task.".csv"]'
    Path("lora.toml").write_text(f'{table}\ndelimiter = ";"\n')
    refused = run("add-task", "spam", "--data", "s.csv", "--config", "lora.toml", "--json")
    assert (refused.code, api.calls) == (2, [])
    assert refused.document["error"]["message"] == f"lora.toml: {problem.format(works)}"
    Path("lora.toml").write_text(f'{works}\ndelimiter = ";"\n')
    api["add_task"] = ConfigError("stop")
    run("add-task", "spam", "--data", "s.csv", "--config", "lora.toml")
    assert api.called("add_task")["config"].set == (".csv.delimiter=;",)


def test_a_file_sets_shared_options_lists_and_required_options(run: Any, api: Any) -> None:
    Path("lora.toml").write_text(
        'bank = "team"\njson = true\n[compose]\nmode = "prototype"\n[eval]\ncomposition = ["a", "b"]\nall = false\n'
    )
    api["compose"] = _composed()
    assert run("--config", "lora.toml", "compose").document["composition"]["name"] == "prototype"
    assert api.called("compose")["path"] == Path("team")
    api["check_gates"] = ()
    api["evaluate"] = ()
    assert run("eval", "--config", "lora.toml").code == 0
    assert api.called("evaluate")["config"].compositions == ("a", "b")


def _composed() -> ComposeResult:
    from lorabank.core.records import CompositionRecord

    record = CompositionRecord("prototype", "prototype", ("a", "b"), ("1" * 64, "2" * 64), {}, {})
    return ComposeResult(record, {"routing": {"accuracy": 0.9}})


@pytest.mark.parametrize(
    ("content", "code", "part"),
    [
        (None, 3, "no config file lora.toml"),
        (b"[add-task\n", 2, "lora.toml: not TOML"),
        (b"\xff\xfe", 2, "lora.toml: not TOML"),
        (b"[compose]\nshrinkage = " + b"9" * 400, 2, "lora.toml: not TOML"),
        (b"quiet = " + b"9" * 5000, 2, "lora.toml: not TOML"),
    ],
)
def test_a_file_that_cannot_be_read(run: Any, content: bytes | None, code: int, part: str) -> None:
    if content is not None:
        Path("lora.toml").write_bytes(content)
    shown = run("--config", "lora.toml", "list")
    assert shown.code == code
    assert part in shown.err


def test_compose_without_a_mode_lists_the_modes(run: Any) -> None:
    shown = run("compose")
    assert shown.code == 2
    assert shown.err.splitlines()[0] == f"error: Missing option '--mode'. Choose from: {', '.join(COMPOSERS)}"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("lsit", "list"), ("train", "add-task"), ("evaluate", "eval"), ("rm", "remove"), ("EVAL", "eval")],
)
def test_an_unknown_command_is_answered_with_the_nearest(run: Any, typed: str, meant: str) -> None:
    shown = run(typed)
    assert shown.code == 2
    assert f"Did you mean '{meant}'?" in shown.err


def test_an_unknown_option_is_answered_with_the_nearest(run: Any) -> None:
    shown = run("add-task", "spam", "--learning-rat", "1")
    assert shown.code == 2
    assert "--learning-rate" in shown.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--variant dorra", "Did you mean 'dora'?"),
        ("--strategy zzzz", "'"),
        ("--r 2.5", "'2.5' is not a whole number"),
        ("--learning-rate much", "'much' is not a number"),
    ],
)
def test_a_value_of_the_wrong_kind_is_answered_in_plain_words(run: Any, words: str, said: str) -> None:
    shown = run("add-task", "spam", "--data", "s.jsonl", *words.split())
    assert shown.code == 2
    assert shown.err.splitlines()[0].endswith(said)


def options() -> list[tuple[str, click.Option]]:
    """The words that call a command, with each option of it."""
    return [(path, one) for path, command in commands() for one in command.params if isinstance(one, click.Option)]


@pytest.mark.parametrize(
    ("path", "option"), [pytest.param(p, o, id=f"{p} {max(o.opts, key=len)}") for p, o in options() if o.multiple]
)
def test_an_option_that_may_be_repeated_is_read_from_the_variable_of_its_name(
    monkeypatch: pytest.MonkeyPatch, path: str, option: click.Option
) -> None:
    """The values stand behind blanks; the plural, which the field has, counts too."""
    prefix = path.upper().replace(" ", "_").replace("-", "_")
    ctx = click.Context(click.Command("any"), auto_envvar_prefix=prefix)
    written = max(option.opts, key=len).lstrip("-").upper().replace("-", "_")
    for name in {written, str(option.name).upper()}:
        monkeypatch.setenv(f"{prefix}_{name}", "one two")
        assert list(option.value_from_envvar(ctx)) == ["one", "two"]
        monkeypatch.delenv(f"{prefix}_{name}")
        assert option.value_from_envvar(ctx) is None


@pytest.mark.parametrize(("path", "option"), options())
def test_every_option_is_read_from_the_variable_of_its_name(
    monkeypatch: pytest.MonkeyPatch, path: str, option: click.Option
) -> None:
    prefix = path.upper().replace(" ", "_").replace("-", "_")
    ctx = click.Context(click.Command("any"), auto_envvar_prefix=prefix)
    written = max(option.opts, key=len).lstrip("-").upper().replace("-", "_")
    monkeypatch.setenv(f"{prefix}_{written}", "1")
    assert option.is_eager or option.resolve_envvar_value(ctx) == "1"


@pytest.mark.parametrize("name", ["LORABANK_ADD_TASK_SAVING", "LORABANK_ADD_TASK_SAVINGS"])
def test_a_dry_run_calls_a_list_as_its_option_is_called(
    run: Any, api: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    api["plan_task"] = PLAN
    monkeypatch.setenv(name, "dropbp gradient-checkpointing")
    shown = run("add-task", "spam", "--data", "s.jsonl", "--dry-run", "-v")
    assert api.called("plan_task")["config"].savings == ("dropbp", "gradient-checkpointing")
    row = next(line for line in shown.out.splitlines() if line.startswith("saving"))
    assert row.split() == ["saving", "dropbp,", "gradient-checkpointing", "env", name]
    assert any(line.startswith("saving ") for line in shown.err.splitlines())


@pytest.mark.parametrize("command", [add_task, advise])
def test_the_settings_of_a_training_stand_in_sections(command: Any) -> None:
    sections: dict[str, list[str]] = {}
    for param in command.params:
        sections.setdefault(getattr(param, "section", ""), []).append(param.name)
    together = {
        "Rows": {"data", "text_column", "max_length"},
        "Method": {"strategy", "penalty", "set"},
        "Adapter": {"r", "target_modules"},
        "Training": {"epochs", "optimizer", "warmup", "class_weights", "packing", "seed"},
    }
    for title, names in together.items():
        assert names <= set(sections[title])


def test_advise_offers_nothing_that_its_rounds_decide() -> None:
    assert {param.name for param in advise.params}.isdisjoint({"max_steps", "eval_every", "early_stopping"})
