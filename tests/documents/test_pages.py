"""What the site's pages have beyond their Markdown (docs/pages.py); .ci/run builds the whole site."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [path.relative_to(ROOT).with_suffix("").as_posix() for path in (ROOT / "docs").rglob("*.md")]


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs/pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(pages: ModuleType, docname: str) -> str:
    return pages.read(docname, (ROOT / f"{docname}.md").read_text(encoding="utf-8"))


def test_every_mark_is_filled_in(pages: ModuleType) -> None:
    left = {name: re.findall(r"<!-- (?:facts|table|rows|settings)\b.*?-->", read(pages, name)) for name in PAGES}
    assert {name: marks for name, marks in left.items() if marks} == {}


def test_a_method_has_the_facts_of_its_shelf(pages: ModuleType) -> None:
    text = read(pages, "docs/methods/penalties/orthogonal")
    assert "| paper | O-LoRA, arXiv 2310.14152 |" in text
    assert "| default of `--penalty-weight` | `0.5` |" in text
    assert "| code | `lorabank/training/penalties/orthogonal.py` |" in text
    replay = read(pages, "docs/methods/strategies/replay")
    assert re.search(r"^\| `replay_rows` \| int \| `200` \| >= 1 \| .+ \|$", replay, re.M)
    assert "It is refused with:" in replay
    assert "| default of `--learning-rate` | `0.004` |" in read(pages, "docs/methods/variants/lora-fa")


def test_a_table_links_to_the_pages_that_exist(pages: ModuleType) -> None:
    text = read(pages, "docs/methods")
    assert "| [`olora`](methods/strategies/olora.md) |" in text
    assert "| `.csv` |" in text
    assert "| `loraprune` | it removes heads and units of the base" in text


def test_the_navigation_has_every_page_once(pages: ModuleType) -> None:
    held: Counter[str] = Counter()
    for name in pages.MAPS:
        for block in re.findall(r"^```\{toctree\}\n(.*?)^```$", read(pages, name), re.M | re.S):
            held.update(line for line in block.splitlines() if line and not line.startswith(":"))
    assert {page for page, count in held.items() if count > 1} == set()
    assert {page for page in held if not page.startswith("../")} == {
        name.removeprefix("docs/") for name in PAGES if name != "docs/index"
    }
    assert {"../README", "../CONTRIBUTING", "../SECURITY", "../CHANGELOG"} <= held.keys()


def test_other_documents_are_no_part_of_the_navigation(pages: ModuleType) -> None:
    assert pages.read("benchmarks/results/ratios", "# Ratios\n").startswith("---\norphan: true\n---\n")
    assert pages.read("README", "# lorabank\n") == "# lorabank\n"
