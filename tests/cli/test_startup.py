"""Help and listing must answer at once: what they import is the budget."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lorabank.bank.bank import Bank

HEAVY = {
    "accelerate",
    "alembic",
    "fastapi",
    "jinja2",
    "matplotlib",
    "numpy",
    "peft",
    "prometheus_client",
    "psutil",
    "pyarrow",
    "pydantic",
    "rich",
    "safetensors",
    "sklearn",
    "sqlalchemy",
    "tokenizers",
    "torch",
    "transformers",
    "uvicorn",
}
PROBE = """
import sys
from lorabank_cli.main import main

code = main(sys.argv[1:])
print(*sorted(sys.modules))
sys.exit(code)
"""


@pytest.mark.parametrize(
    "words",
    [["--help"], ["list", "--help"], ["add-task", "--help"], ["serve", "--help"], ["list"], ["list", "--json"]],
)
def test_no_heavy_package_is_imported(words: list[str], bank: Bank) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    shown = subprocess.run(
        [sys.executable, "-c", PROBE, *words], capture_output=True, text=True, env=environment, check=True, timeout=60
    )
    loaded = {name.partition(".")[0] for name in shown.stdout.splitlines()[-1].split()}
    assert "click" in loaded
    assert loaded & HEAVY == set()


def test_help_of_the_group_imports_no_command() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    shown = subprocess.run(
        [sys.executable, "-c", PROBE, "--help"],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
        timeout=60,
    )
    loaded = set(shown.stdout.splitlines()[-1].split())
    assert "lorabank_cli.main" in loaded
    assert not {name for name in loaded if name.startswith("lorabank_cli.commands.")}
    assert not loaded & {"dataclasses", "json", "sqlite3", "lorabank.core.config"}


def test_listing_makes_no_dataclass(bank: Bank) -> None:
    """Each costs about a millisecond when it is made: what the bank stores are named tuples."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    shown = subprocess.run(
        [sys.executable, "-c", PROBE, "list"], capture_output=True, text=True, env=environment, check=True, timeout=60
    )
    loaded = set(shown.stdout.splitlines()[-1].split())
    assert "lorabank.core.records" in loaded
    assert not loaded & {"dataclasses", "lorabank.core.config"}


def test_fixed_weights_are_stored_without_transformers_and_sqlalchemy(bank: Bank) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = ["compose", "--mode", "manual", "--name", "fixed", "--no-scores"]
    shown = subprocess.run(
        [sys.executable, "-c", PROBE, *words], capture_output=True, text=True, env=environment, check=True, timeout=120
    )
    loaded = set(shown.stdout.splitlines()[-1].split())
    assert "lorabank.workflows.compose" in loaded
    assert not loaded & {"alembic", "sqlalchemy", "transformers"}
    assert "fixed" in {one.name for one in Bank.open(bank.path).snapshot().compositions}
