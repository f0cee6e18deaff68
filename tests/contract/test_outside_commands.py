"""A package from outside with a method, and settings of its own, for each shelf goes through every command."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorabank.core.shelves import SHELVES
from tests.contract.conftest import OUTSIDE, SETTINGS, Lab, write_task

pytestmark = pytest.mark.usefixtures("outside")

TRAIN = [
    word
    for name, value in SETTINGS.items()
    for word in (f"--{name.replace('_', '-')}", str(value))
]  # fmt: skip
OURS = {
    "strategy": ("windowed", "window", 2),
    "reference": ("biases", None, None),
    "variant": ("triple", "weight", 1.0),
    "start": ("narrow", "deviation", 0.02),
    "saving": ("thinned", "kept", 0.5),
    "penalty": ("away", "power", 2.0),
    "optimizer": ("descent", "momentum", 0.9),
    "merger": ("shares", "share", 1.0),
    "router": ("shrunken", "threshold", 0.0),
    "gate": ("constant", "decay", 0.0),
    "form": ("question", "mark", "Q: "),
    "format": (".records", "mark", ":"),
    "scoring": ("normalised", "power", 1.0),
    "mode": ("soft", None, None),
    "task type": ("FEATURE_EXTRACTION", None, None),
    "site": ("dense", None, None),
    "quantiser": ("rounded", "levels", 127),
    "correction": ("means", "share", 1.0),
    "metric": ("worst_task", None, None),
    "text metric": ("contained", None, None),
}
"""Family to the method of the package, its setting and the default."""


def command_line() -> dict[str, Any]:
    """The modules of the command line, taken away: options are made once, of the methods that are there then."""
    names = [name for name in sys.modules if name.partition(".")[0] == "lorabank_cli"]
    return {name: sys.modules.pop(name) for name in names}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Any]]:
    """``run(words...)``: the document of a command, or what it says where it is to end with another ``code``."""
    before = command_line()
    main = import_module("lorabank_cli.main").main

    def call(*words: object, code: int = 0) -> Any:
        capsys.readouterr()
        ended = main([*map(str, words), "--json"])
        captured = capsys.readouterr()
        assert ended == code, captured.err + captured.out
        return captured.err if code else json.loads(captured.out)

    yield call
    command_line()
    sys.modules.update(before)


def records(path: Path, rows: Sequence[dict[str, str]], mark: str) -> Path:
    path.write_text("\n".join("".join(f"{name} {mark} {value}\n" for name, value in row.items()) for row in rows))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Callable[[str, int], Path]:
    """``data(name, labels)``: a task's rows as records whose names and values stand apart by ``=>``."""

    def make(name: str, labels: int) -> Path:
        lines = write_task(tmp_path / "rows.jsonl", labels, seed=labels).read_text().splitlines()
        return records(tmp_path / f"{name}.records", [json.loads(line) for line in lines], "=>")

    return make


def test_methods_lists_them_with_their_settings(run) -> None:
    assert {shelf.kind for shelf in SHELVES} == OURS.keys(), "a shelf has no method in tests/outside"
    for family, (name, setting, default) in OURS.items():
        (found,) = (one for one in run("methods", name) if one["family"] == family)
        known = {one["name"]: one["default"] for one in found["settings"]}
        assert setting is None or known[setting] == default, family


def test_another_process_finds_them(outside: Path) -> None:
    path = os.pathsep.join([str(outside), str(OUTSIDE), *filter(None, sys.path)])
    command = [sys.executable, "-m", "lorabank_cli", "methods", "shrunken"]
    said = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True)
    assert "--set threshold=0.0" in said.stdout


