"""Tables over orders of tasks: what they ask for, the rows that a file has, and what they show."""

from __future__ import annotations

import json
import shutil
import subprocess
from argparse import ArgumentParser
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import compositions, learning, quantised, task_orders
from benchmarks.harness import commit, write_whole
from benchmarks.learning import Method

RESULTS = Path(task_orders.__file__).parent / "results"
DEMO = task_orders.Asked("demo", "minilm", 480, 240)


@pytest.mark.parametrize("name", ["compositions", "gates"])
def test_a_later_run_adds_to_the_rows_that_are_kept(name: str) -> None:
    rows = task_orders.earlier(RESULTS / f"{name}.json", DEMO)
    page = (RESULTS / f"{name}.md").read_text(encoding="utf-8")
    assert compositions.table(rows) in page
    assert "480 training and 240 test rows of each task, all-MiniLM-L6-v2" in page
    for row in rows:  # every score is a count of so many texts
        assert all(score * DEMO.test == pytest.approx(round(score * DEMO.test)) for score in row["scores"].values())


def test_rows_of_other_data_are_not_added_to(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    assert task_orders.earlier(file, DEMO) == []
    file.write_text(json.dumps({"asked": DEMO._asdict(), "rows": [{"seed": 1}]}), encoding="utf-8")
    assert task_orders.earlier(file, DEMO) == [{"seed": 1}]
    with pytest.raises(SystemExit, match=r"a\.json has rows of .*'train': 480.*name another file"):
        task_orders.earlier(file, DEMO._replace(train=96))


def test_each_data_base_and_number_of_rows_has_banks_of_its_own(tmp_path: Path) -> None:
    others = [DEMO._replace(**one) for one in ({"data": "long"}, {"base": "smollm2"}, {"train": 1}, {"test": 1})]
    assert len({one.folder(tmp_path) for one in (DEMO, *others)}) == 5


@pytest.mark.parametrize(
    ("program", "words", "message"),
    [
        (learning, ["--methods", "dorra"], "'dorra'"),
        (learning, ["--methods", "lora"], "'lora'"),  # the plain form is `lora-kaiming`
        (compositions, ["--methods", "layred"], "'layred'"),
        (compositions, ["--families", "gate", "--methods", "layered"], "'layered' is not a gate"),
        (learning, ["--data", "short"], "--data short: set CL_BENCHMARK to the folder of its tasks"),
    ],
)
def test_what_gives_no_row_is_refused(program, words, message, monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.delenv("CL_BENCHMARK", raising=False)
    monkeypatch.setattr("sys.argv", ["benchmarks", *words, "--folder", str(tmp_path / "there")])
    with pytest.raises(SystemExit, match="2"):
        program.main()
    assert message in capsys.readouterr().err
    assert not (tmp_path / "there").exists()


def test_arguments_have_the_rows_of_their_base(monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks", "--base", "smollm2", "--methods", "b"])
    found, asked = task_orders.read_arguments(ArgumentParser(), "there", ["a", "b"])
    assert found.methods == ["b"]
    assert asked == ("demo", "smollm2", 96, 48)
    assert asked.arguments() == "--data demo --base smollm2 --rows 96 48"


def test_a_method_is_chosen_by_its_variant_its_start_or_its_name() -> None:
    assert learning.methods(["dora"]) == [Method("dora", "kaiming")]
    assert learning.methods(["pissa"]) == [Method("lora", "pissa")]
    assert learning.methods(["lora-kaiming-faster"]) == [Method("lora", "kaiming", faster=True)]
    every = learning.methods(())
    assert every[:2] == [Method("lora", "kaiming"), Method("lora", "kaiming", faster=True)]
    assert len(set(every)) == len(every) == len(list(learning.LORAS)) + len(learning.STARTS)


def row(strategy: str, seed: int, method: str, average: float, oracle: float | None = None) -> dict:
    family = "router" if oracle else "merger" if method != "as-trained" else ""
    named = {"strategy": strategy, "seed": seed, "family": family, "method": method}
    return {**named, "task_id": "given", "average": average, "oracle": oracle, "routed": oracle and 0.5}


def test_compositions_are_shown_with_their_distance_to_each_tasks_own_adapter() -> None:
    rows = [row("olora", 0, "as-trained", 0.5), row("olora", 1, "as-trained", 0.7)]
    rows += [row("olora", 0, "ridge", 0.6, 0.8), row("olora", 1, "ridge", 0.8, 0.9)]
    rows += [row("olora", 0, "ties", 0.4), row("olora", 0, "svd", 0.5)]
    # sqrt((0.1² + 0.1²) / 1) = 0.141 about 0.6; the distances are -0.3 and -0.2, 0.071 about -0.25
    assert compositions.table(rows).splitlines()[2:] == [
        "| each task: its own adapter | given | 0.850 ± 0.071 |  |  |",
        "| `as-trained` | given | 0.600 ± 0.141 | -0.250 ± 0.071 |  |",
        "| router `ridge` | given | 0.700 ± 0.141 | -0.150 ± 0.071 | 0.500 ± 0.000 |",
        "| merger `svd` | given | 0.500 (n = 1) | -0.300 (n = 1) |  |",
        "| merger `ties` | given | 0.400 (n = 1) | -0.400 (n = 1) |  |",
    ]
    assert compositions.command(rows) == (
        "benchmarks.compositions --strategies olora --families router merger --methods ridge ties svd"
    )


def learnt(variant: str, average: float, seconds: float | None, capacity: float | None) -> dict:
    scores = {"average_accuracy": average, "learning_accuracy": 0.9, "forgetting": 0.1}
    named = {"variant": variant, "start": "kaiming", "faster": False, "strategy": "olora", "seed": 0}
    kept = {"bytes": 2500, "capacity_left": capacity, "overlap": capacity}
    return {**named, "learning_rate": 1e-3, **scores, "seconds": seconds, **kept}


def test_learning_is_shown_beside_plain_lora_and_what_is_unknown_is_left_out() -> None:
    rows = [learnt("lora", 0.5, 4.0, 0.25), learnt("dora", 0.6, 6.0, 0.5), learnt("ia3", 0.4, None, None)]
    assert learning.table(rows).splitlines()[2:] == [
        "| `dora` | `kaiming` | olora | 0.001 | 0.600 | 0.900 | 0.100 | 6.0 (1.50 x) | 2 | 0.500 | 0.500 |",
        "| `lora` | `kaiming` | olora | 0.001 | 0.500 | 0.900 | 0.100 | 4.0 (1.00 x) | 2 | 0.250 | 0.250 |",
        "| `ia3` | `kaiming` | olora | 0.001 | 0.400 | 0.900 | 0.100 |  | 2 |  |  |",
    ]
    assert learning.command(rows) == "benchmarks.learning --methods lora-kaiming dora-kaiming ia3-kaiming"


def test_a_row_is_kept_before_its_bank_goes_and_a_resumed_bank_has_no_time(monkeypatch, tmp_path: Path) -> None:
    adapter = SimpleNamespace(bytes=8, metrics={"overlap": {}, "capacity_left": 1.0})
    report = SimpleNamespace(tasks=["a"], values=[[0.5]], scalars=dict.fromkeys(learning._METRICS, 0.5))
    opened = SimpleNamespace(snapshot=lambda: SimpleNamespace(by_position={1: adapter}))
    monkeypatch.setattr("lorabank.bank.bank.Bank.open", lambda bank: opened)
    monkeypatch.setattr("lorabank.sequences.bank.compose_and_measure", lambda *_: [report])
    monkeypatch.setattr(learning, "learn_all", lambda bank, *_: bank.mkdir(parents=True, exist_ok=True))
    monkeypatch.setattr(learning, "prepare", lambda *_: None)
    file, banks = tmp_path / "a.json", DEMO.folder(tmp_path)
    (banks / "dora-kaiming-1").mkdir(parents=True)
    words = ["--methods", "dora", "--seeds", "0", "1", "--folder", str(tmp_path), "--json", str(file)]
    monkeypatch.setattr("sys.argv", ["benchmarks", *words])

    def stopped(bank: Path) -> None:
        raise KeyboardInterrupt(bank.name)

    with monkeypatch.context() as until:
        until.setattr(learning.shutil, "rmtree", stopped)
        with pytest.raises(KeyboardInterrupt, match="dora-kaiming-0"):
            learning.main()
    assert [one["seed"] for one in task_orders.earlier(file, DEMO)] == [0]
    assert learning.main() == 0
    rows = task_orders.earlier(file, DEMO)
    assert [(one["seed"], one["seconds"] is None) for one in rows] == [(0, False), (1, True)]
    assert [path.name for path in banks.iterdir()] == ["dora-kaiming-0"]
    assert {one["commit"] for one in rows} == {commit()}


def test_a_file_is_written_as_a_whole(monkeypatch, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_whole(file, "old")

    def full(path: Path, text: str, **_: str) -> None:
        with path.open("w", encoding="utf-8") as part:
            part.write(text[:1])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space"):
        write_whole(file, "new")
    assert file.read_text(encoding="utf-8") == "old"


@pytest.mark.skipif(shutil.which("git") is None, reason="git makes the commit")
def test_results_name_the_commit_and_whether_the_code_is_as_committed(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        own = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        return subprocess.run(["git", "-C", tmp_path, *own, *words], check=True, capture_output=True, text=True).stdout

    assert commit(tmp_path) is None
    git("init", "-q")
    for name in ("lorabank/a.py", "benchmarks/results/a.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("1", encoding="utf-8")
    git("add", ".")
    git("commit", "-q", "-m", "a")
    committed = git("rev-parse", "HEAD").strip()
    (tmp_path / "benchmarks/results/a.json").write_text("2", encoding="utf-8")
    assert commit(tmp_path) == committed[:12]
    (tmp_path / "lorabank/a.py").write_text("2", encoding="utf-8")
    assert commit(tmp_path) == f"{committed[:12]}+changes"


def test_the_page_of_quantised_bases_names_the_kinds_that_were_measured(tmp_path: Path) -> None:
    kept = (RESULTS / "quantised.md").read_text(encoding="utf-8")
    rows = json.loads((RESULTS / "quantised.json").read_text(encoding="utf-8"))["rows"]
    quantised.save(tmp_path / "a.json", rows)
    own = (tmp_path / "a.md").read_text(encoding="utf-8")
    assert own[own.index("Made by") :] == kept[kept.index("Made by") :]
