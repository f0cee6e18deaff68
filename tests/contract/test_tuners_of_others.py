"""Folders of PEFT's tuners that strangers made: what is wrong with one is named, and nothing of it is taken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from lorabank import api
from lorabank.core.errors import DataError
from lorabank.core.observer import SilentObserver
from tests.contract.conftest import Lab
from tests.contract.tuners import peft_folder


@pytest.fixture
def bank(lab: Lab, tmp_path: Path) -> Path:
    return Path(shutil.copytree(lab.bank("olora", 1), tmp_path / "bank"))


@pytest.fixture(scope="module")
def theirs(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``theirs(variant)``: what plain PEFT saves of a tuner with random numbers, on the encoder."""
    return partial(peft_folder, lab.base, tmp_path_factory.mktemp("theirs"), head=True)


DAMAGE: dict[str, tuple[dict[str, Any], str]] = {
    "a pattern": ({"rank_pattern": {"query": 4}}, "'rank_pattern'"),
    "an unknown field": ({"sneaky": 1}, "'sneaky' .* is unknown"),
    "a wrong type": ({"r": "many"}, "r = 'many'"),
    "a giant": ({"r": 10**9}, "r = 1000000000"),
    "another rank": ({"r": 3}, "PEFT cannot load the adapter"),
    "other modules": ({"target_modules": ["query"]}, "do not agree about the module"),
    "another kind": ({"peft_type": "PROMPT_TUNING"}, "'peft_type'"),
    "another tuner": ({"peft_type": "LOKR"}, "PEFT cannot load|the adapter (lacks|has)"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_strangers_folder_is_judged(lab: Lab, bank: Path, theirs: Any, tmp_path: Path, damage: str) -> None:
    fields, match = DAMAGE[damage]
    folder = Path(shutil.copytree(theirs("peft:loha"), tmp_path / "folder"))
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    (folder / "adapter_config.json").write_text(json.dumps(config | fields), encoding="utf-8")
    with pytest.raises(DataError, match=match) as caught:
        api.import_adapter(bank, folder, "guest", config=lab.settings("one"), observer=SilentObserver())
    assert caught.value.unchanged == "nothing was changed"


@pytest.mark.parametrize("change", ["missing", "more"])
def test_the_tensors_are_exactly_those_of_the_config(
    lab: Lab, bank: Path, theirs: Any, tmp_path: Path, change: str
) -> None:
    folder = Path(shutil.copytree(theirs("peft:oft"), tmp_path / "folder"))
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(key for key in tensors if "oft_R" in key)
    if change == "missing":
        del tensors[key]
    else:
        tensors[key.replace("oft_R", "oft_S")] = tensors[key].clone()
    save_file(tensors, path)
    with pytest.raises(DataError, match=r"do not agree about the module|the adapter (lacks|has)"):
        api.import_adapter(bank, folder, "guest", config=lab.settings("one"), observer=SilentObserver())


@pytest.mark.parametrize("as_lora", [None, 2])
def test_delta_weights_that_are_not_finite_are_refused(
    lab: Lab, bank: Path, theirs: Any, tmp_path: Path, as_lora: int | None
) -> None:
    folder = Path(shutil.copytree(theirs("peft:oft"), tmp_path / "folder"))
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors[next(key for key in tensors if "oft_R" in key)].fill_(1e38)  # finite, and their rotation is not
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(DataError, match=r"the delta weight of .* is not finite"):
        api.import_adapter(bank, folder, "guest", config=lab.settings("one"), as_lora=as_lora)
