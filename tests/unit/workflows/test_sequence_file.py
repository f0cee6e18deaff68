"""The TOML file of a sequence: what it says, and every mistake named at once with its table."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from lorabank.core.errors import ConfigError, NotFoundError
from lorabank.sequences.file import check_data, read_sequence

SOUND = """
name = "letters"
base = "org/model"
orders = [["one", "two"], ["two", "one"]]
strategies = ["seqlora", "strong"]
seeds = [3, 4]
selection = "on rows cut from train"
max_train_rows = 30

[train]
epochs = 2
r = 4
max_length = 32

[strategy.strong]
strategy = "olora"
r = 8
epochs = 3

[tasks.one]
data = "rows/one.jsonl"
eval_data = "/elsewhere/one.jsonl"
epochs = 5

[tasks.two]
data = "${LETTERS}/two.jsonl"
map = ["body=text"]

[[compositions]]
mode = "prototype"

[[compositions]]
mode = "manual"
name = "sum"
on = ["strong"]

[evaluation]
batch_size = 16
forward_transfer = true

[sizes.small]
seeds = [3]
train = { epochs = 1 }
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """``write(text, (old, new), ...)``: the file, with parts replaced."""
    monkeypatch.setenv("LETTERS", "/data/letters")

    def run(*changes: tuple[str, str], text: str = SOUND) -> Path:
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "experiment.toml").write_text(text)
        return tmp_path / "experiment.toml"

    return run


def test_the_task_wins_over_the_strategy_and_the_strategy_over_train(write: Callable[..., Path]) -> None:
    config = read_sequence(write())
    one, two = config.training("one", "strong", seed=3), config.training("two", "strong", seed=4)
    assert (one.strategy, one.epochs, one.r, one.max_length, one.seed) == ("olora", 5.0, 8, 32, 3)
    assert (two.strategy, two.epochs, two.r, two.map, two.seed) == ("olora", 3.0, 8, ("body=text",), 4)
    plain = config.training("two", "seqlora")
    assert (plain.strategy, plain.epochs, plain.r) == ("seqlora", 2.0, 4)


def test_old_names_of_settings_of_methods_are_read_and_the_tasks_own_comes_last(write: Callable[..., Path]) -> None:
    train, task = 'max_length = 32\nencoding = "cp1252"', 'map = ["body=text"]\nencoding = "latin-1"'
    config = read_sequence(write(("max_length = 32", train), ('map = ["body=text"]', task)))
    assert config.training("one", "strong").set == ("*.encoding=cp1252",)
    assert config.training("two", "strong").set == ("*.encoding=cp1252", "*.encoding=latin-1")


@pytest.mark.parametrize("key", ["encoding", ".csv.encoding", "*.encoding", "sheet", "power"])
def test_what_the_rows_are_is_the_same_for_every_strategy(write: Callable[..., Path], key: str) -> None:
    given = f'epochs = 3\nset = ["{key}=x", "lambda_l2=0.1"]'
    if key == "power":  # of no method: said where the methods are chosen
        assert read_sequence(write(("epochs = 3", given))).training("two", "strong").set[0] == "power=x"
        return
    with pytest.raises(ConfigError) as caught:
        read_sequence(write(("epochs = 3", given)))
    assert f"[strategy.strong] set '{key}=x': it is the same for every strategy" in caught.value.message
    assert "lambda_l2" not in caught.value.message


