"""A sequence on a tiny base: what plain add-task, compose and eval give, killed in the middle, gone on with."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from lorabank import api
from lorabank.core.config import ComposeConfig, EvalConfig, InitConfig, TrainConfig
from lorabank.core.errors import ConfigError, DataError, DivergedError, ExistsError, IncompatibleError
from lorabank.sequences.results import SequenceResult, SequenceRow
from tests.unit.components.page import assert_well_made
from tests.unit.workflows.letters import EXPERIMENT, TASKS, TRAIN, Told, changed, write_rows


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, save_base: Callable[..., Path]) -> Path:
    """A folder with a base, rows, the file ``letters.toml``, and its whole run in ``letters``."""
    folder = tmp_path_factory.mktemp("sequence")
    save_base(folder / "base")
    for seed, (name, labels) in enumerate(TASKS.items()):
        write_rows(folder / f"{name}.jsonl", labels, 24, seed)
        write_rows(folder / f"{name}-test.jsonl", labels, 12, 10 + seed)
    train = "\n".join(f"{key} = {json.dumps(value)}" for key, value in TRAIN.items())
    (folder / "letters.toml").write_text(EXPERIMENT.format(train=train))
    api.run_sequence(folder / "letters.toml", out=folder / "letters")
    return folder


@pytest.fixture
def copy(lab: Path, tmp_path: Path) -> Path:
    """The same to change: data, file and run."""
    return Path(shutil.copytree(lab, tmp_path / "lab"))


def page(folder: Path) -> str:
    return (folder / "letters" / "table.md").read_text(encoding="utf-8")


def by_name(rows: tuple[SequenceRow, ...]) -> dict[tuple[str, str], SequenceRow]:
    return {(row.strategy, row.answers): row for row in rows}


def test_the_numbers_are_those_of_add_task_compose_and_eval(lab: Path, tmp_path: Path) -> None:
    averages, routed = [], []
    for number, order in enumerate((("one", "two"), ("two", "one"))):
        bank = tmp_path / f"bank{number}"
        for task in order:
            config = TrainConfig(
                data=str(lab / f"{task}.jsonl"),
                eval_data=str(lab / f"{task}-test.jsonl"),
                strategy="olora",
                **TRAIN,  # type: ignore[arg-type]
            )
            api.add_task(bank, task, config, init=InitConfig(base=str(lab / "base")))
        api.compose(bank, ComposeConfig(mode="prototype"))
        plain, composed = api.evaluate(bank, EvalConfig(all=True, forgetting_matrix=True, device="cpu"))
        averages.append(plain.scalars["average_accuracy"])
        routed.append(composed.scalars["average_accuracy"])
    result = api.run_sequence(lab / "letters.toml", out=lab / "letters")
    rows = by_name(result.rows)
    assert list(rows) == [("seqlora", "as-trained"), ("olora", "as-trained"), ("olora", "prototype")]
    for name, values in (("as-trained", averages), ("prototype", routed)):
        found = rows["olora", name].scalars["average_accuracy"]
        assert found is not None
        assert (found.mean, found.runs) == (pytest.approx(sum(values) / 2), 2)


def test_a_second_run_does_nothing_again(lab: Path) -> None:
    before, told = page(lab), Told()
    result = api.run_sequence(lab / "letters.toml", out=lab / "letters", observer=told)
    assert told.jobs == [], "nothing is trained or scored"
    assert page(lab) == before
    assert all(Path(path).is_file() for path in result.paths)


def test_results_hold_card_matrices_and_pictures(lab: Path) -> None:
    document = json.loads((lab / "letters" / "results.json").read_text(encoding="utf-8"))
    assert document["settings"]["train"]["epochs"] == 2.0
    assert len(document["runs"]) == 2 * 3
    matrix = document["runs"][0]["report"]["values"]
    assert matrix[0] == [None, None]
    assert matrix[1][1] is None
    assert all(isinstance(value, float) for value in matrix[2])
    names = sorted(path.relative_to(lab / "letters" / "plots") for path in (lab / "letters").rglob("*.png"))
    matrices = [Path("olora/as-trained.png"), Path("olora/prototype.png"), Path("seqlora/as-trained.png")]
    assert names == [Path("learning-forgetting.png"), *matrices]


def test_the_card_tells_the_protocol_and_stands_above_the_numbers(lab: Path) -> None:
    text = page(lab)
    card, _, table = text.partition("## Means")
    for fact in (
        "order 1: one → two", "order 2: two → one", "2 epochs", "learning rate 0.01 (constant)", "batch 8", "r 2",
        "not chosen", "evaluation rows", "24 training rows", "12 scored rows", "0 cut, 0 dropped", "the text alone",
        "labels: x, y, z", "seeds: 0", "cpu, float32", "torch ", "python ", "4 of 4 measured", "orthogonal 0.5",
    ):  # fmt: skip
        assert fact in card, fact
    assert "olora | prototype | routed" in table
    document = json.loads((lab / "letters" / "results.json").read_text(encoding="utf-8"))["card"]
    rows = [json.loads(line) for line in (lab / "one.jsonl").read_text(encoding="utf-8").splitlines()]
    canonical = "".join(
        json.dumps({"label": r["label"], "text": r["text"]}, separators=(",", ":")) + "\n" for r in rows
    )
    assert document["rows"]["one"]["train_sha256"] == hashlib.sha256(canonical.encode()).hexdigest()
    assert document["base"]["fingerprint"] == api.overview(lab / "letters/banks/order1/olora/seed0").base.fingerprint


# Jobs of the first bank: train one, score it, train two, score it, score the rest; then those of the second.
@pytest.mark.parametrize(
    ("job", "step", "trainings"),
    [
        (8, 4, 1),
        *(pytest.param(*moment, marks=pytest.mark.slow) for moment in ((1, 3, 4), (3, 5, 3), (5, 1, 2), (11, 2, 0))),
    ],
)
def test_killed_in_the_middle_it_goes_on_to_the_same_table(
    lab: Path, copy: Path, job: int, step: int, trainings: int
) -> None:
    shutil.rmtree(copy / "letters")
    file = changed(copy / "letters.toml", (', ["two", "one"]]', "]"))
    with pytest.raises(KeyboardInterrupt):
        api.run_sequence(file, out=copy / "letters", observer=Told(job, step))
    again = Told()
    result = api.run_sequence(file, out=copy / "letters", observer=again)
    assert sum(what.startswith("training") for what in again.jobs) == trainings, "what is done is not done again"
    # The uninterrupted run has a second order too: the first order's matrices and adapters must be the same.
    runs = json.loads((lab / "letters" / "results.json").read_text(encoding="utf-8"))["runs"]
    whole = {(run["strategy"], run["report"]["subject"]): run["report"] for run in runs if run["order"] == 1}
    for run in result.runs:
        assert run.report.values == whole[run.strategy, run.report.subject]["values"]
        assert run.report.scalars == whole[run.strategy, run.report.subject]["scalars"]
    assert len(result.runs) == len(whole) == 3
    for strategy in ("seqlora", "olora"):
        assert tensors(copy, strategy) == tensors(lab, strategy)
    before = page(copy)
    api.run_sequence(file, out=copy / "letters")
    assert page(copy) == before


def tensors(folder: Path, strategy: str) -> list[str]:
    bank = api.overview(folder / "letters" / "banks" / "order1" / strategy / "seed0")
    return [bank.adapter_of(task.name).files["adapter_model.safetensors"] for task in bank.tasks]


def test_an_interrupted_training_is_resumed_not_begun_anew(copy: Path) -> None:
    shutil.rmtree(copy / "letters")
    with pytest.raises(KeyboardInterrupt):
        api.run_sequence(copy / "letters.toml", out=copy / "letters", observer=Told(1, 4))
    plan = api.plan_sequence(copy / "letters.toml", out=copy / "letters")
    assert plan.cells[0].interrupted == "one"
    assert plan.cells[0].to_learn == ("one", "two")

    class Steps(Told):
        first: int | None = None

        def advance(self, done: int, values: Mapping[str, float]) -> None:
            if self.first is None:
                self.first = done

    told = Steps()
    api.run_sequence(copy / "letters.toml", out=copy / "letters", only=("seqlora",), observer=told)
    assert told.first == 3, "there was a checkpoint of step 2"


def test_the_plan_says_what_is_left_and_writes_nothing(copy: Path, tree: Callable[[Path], Any]) -> None:
    shutil.rmtree(copy / "letters" / "banks" / "order2" / "olora")
    before = tree(copy)
    plan = api.plan_sequence(copy / "letters.toml", out=copy / "letters")
    assert tree(copy) == before
    cells = {(cell.order, cell.strategy): cell for cell in plan.cells}
    assert cells[1, "olora"].learnt == ("one", "two")
    assert cells[1, "olora"].to_compose == ()
    assert cells[1, "olora"].scores > 0
    assert cells[2, "olora"].to_learn == ("two", "one")
    assert cells[2, "olora"].to_compose == ("prototype",)
    assert plan.steps == 2 * 6, "24 rows in batches of 8, twice, for each of two tasks"
    assert ("banks", "0 of 4 measured") in plan.card_lines


def test_other_settings_in_the_same_folder_are_refused(copy: Path) -> None:
    changed(copy / "letters.toml", ("epochs = 2.0", "epochs = 3.0"), ('mode = "prototype"', 'mode = "manual"'))
    with pytest.raises(ExistsError) as caught:
        api.run_sequence(copy / "letters.toml", out=copy / "letters")
    assert "train.epochs is 3.0, was 2.0" in caught.value.message
    assert "compositions is " in caught.value.message
    assert caught.value.hint == "name another folder: --out DIR"


@pytest.mark.parametrize(
    ("table", "given", "problem"),
    [
        ("[[compositions]]", 'router = "gaussian"\nset = ["shrinkage=2"]', "router gaussian: shrinkage = '2'"),
        ("[[compositions]]", "clusters_per_task = 0", "router kmeans: clusters_per_task = '0'"),
        (
            "[train]",
            'set = ["replay_row=6"]',
            "strategy seqlora, variant lora, start kaiming and optimizer adamw: there is no setting",
        ),
        (
            "[tasks.one]",
            'set = ["replay_row=6"]',
            "strategy seqlora, variant lora, start kaiming and optimizer adamw: there is no",
        ),
        ("[tasks.two]", 'set = ["sheet=4"]', "format .jsonl: there is no setting 'sheet'"),
        ("[train]", 'set = ["sheet"]', "'sheet' is not KEY=VALUE"),
    ],
)
def test_settings_of_methods_are_checked_before_anything_is_done(
    copy: Path, table: str, given: str, problem: str
) -> None:
    changed(copy / "letters.toml", (table, f"{table}\n{given}"))
    where = "[[compositions]] 1" if table == "[[compositions]]" else table
    with pytest.raises(ConfigError) as caught:
        api.run_sequence(copy / "letters.toml", out=copy / "new")
    assert caught.value.message.startswith(f"{copy / 'letters.toml'}: {where} set: {problem}")
    assert not (copy / "new").exists()


@pytest.mark.parametrize("table", ["[train]", "[tasks.one]"])
def test_a_strategy_that_takes_no_packed_rows_is_refused_before_the_first_task(copy: Path, table: str) -> None:
    """Also where they are of the task that is the first one in one of the orders alone."""
    changed(copy / "letters.toml", (table, f"{table}\npacking = true"), ('["seqlora", "olora"]', '["der"]'))
    changed(copy / "letters.toml", ('on = ["olora"]', 'on = ["der"]'))
    with pytest.raises(ConfigError, match="strategy 'der' computes the loss of single rows after the first task"):
        api.run_sequence(copy / "letters.toml", out=copy / "new")
    assert not (copy / "new").exists()


@pytest.mark.slow
def test_more_seeds_strategies_and_compositions_go_on(copy: Path) -> None:
    more = 'mode = "manual"\non = ["olora"]\n\n[evaluation]'
    changed(
        copy / "letters.toml",
        ('["seqlora", "olora"]', '["seqlora", "olora", "isolated"]\nseeds = [0]'),
        ("[evaluation]", f"[[compositions]]\n{more}"),
        ('"not chosen"', '"still not chosen"'),
    )
    told = Told()
    result = api.run_sequence(copy / "letters.toml", out=copy / "letters", observer=told)
    assert sum(what.startswith("training") for what in told.jobs) == 4, "two tasks in two orders, isolated"
    assert ("olora", "manual") in by_name(result.rows)
    assert result.card["selection"] == "still not chosen"


def test_a_folder_of_something_else_is_not_touched(copy: Path) -> None:
    with pytest.raises(ExistsError, match="holds no sequence"):
        api.run_sequence(copy / "letters.toml", out=copy / "base")
    assert not (copy / "base" / "sequence.json").exists()


def test_changed_rows_are_refused(copy: Path) -> None:
    write_rows(copy / "two.jsonl", TASKS["two"], 24, 77)
    with pytest.raises(DataError, match="the rows of task 'two' are no longer those"):
        api.run_sequence(copy / "letters.toml", out=copy / "letters")


def test_another_base_is_refused(copy: Path, save_base: Callable[..., Path]) -> None:
    shutil.rmtree(copy / "base")
    save_base(copy / "base", hidden_size=16)
    with pytest.raises(IncompatibleError, match="the base model is no longer"):
        api.run_sequence(copy / "letters.toml", out=copy / "letters")


@pytest.mark.slow
def test_dev_runs_have_a_folder_of_their_own(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed(copy / "letters.toml", ("[train]", "dev_fraction = 0.25\n[train]"))
    monkeypatch.chdir(copy)
    shutil.rmtree("letters")
    result = api.run_sequence("letters.toml", dev=True, only=("seqlora",))
    assert Path(result.folder).name == "letters-dev"
    assert ("scored on", "rows to choose settings on") in result.card_lines
    assert result.card["rows"]["one"]["train"] == 18
    assert result.card["rows"]["one"]["eval"] == 6
    with pytest.raises(ExistsError, match="scored on other rows"):
        api.run_sequence("letters.toml", out="letters-dev")


@pytest.mark.slow
def test_only_some_strategies(copy: Path) -> None:
    shutil.rmtree(copy / "letters")
    result = api.run_sequence(copy / "letters.toml", out=copy / "letters", only=["seqlora"])
    assert {row.strategy for row in result.rows} == {"seqlora"}
    assert ("banks", "2 of 4 measured") in result.card_lines
    with pytest.raises(ConfigError, match=r"has no strategy 'olor'\. Did you mean 'olora'\?"):
        api.run_sequence(copy / "letters.toml", out=copy / "letters", only=["olor"])


def test_what_goes_wrong_is_told_with_its_cell(copy: Path) -> None:
    shutil.rmtree(copy / "letters")
    changed(copy / "letters.toml", ("[tasks.one]", "[strategy.olora]\nlearning_rate = 1e38\n\n[tasks.one]"))
    with pytest.raises(DivergedError, match=r"order 1, olora, seed 0: "):
        api.run_sequence(copy / "letters.toml", out=copy / "letters")
    assert "as-trained" in page(copy), "what was measured before has its table"


@pytest.mark.slow
def test_notices_name_the_cell_and_estimate_the_rest(copy: Path) -> None:
    shutil.rmtree(copy / "letters")
    told = Told()
    file = changed(copy / "letters.toml", (', ["two", "one"]]', "]"))
    result: SequenceResult = api.run_sequence(file, out=copy / "letters", observer=told)
    cells = [line for line in told.notices if line.startswith("[")]
    assert cells[0] == "[1/2] order 1, seqlora, seed 0: learning one"
    assert cells[-1].startswith("[2/2] order 1, olora, seed 0: composing and scoring (about ")
    assert len(cells) == 2 * 3
    assert result.seconds > 0


def test_a_language_model(copy: Path, make_language_model: Callable[..., Path]) -> None:
    model = make_language_model()
    changed(
        copy / "letters.toml",
        ('base = "base"', f"base = {json.dumps(str(model))}\nmax_train_rows = 8\nmax_eval_rows = 4"),
        ('orders = [["one", "two"], ["two", "one"]]', 'orders = [["one", "two"]]'),
        ('strategies = ["seqlora", "olora"]', 'strategies = ["olora"]'),
        ("max_length = 16", 'max_length = 128\nprompt_template = "{labels}? one: {text}"'),
        ("epochs = 2.0", "epochs = 1.0"),
    )
    result = api.run_sequence(copy / "letters.toml", out=copy / "lm")
    assert result.card["base"]["task_type"] == "CAUSAL_LM"
    assert result.card["prompts"]["two"] == "x, y, z? one: {text}"
    assert result.card["notes"] == ["one: its prompt names the task, which tells a router the answer"]
    assert set(by_name(result.rows)) == {("olora", "as-trained"), ("olora", "prototype")}


def test_a_report_of_the_run_holds_its_table_and_its_card(copy: Path, tmp_path: Path) -> None:
    target = api.report(copy / "letters", tmp_path / "r.html", tables=[tmp_path / "t.csv"])
    found = assert_well_made(target.read_text(encoding="utf-8"))
    table = page(copy)
    means = table[table.index("## Means over orders") : table.index("## Score by task")]
    numbers = set(re.findall(r"-?\d\.\d{3} ± \d\.\d{3}", means))
    assert len(numbers) > 5
    assert numbers <= set(found.texts)
    protocol = re.findall(r"^- ([^:]+): ", table[: table.index("## Means")], re.M)
    assert {"base model", "settings chosen"} & set(protocol)
    assert set(protocol) <= set(found.texts)
    names = ["seqlora, as-trained", "olora, as-trained", "olora, prototype"]
    assert [line.split('"')[1] for line in (tmp_path / "t.csv").read_text(encoding="utf-8").splitlines()[1:]] == names
    assert {f"{name}, order 1, seed 0" for name in names} <= set(found.texts)
    bank = copy / "letters" / "banks" / "order1" / "olora" / "seed0"
    beside = api.report(copy / "letters", tmp_path / "both.html", beside=[bank])
    texts = assert_well_made(beside.read_text(encoding="utf-8")).texts
    assert {"letters: olora, prototype", "seed0: as-trained"} <= set(texts)
    assert not any("paired by" in text for text in texts), "a sequence and a bank have nothing to pair"
