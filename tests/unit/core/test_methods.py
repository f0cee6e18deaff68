"""Methods with settings of their own: a frozen dataclass on a shelf, given its values by ``KEY=VALUE``."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest

from lorabank.compose.base import chosen_method
from lorabank.compose.routers.kmeans import KMeans
from lorabank.core import methods as core_methods
from lorabank.core import shelf, shelves
from lorabank.core.config import ComposeConfig, TrainConfig
from lorabank.core.errors import ConfigError
from lorabank.core.methods import methods, own_settings, with_settings
from lorabank.core.settings import setting
from lorabank.core.shelf import Shelf
from lorabank.core.shelves import OPTIMIZERS, PENALTIES, ROUTERS, STARTS, STRATEGIES, VARIANTS
from lorabank.training.methods import chosen_methods, chosen_strategy


@dataclass(frozen=True)
class Pulled:
    """A method.

    More about it.
    """

    paper = "a paper"
    refused = ("a bank",)
    power: float = setting(2.0, "The power.", gt=0, le=4)
    steps: int | None = setting(None, "Its steps.", ge=1)
    sparse: bool = setting(False, "Whether it is sparse.")


@dataclass(frozen=True)
class Named:
    name: str
    power: float = setting(1.0, "Another power.")


PULL, NAMED = Shelf("pull", "pulls", {"pulled": "x:Pulled"}), Shelf("thing", "things", {"named": "x:NAMED"})
ENTRIES: dict[str, Any] = {"x:Pulled": Pulled, "x:NAMED": Named("inside", 3.0)}
BOTH = [(PULL, "pulled"), (NAMED, "named")]


@pytest.fixture(autouse=True)
def on_shelves(monkeypatch: pytest.MonkeyPatch) -> None:
    found = shelf.resolve_name
    monkeypatch.setattr(shelf, "resolve_name", lambda path: ENTRIES[path] if path in ENTRIES else found(path))
    monkeypatch.setattr("lorabank.core.methods.SHELVES", (*shelves.SHELVES, PULL, NAMED))


def test_without_values_the_defaults_stand() -> None:
    assert with_settings(BOTH, ()) == [Pulled(2.0, None, False), Named("inside", 3.0)]


def test_defaults_are_not_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is given is: a check is a thousand times slower than a method."""
    checked: list[dict[str, Any]] = []
    examine = core_methods.examine
    monkeypatch.setattr(core_methods, "examine", lambda entry, given: checked.append(given) or examine(entry, given))
    with_settings(BOTH, ("steps=3",))
    assert checked == [{"steps": "3"}]


def test_a_value_goes_to_every_chosen_method_that_has_the_setting_and_is_converted() -> None:
    made = with_settings(BOTH, ("power = 2.5", "steps=3", "sparse=true"))
    assert made == [Pulled(2.5, 3, True), Named("inside", 2.5)]


def test_a_methods_name_before_the_key_means_it_alone_where_it_is_chosen() -> None:
    assert with_settings(BOTH, ("named.power=4",)) == [Pulled(), Named("inside", 4.0)]
    assert with_settings([(PULL, "pulled")], ("named.power=4",)) == [Pulled()]


def test_each_key_goes_to_the_methods_that_it_means() -> None:
    assert with_settings(BOTH, ("steps=3", "named.power=4")) == [Pulled(steps=3), Named("inside", 4.0)]


def test_a_star_before_the_key_means_whichever_chosen_method_has_it() -> None:
    assert with_settings(BOTH, ("*.power=3", "*.steps=2", "*.nothing=1")) == [Pulled(3.0, 2), Named("inside", 3.0)]
    assert with_settings([BOTH[1]], ("*.steps=2",)) == [Named("inside", 3.0)]


def test_what_is_a_setting_of_a_shelf_beside_is_left_to_where_its_methods_are_chosen() -> None:
    given = ("power=3", "steps=3", "pulled.sparse=true")
    with pytest.raises(ConfigError, match="there is no setting 'steps'"):
        with_settings([BOTH[1]], given, among=(BOTH[1][0],))
    assert with_settings([BOTH[1]], given, among=(BOTH[1][0],), besides=(PULL,)) == [Named("inside", 3.0)]
    with pytest.raises(ConfigError, match="there is no setting 'stepss'"):
        with_settings([BOTH[1]], ("stepss=3",), among=(BOTH[1][0],), besides=(PULL,))


def test_without_a_chosen_method_no_setting_fits() -> None:
    assert with_settings([], (), among=(PULL,)) == []
    with pytest.raises(ConfigError, match="no chosen method has a setting 'power'"):
        with_settings([], ("power=3",), among=(PULL,))


def test_the_settings_of_one_method_are_found_among_those_of_others() -> None:
    given = (" pulled.power=3", "steps = 2", "powr=1", "named.power=4", "sparse=a=b")
    assert own_settings(PULL, "pulled", given) == ("power=3", "steps= 2", "sparse=a=b")


