"""Every method that trains, merges, routes or weighs has a page of its own, which says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lorabank.core.methods import described
from lorabank.core.shelves import (
    CORRECTIONS,
    GATES,
    MERGERS,
    MIXTURES,
    OPTIMIZERS,
    PENALTIES,
    QUANTISERS,
    REFERENCES,
    ROUTERS,
    SAVINGS,
    STARTS,
    STRATEGIES,
    TUNERS,
    VARIANTS,
)

PAGES = Path(__file__).parents[2] / "docs/methods"
SHELVES = (
    STRATEGIES, REFERENCES, VARIANTS, MIXTURES, STARTS, SAVINGS, PENALTIES, OPTIMIZERS, MERGERS, ROUTERS, GATES,
    QUANTISERS, CORRECTIONS,
)  # fmt: skip
METHODS = [(shelf, name) for shelf in SHELVES for name in shelf.table]
SECTIONS = ["Equation", "When to use it", "Settings", "Differences", "Reference"]


def page(plural: str, name: str) -> str:
    path = PAGES / plural / f"{name}.md"
    assert path.is_file(), f"{path.relative_to(PAGES.parents[1])} is missing: every method has a page"
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize(("shelf", "name"), METHODS, ids=lambda one: getattr(one, "kind", one))
def test_a_method_has_a_page_with_all_sections(shelf: object, name: str) -> None:
    text = page(shelf.plural, name)
    assert text.startswith(f"# {name} ({shelf.kind})\n")
    intro, *parts = re.split(r"^## (.+)$", text, flags=re.M)
    assert intro.count("<!-- facts -->") == 1
    assert parts[0::2] == SECTIONS
    for title, words in zip(parts[0::2], parts[1::2], strict=True):
        assert len(words.split()) > 3, f"{title} says nothing"


@pytest.mark.parametrize(("shelf", "name"), METHODS, ids=lambda one: getattr(one, "kind", one))
def test_a_page_has_the_papers_and_settings_of_the_code(shelf: object, name: str) -> None:
    text, method = page(shelf.plural, name), described(shelf, name)
    for paper in re.findall(r"arXiv \d{4}\.\d{5}", method.paper or ""):
        assert f"[{paper}](https://arxiv.org/abs/{paper.removeprefix('arXiv ')})" in text
    settings = text.partition("## Settings")[2].partition("\n## ")[0]
    for one in method.settings:
        assert f"`{one.name}`" in settings, f"the page does not say where {one.name} comes from"


def test_no_page_is_about_what_is_on_no_shelf() -> None:
    there = {path.relative_to(PAGES).with_suffix("").as_posix() for path in PAGES.rglob("*.md")}
    assert there == {f"{shelf.plural}/{name}" for shelf, name in METHODS} | {"variants/peft"}


def test_the_tuners_of_peft_share_a_page_with_the_paper_of_each() -> None:
    text = page("variants", "peft")
    assert re.split(r"^## (.+)$", text, flags=re.M)[1::2] == SECTIONS
    assert text.count("<!-- table tuners -->") == 1
    for name in TUNERS:
        (paper,) = re.findall(r"arXiv (\d{4}\.\d{5})", described(TUNERS, name).paper or "")
        assert f"[arXiv {paper}](https://arxiv.org/abs/{paper})" in text
