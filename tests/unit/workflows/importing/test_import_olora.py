"""Folders that O-LoRA's reference implementation saves: tasks stacked in one pair of factors, with `r_sum`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import InitConfig, TrainConfig
from lorabank.core.errors import ConfigError, DataError, NotFoundError
from lorabank.core.states import own_state
from lorabank.exchange.config_fields import parse
from lorabank.exchange.untrusted_adapter import read_foreign
from tests.unit.workflows.conftest import write_rows
from tests.unit.workflows.language_models import CLOSE, TEMPLATE, bank_logits, peft_logits

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
R, ALPHA, TASKS = 2, 4, 3
ATTENTIONS = ("encoder.block.{}.layer.0.SelfAttention", "decoder.block.{}.layer.0.SelfAttention",
              "decoder.block.{}.layer.1.EncDecAttention")  # fmt: skip
MODULES = [f"{name.format(layer)}.{module}" for name in ATTENTIONS for layer in (0, 1) for module in ("q", "v")]
A_NEW, B_NEW = f"{MODULES[0]}.loranew_A.weight", f"{MODULES[0]}.loranew_B.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, save_language_model: Callable[..., Path]) -> Path:
    return save_language_model(tmp_path_factory.mktemp("t5") / "base", "t5", initializer_range=0.1)


def factors() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Module to A and B of all tasks."""
    torch.manual_seed(4)
    return {name: (torch.randn(R * TASKS, 32) * 0.2, torch.randn(32, R * TASKS) * 0.2) for name in MODULES}


def write(folder: Path, base: Path, tensors: dict[str, torch.Tensor], **fields: Any) -> Path:
    folder.mkdir()
    config = {"peft_type": "LORA", "task_type": "SEQ_2_SEQ_LM", "base_model_name_or_path": str(base), "bias": "none"}
    config |= {"r": R, "lora_alpha": ALPHA, "target_modules": ["q", "v"], "lora_dropout": 0.1} | fields
    (folder / CONFIG).write_text(json.dumps(config))
    save_file({f"base_model.model.{name}": value.contiguous() for name, value in tensors.items()}, folder / WEIGHTS)
    return folder


def appended() -> dict[str, torch.Tensor]:
    """As saved after a task: everything in lora_A and lora_B."""
    return {f"{n}.lora_{k}.weight": t for n, pair in factors().items() for k, t in zip("AB", pair, strict=True)}


def apart(old: int) -> dict[str, torch.Tensor]:
    """As saved with `save_loranew`: ``old`` rows before, the last task for itself."""
    found = {}
    for name, (a, b) in factors().items():
        found |= {f"{name}.lora_A.weight": a[:old], f"{name}.lora_B.weight": b[:, :old]}
        found |= {f"{name}.loranew_A.weight": a[old : old + R], f"{name}.loranew_B.weight": b[:, old : old + R]}
    return found


@pytest.fixture
def source(base: Path, tmp_path: Path) -> Path:
    return write(tmp_path / "source", base, appended(), r_sum=R * TASKS, save_loranew=False)


@pytest.fixture
def bring_in(base: Path, tmp_path: Path) -> Callable[..., Any]:
    def run(source: Path, task: str, **options: Any) -> Any:
        data = write_rows(tmp_path / f"{task}.jsonl", ("one", "three", "two"), rows=12, seed=5)
        config = TrainConfig(data=str(data), device="cpu", set=(f"prompt_template={TEMPLATE}",))
        init = InitConfig(base=str(base))
        return api.import_adapter(tmp_path / "bank", source, task, config=config, init=init, **options)

    return run


def plain_sum(tmp_path: Path, base: Path, tasks: int) -> Path:
    """The first tasks as an ordinary PEFT adapter with the same scaling."""
    tensors = {
        key: (value[: R * tasks] if "lora_A" in key else value[:, : R * tasks]) for key, value in appended().items()
    }
    return write(tmp_path / f"plain-{tasks}", base, tensors, r=R * tasks, lora_alpha=ALPHA * tasks)