def test_all_that_is_wrong_is_said_at_once() -> None:
    given = ("power=5", "steps=0", "pulled.powr=1", "spars=yes", "nowhere.power=1", "=3", "word", "named.power=nan")
    with pytest.raises(ConfigError) as caught:
        with_settings(BOTH, given)
    message = caught.value.message
    for part in (
        "pull pulled: power = '5': input should be less than or equal to 4",
        "pull pulled: steps = '0': input should be greater than or equal to 1",
        "pull pulled: there is no setting 'powr'. Did you mean 'power'?",
        "there is no setting 'spars'. Did you mean 'sparse'?",
        "nowhere.power: there is no method 'nowhere'",
        "'=3' is not KEY=VALUE",
        "'word' is not KEY=VALUE",
        "thing named: power = 'nan'",
    ):
        assert part in message
    assert "\n" not in message
    assert caught.value.exit_code == 2


def test_methods_are_described_with_their_settings() -> None:
    (found,) = methods("pulled")
    assert (found.family, found.name, found.about) == ("pull", "pulled", "A method.")
    assert (found.paper, found.refused) == ("a paper", ("a bank",))
    assert [(s.name, s.type, s.default, s.bounds) for s in found.settings] == [
        ("power", "float", 2.0, {"gt": 0, "le": 4}),
        ("steps", "int or none", None, {"ge": 1}),
        ("sparse", "bool", False, {}),
    ]
    (named,) = methods("named")
    assert [(s.name, s.default) for s in named.settings] == [("power", 3.0)]


def test_every_entry_of_every_shelf_is_listed_once() -> None:
    known = methods()
    found = [(one.family, one.name) for one in known if one.offered]
    assert len(set(found)) == len(found) == sum(len(shelf) for shelf in shelves.SHELVES) + 2
    assert {one.kind for one in shelves.SHELVES} >= {shelf.kind for shelf in (STRATEGIES, PENALTIES)}
    refused = {(shelf.kind, name) for shelf in shelves.SHELVES for name in shelf.refused}
    assert {(one.family, one.name) for one in known if not one.offered} == refused


def test_an_unknown_method_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^there is no method 'olra'\. Did you mean 'olora'\?$"):
        methods("olra")


def test_a_training_chooses_its_methods_with_their_settings() -> None:
    given = ("replay_rows=6", "ratio=4")
    config = TrainConfig(strategy="replay", penalty="l1", variant="lora-plus", set=given)
    strategy, variant, start, optimizer, name, penalty, savings = chosen_methods(config)
    assert (strategy.name, strategy.kept(50), strategy.replayed(4), strategy.replayed(50)) == ("replay", 6, 4, 6)
    assert variant == VARIANTS.load("lora-plus")(ratio=4.0)
    assert start == STARTS.load("kaiming")()
    assert optimizer == OPTIMIZERS.load("adamw")()
    assert name == "l1"
    assert type(penalty).__name__ == "L1"
    assert savings == ()
    assert STRATEGIES.load("replay").kept(50) == 200


def test_an_optimizer_without_the_moments_that_a_variant_changes_is_refused() -> None:
    changing = [name for name, variant in VARIANTS.items() if variant.moments]
    without = [name for name, optimizer in OPTIMIZERS.items() if not optimizer.moments]
    assert "relora" in changing
    assert "adafactor" in without
    for variant, optimizer in product(changing, without):
        with pytest.raises(ConfigError, match=f"^variant '{variant}' resets .* optimizer '{optimizer}' does not keep"):
            chosen_methods(TrainConfig(variant=variant, optimizer=optimizer))
    assert chosen_methods(TrainConfig(variant="relora")).optimizer.moments


def test_a_setting_that_no_chosen_method_has_is_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=r"strategy olora, variant lora, start kaiming, optimizer adamw and penalty orthogonal: "
        r"there is no setting 'replay_rows'",
    ):
        chosen_strategy(TrainConfig(set=("replay_rows=6",)))


@pytest.mark.parametrize("text", ["replay.replay_row=6", "kmeans.clusters_per_task=6", ".jsonl.rows=6"])
def test_a_setting_is_refused_where_its_method_is_not_chosen_and_has_none_such(text: str) -> None:
    with pytest.raises(
        ConfigError,
        match=r"replay: there is no setting|there is no strategy, variant, start, saving, penalty or optimizer",
    ):
        chosen_strategy(TrainConfig(set=(text,)))
    assert chosen_strategy(TrainConfig(set=("replay.replay_rows=6",))).name == "olora"


def test_so_is_a_strategys_setting_for_a_composition() -> None:
    with pytest.raises(ConfigError, match=r"there is no merger, router or gate 'replay'"):
        chosen_method(ROUTERS, ComposeConfig(mode="prototype", set=("replay.replay_rows=6",)))
    assert chosen_method(ROUTERS, ComposeConfig(mode="prototype", set=("gaussian.shrinkage=0.5",))) == KMeans()


def test_a_refused_key_of_any_length_stays_a_line() -> None:
    for text in ("k" * 9999, "k" * 9999 + "=1", "k" * 9999 + ".k=1", "replay." + "k" * 9999 + "=1"):
        with pytest.raises(ConfigError) as raised:
            chosen_strategy(TrainConfig(set=(text,)))
        assert len(str(raised.value)) < 400
