from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lorabank import api
from lorabank.core.config import InitConfig
from lorabank.models.bases import kept_facts


@pytest.fixture
def weights(make_base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The weights of the base of an empty bank in ``tmp_path / "bank"``."""
    monkeypatch.setattr(kept_facts, "SETTLED", 0)
    base = Path(shutil.copytree(make_base("bert"), tmp_path / "own"))
    api.init_bank(tmp_path / "bank", InitConfig(base=str(base)))
    return base / "model.safetensors"


def test_a_full_check_reads_the_base_whatever_is_kept_of_it(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert api.verify(tmp_path / "bank", full=True) == ()
    before = kept_facts._stamp(weights.parent)
    tensors = load_file(weights)
    next(iter(tensors.values())).add_(1)
    save_file(tensors, weights, {"format": "pt"})
    monkeypatch.setattr(kept_facts, "_stamp", lambda folder: before)  # a change that no stamp shows
    assert api.verify(tmp_path / "bank") == ()
    (finding,) = api.verify(tmp_path / "bank", full=True)
    assert (finding.kind, finding.subject) == ("base-model", str(weights.parent))
    assert finding.message == f"{weights.parent} holds other weights"
    assert finding.commands


def test_broken_weights_are_found_and_a_base_that_is_elsewhere_is_not_looked_for(
    weights: Path, tmp_path: Path
) -> None:
    weights.write_bytes(b"no tensors")
    (finding,) = api.verify(tmp_path / "bank", full=True)
    assert "not a safetensors file" in finding.message
    shutil.rmtree(weights.parent)
    assert api.verify(tmp_path / "bank", full=True) == ()
