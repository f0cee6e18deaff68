"""Every part of the GPU benchmarks runs: on the CPU, with a tiny shape, each once; and what the table shows."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as program
from benchmarks.device import peft_twin, prompts, random_model, twin
from benchmarks.harness import Result
from benchmarks.part import in_own_process

RESULTS = {
    "gpu_step": 4,  # two numbers of earlier tasks, time and memory
    "gpu_decode": 8,  # two batch sizes, decoding and one pass, merged and mixed
    "gpu_attention": 1,
    "gpu_slots": 1,
    "gpu_scoring": 2,
}


@pytest.fixture(autouse=True)
def instant(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that counts its readings: these tests are not about time."""
    readings = iter(range(1, 1_000_000))
    for name in RESULTS:
        monkeypatch.setattr(f"benchmarks.{name}.clock", lambda device: lambda: float(next(readings)))


@pytest.mark.by_turns
@pytest.mark.parametrize("shape", ["tiny", "tiny-t5"])
@pytest.mark.parametrize("name", RESULTS)
def test_a_part_runs_on_the_cpu(name: str, shape: str, tmp_path: Path) -> None:
    results = import_module(f"benchmarks.{name}").measure("cpu", shape, tmp_path)
    assert len(results) == (0 if (name, shape) == ("gpu_scoring", "tiny-t5") else RESULTS[name])
    for result in results:
        numbers = [number for number in (result.value, result.peer, result.floor) if number is not None]
        assert all(math.isfinite(number) and number > 0 for number in numbers)
        assert shape in result.what


def test_every_part_is_tried() -> None:
    assert set(program.ON_DEVICE) == set(RESULTS)


def test_a_twin_has_the_same_weights_and_modules_of_its_own() -> None:
    model = random_model("tiny", "cpu")
    own, peft = twin(model), peft_twin(model, 2)
    pointers = {parameter.data_ptr() for parameter in model.parameters()}
    assert {parameter.data_ptr() for parameter in own.parameters()} == pointers
    assert pointers < {parameter.data_ptr() for parameter in peft.parameters()}
    assert not set(model.modules()) & (set(own.modules()) | set(peft.modules()))
    inputs = prompts(model, 2, 5)
    torch.testing.assert_close(own(**inputs).logits, model(**inputs).logits)


def test_the_table_shows_bar_peer_and_floor() -> None:
    result = Result("gpu_decode", "mixed", 1.1, 1.25, "x", {}, peer=2.0, floor=1.0)
    lines = program.table([result, replace(result, value=1.3, peer=None, floor=None)]).splitlines()
    assert lines[2] == "| gpu_decode | mixed | 1.100 x | 1.250 x | 2.000 x | 1.000 x | ok |"
    assert lines[3] == "| gpu_decode | mixed | 1.300 x | 1.250 x |  |  | MISSED |"


def test_the_table_leaves_out_what_nobody_knows_and_keeps_small_numbers() -> None:
    result = Result("compression", "error", 1.2e-6, 1 / 8, "", {}, peer=2.0)
    assert program.table([result]).splitlines() == [
        "| benchmark | what | measured | bar | peer | |",
        "| --- | --- | ---: | ---: | ---: | --- |",
        "| compression | error | 1.2e-06 | 0.125 | 2.000 | ok |",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "cuda:99"], "--device cuda:99: torch sees no such device"),
        (["--device", "cpu", "--only", "step"], "step does not take --device"),
        (["--only", "gpu_step"], "gpu_step needs --device"),
    ],
)
def test_what_cannot_run_is_refused(words, message, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks", *words])
    with pytest.raises(SystemExit, match="2"):
        program.main()
    assert message in capsys.readouterr().err


def test_a_part_that_fails_does_not_cost_the_others(monkeypatch, capsys, tmp_path: Path) -> None:
    measured, asked = Result("gpu_slots", "a slot", 1.5, 2.0, "x", {"bytes": 3}), []

    def run(name: str, folder: Path, device: str, shape: str) -> list[Result]:
        asked.append(name)
        if name == "gpu_decode" and asked.count(name) == 1:
            raise RuntimeError("it ended with exit code 1")
        return {"gpu_slots": [measured], "gpu_decode": [replace(measured, benchmark=name)], "gpu_scoring": []}[name]

    monkeypatch.setattr(program, "in_own_process", run)
    file = tmp_path / "a.json"
    only = [word for name in ("gpu_decode", "gpu_slots", "gpu_scoring") for word in ("--only", name)]
    words = ["--device", "cpu", "--shape", "tiny", *only, "--json", str(file)]
    monkeypatch.setattr("sys.argv", ["benchmarks", *words])
    assert program.main() == 1
    assert "gpu_decode cpu tiny: failed" in capsys.readouterr().err
    assert [result["what"] for result in json.loads(file.read_text(encoding="utf-8"))["results"]] == ["a slot"]
    assert "| gpu_slots | a slot | 1.500 x |" in file.with_suffix(".md").read_text(encoding="utf-8")
    # the same command again does what is left, and nothing else
    assert program.main() == 0
    assert asked == ["gpu_decode", "gpu_slots", "gpu_scoring", "gpu_decode"]
    written = json.loads(file.read_text(encoding="utf-8"))
    assert sorted(result["benchmark"] for result in written["results"]) == ["gpu_decode", "gpu_slots"]
    assert program.main() == 0
    assert len(asked) == 4
    # of other libraries the numbers say nothing about these
    written["environment"]["versions"]["torch"] = "0"
    file.write_text(json.dumps(written), encoding="utf-8")
    assert program.main() == 0
    assert asked[4:] == ["gpu_decode", "gpu_slots", "gpu_scoring"]


@pytest.mark.slow
def test_a_part_has_a_process_of_its_own(tmp_path: Path) -> None:
    (result,) = in_own_process("gpu_slots", tmp_path, "cpu", "tiny")
    assert result.benchmark == "gpu_slots"
    assert result.value > 0
    with pytest.raises(RuntimeError, match="exit code 1"):
        in_own_process("gpu_slots", tmp_path, "cpu", "no-such-shape")
