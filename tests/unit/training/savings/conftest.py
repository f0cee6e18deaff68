"""The bases that savings are tried on."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def bases(tmp_path_factory, save_base, save_language_model) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        "bert": str(save_base(folder / "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)),
        "llama": str(save_language_model(folder / "llama", initializer_range=0.1)),
        "gpt2": str(save_language_model(folder / "gpt2", "gpt2", initializer_range=0.1)),
        "t5": str(save_language_model(folder / "t5", "t5")),
    }
