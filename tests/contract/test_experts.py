"""Banks whose adapters stand on the experts of a mixture, which `all-linear` reaches: PEFT out and in, strategies."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import ComposeConfig, InitConfig, PredictConfig, TrainConfig
from lorabank.core.errors import ConfigError, IncompatibleError
from tests.contract.conftest import write_task
from tests.unit.workflows.language_models import CLOSE, PROMPTS, add, bank_logits, own_state, peft_logits

LABELS = {"one": ("no", "yes"), "two": ("one", "three", "two")}
EXPERTS = {"num_local_experts": 3, "num_experts_per_tok": 2, "num_key_value_heads": 2, "initializer_range": 0.2}


@pytest.fixture
def base(make_language_model: Callable[..., Path]) -> Path:
    return make_language_model("mixtral", **EXPERTS)


def fill(bank: Path, base: Path, **config: object) -> Path:
    for seed, (task, labels) in enumerate(LABELS.items()):
        settings = {"r": 2, "lora_alpha": 4.0, "target_modules": "all-linear", "max_length": 32} | config
        add(bank, base, task, labels, seed, **settings)
    return bank


def check_same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_two_tasks_on_all_linear_are_plain_peft(base: Path, tmp_path: Path) -> None:
    bank = fill(tmp_path / "bank", base)
    record = Bank.open(bank).snapshot().adapter_of("one")
    assert sum(".experts." in name for name in record.target_modules) == 2 * 2 * 3
    api.compose(bank, ComposeConfig(mode="manual", weights="one=0.5,two=-1", name="both", device="cpu"))
    first, second = (Bank.open(bank).snapshot().adapter_of(task).digest for task in LABELS)
    states = {task: own_state(bank, task) for task in LABELS} | {"both": {first: 0.5, second: -1.0}}
    for name, state in states.items():
        api.export(bank, name, tmp_path / name, state="learnt" if name in LABELS else None)
        config = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert len(config["target_parameters"]) == 2 * 2
        check_same(bank_logits(bank, state), peft_logits(base, tmp_path / name))
    check_same(bank_logits(bank, states["one"]), peft_logits(base, bank / "adapters" / first))  # where it lies
    assert len(api.predict(bank, PROMPTS, PredictConfig(task="two", device="cpu"))) == len(PROMPTS)


@pytest.mark.by_turns
@pytest.mark.parametrize("strategy", ["olora-projected", "seqlora", "ewc", "inflora"])
def test_a_strategy_trains_there(base: Path, tmp_path: Path, strategy: str) -> None:
    banks = [fill(tmp_path / name, base, strategy=strategy) for name in ("first", "second")]
    digests = [[Bank.open(bank).snapshot().adapter_of(task).digest for task in LABELS] for bank in banks]
    assert digests[0] == digests[1]


def pefts_own(base: Path, folder: Path, **config: object) -> Path:
    """An adapter that PEFT made on the experts' parameters and on the query, with random numbers."""
    settings = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | config
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), peft.LoraConfig(**settings))
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "config",
    [
        {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
        {"target_parameters": ["mlp.experts.down_proj"]},
        {
            "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
            "rank_pattern": {"experts.gate_up_proj": 3},
            "alpha_pattern": {"experts.gate_up_proj": 7},
            "use_rslora": True,
        },
    ],
    ids=["both", "one", "patterns"],
)
def test_a_folder_of_pefts_own_is_taken(base: Path, tmp_path: Path, config: dict[str, object]) -> None:
    folder = pefts_own(base, tmp_path / "theirs", **config)
    data = write_task(tmp_path / "rows.jsonl", labels=2, seed=0)
    settings = TrainConfig(data=str(data), device="cpu", set=("prompt_template={text}:",), eval_fraction=0.5)
    bank = tmp_path / "bank"
    api.import_adapter(bank, folder, "one", config=settings, init=InitConfig(base=str(base)))
    check_same(bank_logits(bank, own_state(bank, "one")), peft_logits(base, folder))
    api.export(bank, "one", tmp_path / "again")
    check_same(peft_logits(base, tmp_path / "again"), peft_logits(base, folder))


def test_a_folder_for_other_experts_is_refused(base: Path, make_language_model, tmp_path: Path) -> None:
    folder = pefts_own(base, tmp_path / "theirs", target_parameters=["experts.down_proj"])
    data = write_task(tmp_path / "rows.jsonl", labels=2, seed=0)
    settings = TrainConfig(data=str(data), device="cpu", set=("prompt_template={text}:",), eval_fraction=0.5)
    others = {
        "more": (make_language_model("mixtral", name="more", **(EXPERTS | {"num_local_experts": 4})), "rows for 4"),
        "none": (make_language_model("llama", name="none"), "the base has no experts there"),
    }
    for name, (other, reason) in others.items():
        config = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(other)}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises((ConfigError, IncompatibleError), match=reason) as caught:
            api.import_adapter(
                tmp_path / name / "bank", folder, "one", config=settings, init=InitConfig(base=str(other))
            )
        assert "\n" not in str(caught.value)


def test_a_row_gain_on_experts_is_not_exported(base: Path, tmp_path: Path) -> None:
    """PEFT knows no DoRA on parameters."""
    bank = tmp_path / "bank"
    add(bank, base, "one", LABELS["one"], 0, r=2, target_modules="experts.down_proj.0,q_proj", variant="dora")
    with pytest.raises(IncompatibleError, match="PEFT") as caught:
        api.export(bank, "one", tmp_path / "one")
    assert "\n" not in str(caught.value)
