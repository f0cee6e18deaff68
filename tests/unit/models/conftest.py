"""Every test that asks for ``kind`` runs on five architectures; and a hub that nobody reaches."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from lorabank.models.bases import hub

KINDS = ("bert", "roberta", "distilbert", "llama", "gpt_neox")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def empty_hub_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub's client may ask, and nothing was fetched yet."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "hub_reachable", lambda: False)