def same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_all_tasks_in_one_are_their_sum(base, source, bring_in, tmp_path) -> None:
    adapter = bring_in(source, "sum").adapter
    assert (adapter.r, adapter.lora_alpha, adapter.metrics["tasks_in_source"]) == (R * TASKS, ALPHA * TASKS, TASKS)
    expected = peft_logits(base, plain_sum(tmp_path, base, TASKS))
    same(bank_logits(tmp_path / "bank", {adapter.digest: 1.0}), expected)


def test_the_tasks_one_by_one_answer_with_those_before_them(base, source, bring_in, tmp_path) -> None:
    with pytest.raises(NotFoundError, match="part 2 was trained on top of part 1"):
        bring_in(source, "second", part=2)
    digests: list[str] = []
    for part in (1, 2, 3):
        adapter = bring_in(source, f"task-{part}", part=part).adapter
        assert (adapter.r, adapter.lora_alpha, adapter.context) == (R, ALPHA, tuple(digests))
        digests.append(adapter.digest)
        state = dict.fromkeys(own_state(Bank.open(tmp_path / "bank").snapshot().adapter_of(f"task-{part}")), 1.0)
        same(bank_logits(tmp_path / "bank", state), peft_logits(base, plain_sum(tmp_path, base, part)))
    assert api.verify(tmp_path / "bank", full=True) == ()


@pytest.mark.parametrize("old", [0, R, 2 * R])
def test_a_task_kept_apart_is_appended(base, tmp_path, old) -> None:
    folder = write(tmp_path / "source", base, apart(old), r_sum=old, save_loranew=True)
    adapter = read_foreign(parse((folder / CONFIG).read_bytes()), (folder / WEIGHTS).read_bytes())
    assert adapter.tasks == old // R + 1
    for name, (a, b) in factors().items():
        assert torch.equal(adapter.factors.A[name], a[: old + R])
        assert torch.equal(adapter.factors.B[name], b[:, : old + R])
        assert adapter.factors.scaling[name] == ALPHA / R


@pytest.mark.parametrize(
    ("tensors", "fields", "error", "reason"),
    [
        (appended, {}, DataError, r"has rank 6, adapter_config\.json says 2"),
        (appended, {"r_sum": 3}, DataError, "not one of tasks of rank 2 with r_sum 3"),
        (appended, {"r_sum": "6"}, DataError, "'r_sum'"),
        (appended, {"r_sum": -1}, DataError, "'r_sum'"),
        (appended, {"r_sum": 6, "use_rslora": True}, DataError, "'use_rslora'.* does not match 'r_sum'"),
        (appended, {"r_sum": 6, "rank_pattern": {"q": 2}}, DataError, "'rank_pattern'"),
        (lambda: apart(2), {}, DataError, r"loranew_[AB]\.weight' is neither a LoRA factor"),
        (lambda: apart(2) | {A_NEW: torch.ones(2, 8)}, {"r_sum": 2}, DataError, "does not match"),
        (lambda: apart(2) | {B_NEW: torch.ones(9)}, {"r_sum": 2}, DataError, "does not match"),
    ],
)  # fmt: skip
def test_what_does_not_add_up_is_refused(base, tmp_path, tensors, fields, error, reason) -> None:
    folder = write(tmp_path / "source", base, tensors(), **fields)
    with pytest.raises(error, match=reason):
        read_foreign(parse((folder / CONFIG).read_bytes()), (folder / WEIGHTS).read_bytes())


@pytest.mark.parametrize(("part", "tasks"), [(4, 3), (2, 1)])
def test_a_part_that_is_not_there_is_refused(base, tmp_path, part, tasks) -> None:
    folder = plain_sum(tmp_path, base, 1)
    if tasks > 1:
        folder = write(tmp_path / "source", base, appended(), r_sum=R * TASKS)
    with pytest.raises(ConfigError, match=f"--part {part}: the adapter holds"):
        read_foreign(parse((folder / CONFIG).read_bytes()), (folder / WEIGHTS).read_bytes(), part=part)
