"""What a server would refuse or compute wrong, and what starts it, from the folder alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from lorabank.exchange.peft_folder import saved
from lorabank.exchange.servers import Served, judge_lorax, judge_sglang, judge_vllm

HEAD = {"classifier.weight": (3, 4), "classifier.bias": (3,)}
DEEP_HEAD = {"classifier.dense.weight": (4, 4), "classifier.out_proj.weight": (3, 4)}


def served(shapes: dict[str, tuple[int, ...]] | None = None, **fields: Any) -> Served:
    """A folder with factors on q and v of two layers and further tensors."""
    config = {"r": 8, "lora_alpha": 16, "modules_to_save": None, "bias": "none", "use_dora": False} | fields
    config = {"base_model_name_or_path": "owner/base"} | config
    factors = {
        f"model.layers.{i}.attn.{name}.lora_{ab}.weight": (1, 1) for i in (0, 1) for name in "qv" for ab in "AB"
    }
    tensors = {f"base_model.model.{name}": torch.ones(shape) for name, shape in {**factors, **(shapes or {})}.items()}
    files = {"adapter_config.json": json.dumps(config).encode(), "adapter_model.safetensors": saved(tensors)}
    return Served("spam", "/out/my folder", files)


@pytest.mark.parametrize(
    ("fields", "rank"),
    [
        ({}, 8),
        ({"r": 1}, 1),
        ({"r": 9}, 16),
        ({"r": 300}, 320),
        ({"r": 512}, 512),
        ({"rank_pattern": {"q": 40}, "alpha_pattern": {"q": 80}}, 64),
        ({"alpha_pattern": {"q": 8}, "use_rslora": True}, 8),
    ],
)
def test_what_vllm_takes(fields: dict[str, Any], rank: int) -> None:
    found = judge_vllm(served(**fields))
    assert found.problems == ()
    assert " ".join(found.command) == (
        f"vllm serve owner/base --enable-lora --max-loras 1 --max-lora-rank {rank} --lora-modules spam=/out/my folder"
    )


def test_vllm_takes_a_head_of_one_layer() -> None:
    found = judge_vllm(served(HEAD, modules_to_save=["classifier"]))
    assert found.problems == ()
    assert "--runner pooling --convert classify --max-lora-cls-labels 3 --enable-lora" in " ".join(found.command)


@pytest.mark.parametrize(
    ("shapes", "fields", "reason"),
    [
        ({}, {"modules_to_save": ["bert.pooler", "classifier"]}, "modules_to_save (bert.pooler)"),
        (DEEP_HEAD, {"modules_to_save": ["classifier"]}, "the head (classifier.dense, classifier.out_proj)"),
        ({}, {"bias": "all"}, "bias 'all'"),
        ({}, {"use_dora": True}, "use_dora"),
        ({}, {"r": 513}, "rank 513: it takes at most 512"),
        ({}, {"rank_pattern": {"q": 600}}, "rank 600"),
        ({}, {"target_parameters": ["mlp.experts.down_proj"]}, "target_parameters (mlp.experts.down_proj)"),
    ],
)
def test_what_vllm_refuses(shapes: dict[str, tuple[int, ...]], fields: dict[str, Any], reason: str) -> None:
    (problem,) = judge_vllm(served(shapes, **fields)).problems
    assert reason in problem


@pytest.mark.parametrize("fields", [{}, {"r": 1, "use_rslora": True}, {"alpha_pattern": {"q": 16}}])
def test_what_sglang_takes(fields: dict[str, Any]) -> None:
    found = judge_sglang(served(**fields))
    assert found.problems == ()
    assert found.command[-2:] == ("--lora-paths", "spam=/out/my folder")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"use_rslora": True}, "use_rslora"),
        ({"rank_pattern": {"q": 4}, "alpha_pattern": {"q": 8}}, "rank_pattern: rank 4 of 'q' beside 8"),
        ({"alpha_pattern": {"q": 8}}, "patterns: it would scale 'q' by 2 instead of 1"),
        ({"modules_to_save": ["score"]}, "modules_to_save (score): it takes only LoRA factors"),
        ({"use_dora": True}, "use_dora"),
    ],
)
def test_what_sglang_would_compute_wrong(fields: dict[str, Any], reason: str) -> None:
    (problem,) = judge_sglang(served(**fields)).problems
    assert reason in problem


@pytest.mark.parametrize("fields", [{}, {"use_rslora": True}, {"r": 32}])
def test_what_lorax_takes(fields: dict[str, Any]) -> None:
    found = judge_lorax(served(**fields))
    assert found.problems == ()
    assert found.command == (
        "lorax-launcher", "--model-id", "owner/base", "--adapter-id", "/out/my folder", "--adapter-source", "local"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("shapes", "fields", "reason"),
    [
        ({}, {"r": 4}, "rank 4: it would scale by the rank 8 that it pads to"),
        ({}, {"r": 17}, "the rank 32 that it pads to"),
        ({"model.layers.0.mlp.up.lora_A.weight": (1, 1)}, {}, "not all of the 2 have factors for mlp.up"),
        ({}, {"use_rslora": True, "alpha_pattern": {"v": 8}}, "it would scale 'v' by 5.65685 instead of 2.82843"),
    ],
)
def test_what_lorax_would_compute_wrong(
    shapes: dict[str, tuple[int, ...]], fields: dict[str, Any], reason: str
) -> None:
    (problem,) = judge_lorax(served(shapes, **fields)).problems
    assert reason in problem