def test_paths_are_relative_to_the_file_and_filled_from_the_environment(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    file = write()
    config = read_sequence(file)
    assert config.training("one").data == str(tmp_path / "rows" / "one.jsonl")
    assert config.training("one").eval_data == "/elsewhere/one.jsonl"
    assert config.training("two").data == "/data/letters/two.jsonl"
    assert config.init.base == "org/model", "no such folder beside the file: a hub id"
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert read_sequence(file).init.base == str(tmp_path / "org" / "model")


def test_hub_data_sets_are_no_paths(write: Callable[..., Path]) -> None:
    config = read_sequence(write(('"rows/one.jsonl"', '"hf:org/set:train"')))
    assert config.training("one").data == "hf:org/set:train"


def test_cells_and_compositions(write: Callable[..., Path]) -> None:
    config = read_sequence(write())
    cells = [tuple(cell) for cell in config.cells]
    assert sorted(cells) == sorted((o, s, seed) for o in (1, 2) for s in ("seqlora", "strong") for seed in (3, 4))
    assert cells[:2] == [(1, "seqlora", 3), (1, "strong", 3)]
    assert config.order(config.cells[-1]) == ("two", "one")
    assert [(c.name, c.mode, c.seed) for c in config.composed("strong", 7)] == [
        ("prototype", "prototype", 7), ("sum", "manual", 7),
    ]  # fmt: skip
    assert [c.name for c in config.composed("seqlora", 0)] == ["prototype"]
    assert config.evaluation.batch_size == 16
    assert config.evaluation.forgetting_matrix
    assert config.evaluation.all


def test_a_size_is_laid_over_the_file(write: Callable[..., Path]) -> None:
    config = read_sequence(write(), "small")
    assert config.name == "letters-small"
    assert config.settings.seeds == (3,)
    assert config.training("two", "seqlora").epochs == 1.0
    assert config.training("two", "seqlora").r == 4, "what the size does not name stays"
    with pytest.raises(ConfigError, match=r"no table \[sizes.smal\]. Did you mean 'small'\?") as caught:
        read_sequence(write(), "smal")
    assert caught.value.hint == "--size small"


def test_every_mistake_is_named_with_its_table(write: Callable[..., Path]) -> None:
    file = write(
        ("max_train_rows = 30", "max_train_row = 30"),
        ("max_length = 32", "max_lenght = 32\nseed = 1"),
        ("epochs = 3", "epochs = -3\nprompt_template = 'x'"),
        ('map = ["body=text"]', 'dev_dat = "x"'),
        ('mode = "prototype"', 'mode = "prototyp"\nrouter = "kmean"'),
        ("batch_size = 16", "batch_sise = 16\nall = true"),
    )
    with pytest.raises(ConfigError) as caught:
        read_sequence(file)
    message = caught.value.message
    assert message.startswith(f"{file}: ")
    assert "above the tables: unknown key 'max_train_row'. Did you mean 'max_train_rows'?" in message
    assert "[train]: unknown key 'max_lenght'. Did you mean 'max_length'?" in message
    assert "[train] seed: seeds = [...] belongs above the tables" in message
    assert "[strategy.strong]: epochs = -3" in message
    assert "[strategy.strong] prompt_template: it is the same for every strategy" in message
    assert "[tasks.two]: unknown key 'dev_dat'. Did you mean 'dev_data'?" in message
    assert "[[compositions]] 1: there is no router 'kmean'." in message
    assert "[evaluation]: unknown key 'batch_sise'. Did you mean 'batch_size'?" in message
    assert "[evaluation] all: everything is scored" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (('selection = "on rows cut from train"', ""), "selection is missing"),
        (('name = "letters"', ""), "name is missing"),
        (('name = "letters"', 'name = "../x"'), "name '../x'"),
        (("seeds = [3, 4]", "seeds = [3, 3]"), "seeds names one twice"),
        (("seeds = [3, 4]", "seeds = []"), "seeds names nothing"),
        (("seeds = [3, 4]", "seeds = [-1]"), "a seed is not in 0"),
        (('["two", "one"]', '["two", "on"]'), "order 2: there is no table [tasks.on]. Did you mean 'one'?"),
        (('["two", "one"]', '["two"]'), "order 2 has other tasks than order 1"),
        (('["two", "one"]', '["two", "two", "one"]'), "order 2 names a task twice"),
        (('["seqlora", "strong"]', '["seqlor", "strong"]'), "no strategy 'seqlor'. Did you mean 'seqlora'?"),
        (('strategy = "olora"', 'strategy = "olor"'), "there is no strategy 'olor'."),
        (('on = ["strong"]', 'on = ["stron"]'), "[[compositions]] 2: on 'stron', which is not run. Did you mean"),
        (('name = "sum"', 'name = "prototype"'), "the name 'prototype' appears twice"),
        (('mode = "prototype"', 'mode = "prototyp"'), "there is no mode 'prototyp'. Did you mean 'prototype'?"),
        (('data = "rows/one.jsonl"', ""), "[tasks.one] gives no data"),
        (("[tasks.one]", "[tasks.One]"), "[tasks.One] cannot be a name"),
        (("${LETTERS}", "${NOT_SET_ANYWHERE}"), "the environment variable NOT_SET_ANYWHERE is not set"),
        (
            ('base = "org/model"', 'base = "org/${LETTERS}"'),
            "base = 'org/${LETTERS}': variables are allowed only in paths of data",
        ),
        (('"org/model"', '"m"\nrevision = "${LETTERS}"'), "revision = '${LETTERS}': variables are allowed"),
        (('base = "org/model"', 'gguf_file = "${LETTERS}.gguf"'), "gguf_file = '${LETTERS}.gguf': variables are"),
        (('"rows/one.jsonl"', '"hf:org/${LETTERS}"'), "[tasks.one] data = 'hf:org/${LETTERS}': variables are"),
    ],
)
def test_what_must_be_there_and_fit(write: Callable[..., Path], change: tuple[str, str], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_sequence(write(change))
    assert problem in caught.value.message
    assert caught.value.unchanged


def test_a_secret_of_the_environment_gets_into_no_message_and_no_request(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a stranger's file writes a variable: its value is nowhere but in the path of a data file."""
    monkeypatch.setenv("SECRET", "hf_0123456789")
    keys = [key for line in SOUND.splitlines() if (key := line.partition(" = ")[0]) != line and key.isidentifier()]
    assert {"base", "data", "eval_data", "strategies"} <= set(keys)
    for line in [line for line in SOUND.splitlines() if '"' in line and " = " in line]:
        before, _, behind = line.partition('"')
        for planted in (f'{before}"${{SECRET}}{behind}', f'{before}"hf:${{SECRET}}{behind}'):
            with pytest.raises((ConfigError, NotFoundError)) as caught:
                check_data(read_sequence(write((line, planted))))
            assert "hf_0123456789" not in f"{caught.value.message} {caught.value.hint}"


def test_a_missing_file_is_named_as_it_is_written(write: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"\[tasks.one\] data: no such file: 'rows/one.jsonl'"):
        check_data(read_sequence(write()))
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "one.jsonl").write_text("x")
    (tmp_path / "eval.jsonl").write_text("x")
    with pytest.raises(NotFoundError, match=r"\[tasks.two\] data: no such file: '\$\{LETTERS\}/two.jsonl'"):
        check_data(read_sequence(write(("/elsewhere/one.jsonl", str(tmp_path / "eval.jsonl")))))


def test_the_home_of_nobody_is_a_missing_file(write: Callable[..., Path]) -> None:
    with pytest.raises(NotFoundError, match=r"no such file: '~nobody-of-this-name/one\.jsonl'"):
        check_data(read_sequence(write(("rows/one.jsonl", "~nobody-of-this-name/one.jsonl"))))


def test_files_that_are_none(write: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no sequence file"):
        read_sequence(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="not TOML"):
        read_sequence(write(text="name = "))
    with pytest.raises(ConfigError, match="not TOML: an integer of more than 64 bits"):
        read_sequence(write(text=f"seeds = [0x{'f' * 5000}]"))
    with pytest.raises(ConfigError, match=r"\[train\] is not a table"):
        read_sequence(write(text="train = 3\n"))
    with pytest.raises(ConfigError, match=r"tasks is not a table of tables"):
        read_sequence(write(text="tasks = 3\n"))


BENCHMARKS = sorted((Path(__file__).parents[3] / "benchmarks" / "continual").glob("*.toml"))


@pytest.mark.by_turns
@pytest.mark.parametrize("file", BENCHMARKS, ids=lambda file: file.stem)
def test_the_benchmarks_files_can_be_read_in_every_size(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CL_BENCHMARK", "/data")
    sizes = tomllib.loads(file.read_text(encoding="utf-8"))["sizes"]
    assert {"small", "full"} <= sizes.keys()
    for size in sizes:
        config = read_sequence(file, size)
        assert config.document == json.loads(json.dumps(config.document))
        for cell in config.cells:
            for task in config.order(cell):
                assert config.training(task, cell.strategy, seed=cell.seed).data.startswith("/data/")


FAULTY = """
name = "Not A Name"
revisoin = "main"
orders = [["one", "twoo"], ["one"], ["one", "one"], []]
strategies = ["seqlora", "reply", "reply"]
seeds = [true]
dev_fraction = 2
base = "${HOME}/model"

[train]
lerning_rate = 1
r = "many"
seed = 3
epochs = false

[strategy.variant]
strategy = "olorra"
data = "x"
batch_size = 0

[strategy.odd]
strategy = 3

[tasks.one]
eval_data = "${NOT_SET_ANYWHERE}/x"
max_length = 1

[tasks.Two]
dta = "two.jsonl"

[tasks.three]
data = 5

[[compositions]]
mode = "protoype"
on = ["nobody"]

[[compositions]]
router = "kmean"

[[compositions]]
mode = "manual"
name = "a b"

[[compositions]]
mode = "manual"
name = "a b"

[evaluation]
metrc = "auto"
all = true

[sizes]
small = 3
"""
FAULTS = [
    "name 'Not A Name'", "unknown key 'revisoin'. Did you mean 'revision'?", "there is no table [tasks.twoo]",
    "order 2 has other tasks", "order 3 names a task twice", "order 4 names no task", "there is no strategy 'reply'",
    "strategies names one twice", "seeds = [True]: true and false are not numbers", "dev_fraction = 2:",
    "selection is missing", "base = '${HOME}/model': variables are", "[train]: unknown key 'lerning_rate'",
    "[train]: r = 'many':", "[train] seed: seeds = [...] belongs above", "[train]: epochs = False: true and false",
    "there is no strategy 'olorra'", "[strategy.variant] data: it is the same",
    "[strategy.variant]: batch_size = 0:", "[strategy.odd]: strategy = 3:", "[tasks.one] gives no data",
    "NOT_SET_ANYWHERE is not set", "[tasks.one]: max_length = 1:", "[tasks.Two] cannot be a name",
    "[tasks.Two]: unknown key 'dta'. Did you mean 'data'?", "[tasks.Two] gives no data", "[tasks.three]: data = 5:",
    "[[compositions]] 1: there is no mode 'protoype'", "[[compositions]] 1: on 'nobody'",
    "[[compositions]] 2: there is no router 'kmean'",
    "[[compositions]] 2: names no mode", "[[compositions]] 3: name 'a b'",
    "[[compositions]] 4: the name 'a b' appears twice", "[evaluation]: unknown key 'metrc'",
    "[evaluation] all: everything is scored", "sizes is not a table of tables",
]  # fmt: skip


def test_one_fault_of_each_kind_and_each_is_named_once(write: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError) as caught:
        read_sequence(write(text=FAULTY))
    problems = caught.value.message.partition(": ")[2].split("; ")
    for fault in FAULTS:
        assert sum(fault in problem for problem in problems) == 1, fault
    assert "name is missing" not in caught.value.message
    unsaid = [problem for problem in problems if not any(fault in problem for fault in FAULTS)]
    assert unsaid == [
        "order 3 has other tasks than order 1: a mean over them would say nothing",
        "order 4 has other tasks than order 1: a mean over them would say nothing",
        "[[compositions]] 3: the name 'a b' appears twice",
        "[[compositions]] 4: name 'a b': use a-z, 0-9, '.', '_' and '-'",
    ]


def test_a_thousand_faults_are_counted_and_a_huge_key_hides_no_other(write: Callable[..., Path]) -> None:
    keys = "\n".join(f"unknown_{number} = 1" for number in range(1000))
    with pytest.raises(ConfigError) as caught:
        read_sequence(write(("max_train_rows = 30", keys)))
    shown = caught.value.message.count("unknown key")
    assert shown > 50
    assert caught.value.message.endswith(f"; and {1000 - shown} more")
    with pytest.raises(ConfigError, match="unknown key 'max_rows'"):
        read_sequence(write(("max_train_rows = 30", f"{'x' * 100_000} = 1\nmax_rows = 30")))


def test_every_missing_file_is_named(write: Callable[..., Path]) -> None:
    with pytest.raises(NotFoundError) as caught:
        check_data(read_sequence(write()))
    for named in (
        "[tasks.one] data: no such file: 'rows/one.jsonl'",
        "eval_data: no such",
        "[tasks.two] data: no such",
    ):
        assert caught.value.message.count(named) == 1


def test_random_orders_are_recorded_as_they_were_drawn(write) -> None:
    orders = 'orders = [["one", "two"], ["two", "one"]]\n'
    drawn = read_sequence(write((orders, 'orders = [["two", "one"]]\nrandom_orders = 3\n')))
    assert drawn.settings.orders == (("two", "one"), ("one", "two")), "two tasks have no third order"
    assert drawn.document["orders"] == [["two", "one"], ["one", "two"]]
    assert "random_orders" not in drawn.document, "more of them are more orders, not other settings"
    alone = read_sequence(write((orders, "random_orders = 1\n")))
    assert alone.settings.orders == (("one", "two"), ("two", "one")), "the first is that of the tables"
