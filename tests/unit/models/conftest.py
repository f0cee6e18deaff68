"""Every test that asks for ``kind`` runs on five architectures."""

from __future__ import annotations

import pytest

KINDS = ("bert", "roberta", "distilbert", "llama", "gpt_neox")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)
