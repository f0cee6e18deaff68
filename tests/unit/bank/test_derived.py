"""What was derived from a composition after it was stored is kept beside it, and goes with it."""

from __future__ import annotations

import pytest

from lorabank.bank.bank import Bank
from lorabank.core.errors import DataError, ExistsError, NotFoundError
from lorabank.core.records import DERIVED, CompositionRecord

ROLE = f"{DERIVED}2"


@pytest.fixture
def mix(bank: Bank, kit) -> CompositionRecord:
    kit.add_task(bank, "a", weight=1.0)
    kit.compose(bank, "mix", ("a",), content=kit.safetensors(0.5))
    (made,) = bank.snapshot().compositions
    return made


def objects(bank: Bank) -> dict[str, bytes]:
    (made,) = bank.snapshot().compositions
    return {role: bank.read_blob(digest) for role, digest in made.objects.items()}


def test_it_is_there_from_then_on(bank, mix, kit) -> None:
    before = bank.last_change()
    bank.keep_derived(mix, ROLE, kit.safetensors(0.25))
    assert objects(bank) == {"selector": kit.safetensors(0.5), ROLE: kit.safetensors(0.25)}
    assert bank.last_change() != before  # other sessions read the bank again
    (made,) = bank.snapshot().compositions
    assert made._replace(objects={}) == mix._replace(objects={})
    assert bank.verify(full=True) == []
    assert bank.gc(grace_hours=-1).paths == ()
    assert list((bank.path / "staging").iterdir()) == []


def test_the_first_one_stays(bank, mix, kit) -> None:
    bank.keep_derived(mix, ROLE, kit.safetensors(0.25))
    before = bank.history()
    bank.keep_derived(mix, ROLE, kit.safetensors(0.75))
    assert objects(bank)[ROLE] == kit.safetensors(0.25)
    assert bank.history() == before
    bank.gc(grace_hours=-1)
    assert bank.verify(full=True) == []


def test_beside_a_change_under_way(bank, mix, kit) -> None:
    with bank.reserve("add-task", "b", {}):
        bank.keep_derived(mix, ROLE, kit.safetensors(0.25))
    assert ROLE in objects(bank)


def test_it_goes_and_comes_back_with_the_composition(bank, mix, kit) -> None:
    bank.keep_derived(mix, ROLE, kit.safetensors(0.25))
    bank.remove("mix")
    with pytest.raises(NotFoundError, match="'mix' is not in the bank any more"):
        bank.keep_derived(mix, f"{DERIVED}3", kit.safetensors(0.75))
    assert bank.undo().back == ("mix",)
    assert ROLE in objects(bank)
    assert bank.undo().gone == ("mix",)  # there is nothing to take back of what was derived alone
    assert len(bank.gc(grace_hours=-1).paths) >= 2
    assert bank.verify(full=True) == []


def test_a_composition_that_was_made_again_has_none_of_it(bank, mix, kit) -> None:
    later = mix._replace(created_at="2000-01-01T00:00:00+00:00")
    with pytest.raises(NotFoundError, match="'mix' is not in the bank any more"):
        bank.keep_derived(later, ROLE, kit.safetensors(0.25))
    assert ROLE not in objects(bank)


def test_scores_of_an_equal_composition_are_its_own(bank, mix, kit) -> None:
    bank.keep_derived(mix, ROLE, kit.safetensors(0.25))
    bank.add_evaluations([kit.evaluation(subject="mix", task="a", created_at="")])
    kit.compose(bank, "mix", ("a",), content=kit.safetensors(0.5), replace=True)
    assert [score.key for score in bank.composition_scores("mix")] == ["k1"]


def test_broken_content_does_not_enter(bank, mix, kit) -> None:
    with pytest.raises(DataError):
        bank.keep_derived(mix, ROLE, kit.safetensors(float("nan")))
    assert ROLE not in objects(bank)
    assert list((bank.path / "staging").iterdir()) == []
    with pytest.raises(ExistsError):
        kit.compose(bank, "mix", ("a",))
