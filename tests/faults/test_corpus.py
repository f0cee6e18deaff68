"""Prepared adapters: each ends with its documented exit code and changes nothing but the bank it is let into."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.faults.corpus import cases, run
from tests.faults.corpus.case import Case
from tests.faults.corpus.world import World

CASES = {case.name: case for case in cases()}
LISTED = {"A": 25, "B": 14, "C": 20, "D": 14, "E": 17}
AS_PROCESS = (
    "A16 key twice",
    "B12 a weight of the base",
    "D04 pipe",
    "E01 ESC in the base's name",
    "C12 auto_mapping",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("corpus"))


def test_the_corpus_has_the_whole_list() -> None:
    counts = Counter(case.name[0] for case in cases())
    assert all(counts[letter] >= count for letter, count in LISTED.items())
    assert len(CASES) == len(cases())


@pytest.mark.slow  # F13 of the fault programme tries them all
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_prepared_adapter_ends_with_its_exit_code(world: World, case: Case) -> None:
    assert world.try_out(case) == []


@pytest.mark.parametrize(
    "name", ["E01 ESC in the base's name", *(pytest.param(name, marks=pytest.mark.slow) for name in AS_PROCESS)]
)
def test_the_installed_command_does_the_same(world: World, name: str) -> None:
    assert world.try_out(CASES[name], process=True) == []


@pytest.mark.parametrize(
    ("broken", "instead", "name"),
    [
        ("lorabank.workflows.carrying.import_adapter.check_source_base", lambda *_, **__: (), "C16 another base"),
        ("lorabank.workflows.carrying.judging.check_effect", lambda *_, **__: (), "B16 factors that cancel"),
        ("lorabank.core.files.safetensors_header._no_duplicates", dict, "A16 key twice"),
        (
            "lorabank.exchange.untrusted_adapter.check_plain",
            lambda *_, **__: (),
            "C19 layers a hundred thousand times",
        ),
    ],
)
def test_the_harness_finds_a_check_that_is_left_out(world: World, monkeypatch, broken, instead, name) -> None:
    monkeypatch.setattr(broken, instead)
    assert world.try_out(CASES[name]) != []


def test_the_harness_finds_a_link_that_is_followed(world: World, monkeypatch) -> None:
    follow = lambda path, limit, **_: Path(path).read_bytes()  # noqa: E731
    monkeypatch.setattr("lorabank.workflows.carrying.adapter_source.read_regular", follow)
    assert world.try_out(CASES["D01 weights a link"]) != []


def test_a_runner_can_draw_some() -> None:
    assert run(3, seed=1) == {"tries": 3, "lost": 0, "damaged": 0, "uncaught": 0, "examples": []}
