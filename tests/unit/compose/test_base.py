"""What a mode does not use is refused."""

from __future__ import annotations

from typing import Any

import pytest

from lorabank.compose.base import checked_mode
from lorabank.core.config import ComposeConfig
from lorabank.core.errors import ConfigError


@pytest.mark.parametrize(
    ("mode", "given", "unused"),
    [
        ("routed", {"merger": "ties"}, "--merger"),
        ("prototype", {"tolerance": 0.1}, "--tolerance"),
        ("routed", {"gate": "of-a-package", "router": "gaussian", "merger": "dare"}, "--merger or --gate"),
        ("gated", {"tolerance": 0.0, "router": "gaussian"}, "--tolerance or --router"),
        ("merged", {"router": "gaussian"}, "--router"),
        ("routed", {"weights": "one=1"}, "--weights"),
        ("gated", {"weights": "one=1", "merger": "ties"}, "--merger or --weights"),
    ],
)
def test_an_option_of_another_mode_is_refused(mode: str, given: dict[str, Any], unused: str) -> None:
    with pytest.raises(ConfigError, match=f"^--mode {mode} does not use {unused}$") as caught:
        checked_mode(ComposeConfig(mode=mode, **given))
    assert caught.value.exit_code == 2
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(f"leave {unused.replace(' or ', ' and ')} out")


@pytest.mark.parametrize(
    ("mode", "given"),
    [
        ("merged", {"merger": "ties", "tolerance": 0.5}),
        ("manual", {"tolerance": 0.0}),
        ("routed", {"router": "gaussian", "merger": ComposeConfig.merger}),
        ("gated", {"gate": "attention", "scores": False}),
    ],
)
def test_its_own_and_defaults_are_taken(mode: str, given: dict[str, Any]) -> None:
    checked_mode(ComposeConfig(mode=mode, **given))


def test_weights_that_a_merger_does_not_take_are_called_what_was_typed() -> None:
    with pytest.raises(ConfigError, match=r"^--weights: merger slao: there is no setting 'weights'"):
        checked_mode(ComposeConfig(mode="merged", merger="slao", weights="one=1"))
    with pytest.raises(ConfigError, match=r"^--set: "):
        checked_mode(ComposeConfig(mode="merged", merger="slao", weights="one=1", set=("sclae=0.5",)))
