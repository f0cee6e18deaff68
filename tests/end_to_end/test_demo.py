"""What the README says of `lorabank demo`, beside what it did: in DEMO_FOLDER, where .ci/run has just run it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from lorabank.demo.table import CAPTION

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
FOLDER = Path(os.environ.get("DEMO_FOLDER", ""))
TOLERANCE = 0.02
"""A processor's kernels move the last digits: five of 240 rows."""

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif("DEMO_FOLDER" not in os.environ, reason="needs a folder in which lorabank demo was run"),
]


def test_the_table_is_that_of_the_readme() -> None:
    (shown,) = re.findall(r"^```text\n( +task id .*?)^```$", README, re.M | re.S)
    said = (FOLDER / "lorabank-demo.txt").read_text(encoding="utf-8")
    printed = said.partition(CAPTION)[2].strip("\n").splitlines()
    lines = shown.splitlines()
    assert len(lines) == 6
    for line, other in zip(lines, printed, strict=False):
        assert len(line.split()) == len(other.split()), other
        for word, found in zip(line.split(), other.split(), strict=True):
            if re.fullmatch(r"-?\d+\.\d+", word):
                assert float(found) == pytest.approx(float(word), abs=TOLERANCE), (line, other)
            else:
                assert found == word
