"""What a server would refuse, told from the config alone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lorabank.exchange.servers import judge_vllm


def files(**fields: Any) -> dict[str, bytes]:
    config = {"r": 8, "lora_alpha": 16, "modules_to_save": None, "bias": "none", "use_dora": False} | fields
    return {"adapter_config.json": json.dumps(config).encode()}


@pytest.mark.parametrize(
    ("fields", "flag"),
    [
        ({}, 8),
        ({"r": 9}, 16),
        ({"r": 300}, 320),
        ({"r": 512}, 512),
        ({"rank_pattern": {"q": 40}, "alpha_pattern": {"q": 80}}, 64),  # s = 2 everywhere
        ({"use_rslora": True, "rank_pattern": {"q": 2}, "alpha_pattern": {"q": 8}}, 8),  # 16/√8 = 8/√2
    ],
)
def test_what_vllm_takes(fields, flag) -> None:
    assert judge_vllm(files(**fields)) == ((), f"--max-lora-rank {flag}")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"modules_to_save": ["classifier", "score"]}, "modules_to_save (classifier, score)"),
        ({"bias": "all"}, "bias 'all'"),
        ({"use_dora": True}, "use_dora"),
        ({"r": 513}, "rank 513: it takes at most 512"),
        ({"rank_pattern": {"q": 600}, "alpha_pattern": {"q": 1200}}, "rank 600"),
        ({"alpha_pattern": {"q": 8}}, "patterns: it would scale 'q' by 2 instead of 1"),
        ({"rank_pattern": {"q": 4}}, "patterns: it would scale 'q' by 2 instead of 4"),
    ],
)
def test_what_vllm_refuses(fields, reason) -> None:
    (problem,) = judge_vllm(files(**fields)).problems
    assert reason in problem