def test_a_classifiers_bank(run, lab: Lab, data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = {name: data(name, labels) for name, labels in (("one", 2), ("two", 3), ("three", 2))}
    run("init", "--base", lab.base, "--task-type", "FEATURE_EXTRACTION")
    own = ["window=1", "power=1.5", "weight=0.5", "deviation=0.1", "kept=0.75", "momentum=0.5", "mark==>"]
    methods = [
        "--strategy",
        "windowed",
        "--penalty",
        "away",
        "--variant",
        "triple",
        "--start",
        "narrow",
        "--saving",
        "thinned",
        "--optimizer",
        "descent",
    ]
    chosen = [*TRAIN, *methods, *(word for one in own for word in ("--set", one))]
    plan = run("add-task", "one", "--data", files["one"], *chosen, "--dry-run")
    assert plan["settings"]["set"]["value"] == own
    assert plan["penalty"].keys() == {"away"}
    for name, file in files.items():
        run("add-task", name, "--data", file, *chosen)
    assert [run("show", name)["adapter"]["context"] for name in files] == [[], ["one"], ["two"]]
    for wrong in ("windw=1", "window=0", "share=2"):
        assert wrong.partition("=")[0] in run("add-task", "x", "--data", files["one"], *chosen, "--set", wrong, code=2)

    made = {
        "halved": ("merged", "--merger", "shares", "--set", "share=0.5", "--set", "max_rank=3"),
        "nearest": ("routed", "--router", "shrunken", "--set", "threshold=0.001"),
        "weighed": ("gated", "--gate", "constant", "--set", "decay=0.5", "--set", "epochs=1"),
        "soft": ("soft", "--router", "kmeans", "--set", "clusters_per_task=2"),
    }
    for name, words in made.items():
        stored = run("compose", "--name", name, "--mode", *words)["composition"]["parameters"]
        given = [word.partition("=") for word in words if "=" in word]
        assert {key: float(stored[key]) for key, _, _ in given} == {key: float(value) for key, _, value in given}
    reports = run("eval", "--all", "--head-from", "shrunken")["reports"]
    assert [report["subject"] for report in reports] == ["as-trained", *made]
    assert all(report["scalars"]["worst_task"] == min(report["values"][-1]) for report in reports)

    asked = records(tmp_path / "asked.records", [{"text": "a b c"}, {"text": "x y z"}], "=>")
    for name in made:
        told = ("--task", "one") if name in ("halved", "weighed") else ()
        said = run("predict", "--composition", name, "--data", asked, "--set", "mark==>", *told)["predictions"]
        assert [one["text"] for one in said] == ["a b c", "x y z"]
    packed = tmp_path / "asked.records.gz"
    packed.write_bytes(gzip.compress(asked.read_bytes()))
    assert len(run("predict", "--task", "one", "--data", packed, "--set", "mark==>")["predictions"]) == 2
    assert "no ':' behind a name" in run("predict", "--task", "one", "--data", asked, code=6)

    run("export", "halved", tmp_path / "halved")
    run("export", "one", tmp_path / "single")
    guest = ("--data", files["one"], "--keep-samples", "4", "--clusters-per-task", "2", "--device", "cpu")
    source = ("import", tmp_path / "single", "--labels", "part0,part1", *guest)
    run(*source, "--task", "guest", "--set", "mark==>")
    assert "setting 'window'" in run(*source, "--task", "other", "--set", "mark==>", "--set", "window=1", code=2)
    run("rename", "guest", "visitor")
    run("undo", "--yes")
    run("verify", "--full")
    run("backup", tmp_path / "copy")
    run("restore", tmp_path / "copy", "--yes")
    run("remove", "soft", "--yes")
    run("gc", "--yes")
    run("report", tmp_path / "report.html")
    assert run("list")["tasks"]


def test_a_language_models_bank(run, make_lab: Callable[[str], Lab], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = make_lab("llama").base
    labels = ("cold", "rather warm")
    rows = [{"question": f"{word} {i}", "answer": labels[i % 2]} for i, word in enumerate("abcdefghijklmnop")]
    file = records(tmp_path / "questions.records", rows, ":")
    asked = ["--data", file, *TRAIN, "--base", base, "--format", "question"]
    run("add-task", "q", *asked, "--set", "question.mark=Ask: ", "--scoring", "normalised", "--set", "power=0.5")
    texts = ["Ask: a 1", "Ask: k 2", "Ask: zz"]
    said = run("predict", "--task", "q", *texts)["predictions"]
    for one, text in zip(said, texts, strict=True):
        scores = plain_likelihoods(base, Path("bank"), text, labels)
        expected = torch.tensor([likelihood / tokens**0.5 for likelihood, tokens in scores]).softmax(0)
        assert one["label"] == labels[int(expected.argmax())]
        assert one["probability"] == pytest.approx(float(expected.max()), abs=1e-4)

    run("add-task", "free", *asked, "--set", "generation.max_new_tokens=3")
    (report,) = run("eval", "--task", "free", "--metric", "contained")["reports"]
    assert report["metric"] == "contained"
    assert "contained" in report["texts"]["free"]["metrics"]
    questions = ["--data", file, "--text-column", "question", "--set", "mark=:", "--max-new-tokens", "2"]
    assert len(run("generate", "--task", "free", *questions)["answers"]) == len(rows)
    run("report", tmp_path / "report.html")


def test_a_sequence(run, lab: Lab, data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tables = [f"[tasks.{name}]\ndata = '{data(name, labels).name}'\n" for name, labels in (("one", 2), ("two", 3))]
    train = "".join(f"{name} = {json.dumps(value)}\n" for name, value in (SETTINGS | {"epochs": 1}).items())
    (tmp_path / "ours.toml").write_text(
        f"name = 'ours'\nselection = 'none'\nbase = '{lab.base}'\norders = [['one', 'two']]\n"
        "strategies = ['windowed', 'biases']\n"
        f"[train]\npenalty = 'away'\nset = ['.records.mark==>', 'power=1.5']\n{train}"
        f"[strategy.windowed]\nset = ['window=1']\n{''.join(tables)}"
        "[[compositions]]\nmode = 'merged'\nmerger = 'shares'\nset = ['share=0.5']\n[evaluation]\ndevice = 'cpu'\n"
    )
    rows = run("sequence", "run", "ours.toml")["rows"]
    assert [(row["strategy"], row["answers"], row["mode"]) for row in rows] == [
        ("windowed", "as-trained", "as-trained"),
        ("windowed", "merged", "merged"),
        ("biases", "as-trained", "not storable"),
    ]
    refused = run("add-task", "x", "--data", tmp_path / "one.records", "--strategy", "biases", code=2)
    assert "'biases' is not offered: it trains weights of the base itself" in refused
    (bank,) = (tmp_path / "ours" / "banks").glob("*/windowed/*")
    config = run("show", "two", "--bank", bank)["adapter"]["config"]
    assert config["set"] == ["power=1.5", "window=1"], "the copies of the rows are no records"
    assert run("show", "merged", "--bank", bank)["composition"]["parameters"]["share"] == 0.5


def plain_likelihoods(base: Path, bank: Path, text: str, labels: Sequence[str]) -> list[tuple[float, int]]:
    """From plain transformers and safetensors: the log-likelihood of each label behind a text, and its tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(base).eval(), AutoTokenizer.from_pretrained(base)
    (folder,) = (bank / "adapters").iterdir()
    scaling = SETTINGS["lora_alpha"] / SETTINGS["r"]
    tensors = load_file(folder / "adapter_model.safetensors")
    prompt = tokenizer(text)["input_ids"]
    found = []
    with torch.no_grad():
        for key, a in tensors.items():
            if key.endswith(".lora_A.weight"):
                module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                model.get_submodule(module).weight += scaling * tensors[key.replace("lora_A", "lora_B")] @ a
        for label in labels:
            ids = [*tokenizer(label, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
            found.append((float(logits.log_softmax(-1)[range(len(ids)), ids].sum()), len(ids)))
    assert len({tokens for _, tokens in found}) == len(labels)
    return found
