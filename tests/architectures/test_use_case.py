"""The whole use case on classes that were wrong once: two tasks, routed answers in any batch, and plain PEFT."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from lorabank import api
from lorabank.core.config import ComposeConfig, InitConfig, PredictConfig, TrainConfig
from lorabank.core.errors import IncompatibleError
from tests.architectures import zoo
from tests.architectures.plain import TEMPLATE, Plain

LABELS = {"films": ("good", "very bad"), "post": ("spam", "ham", "meet lunch")}
FAST = ("SEQ_CLS-DebertaV2-v3", "SEQ_2_SEQ_LM-FSMT", "CAUSAL_LM-GPT2")
SLOW = ("SEQ_CLS-Longformer", "SEQ_CLS-DeepseekV3", "CAUSAL_LM-RecurrentGemma", "SEQ_2_SEQ_LM-SwitchTransformers")
PAIRS = {str(pair): pair for pair in zoo.pairs()}


def rows(labels: tuple[str, ...], count: int) -> list[dict[str, str]]:
    chance = random.Random(str(labels))
    texts = [" ".join(chance.choices(zoo.WORDS[len(zoo.SPECIAL) : 30], k=chance.randint(1, 14))) for _ in range(count)]
    return [{"text": text, "label": labels[i % len(labels)]} for i, text in enumerate(texts)]


@pytest.mark.by_turns
@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_routed_answers_are_those_of_one_row_in_plain_peft(name: str, tmp_path: Path) -> None:
    pair, base, bank = PAIRS[name], tmp_path / "base", tmp_path / "bank"
    zoo.build(pair, zoo.tiny_config(pair), base)
    more = {} if pair.task_type == "SEQ_CLS" else {"set": (f"prompt_template={TEMPLATE}",), "format": "classification"}
    for task, labels in LABELS.items():
        data = tmp_path / f"{task}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows(labels, 30)))
        config = TrainConfig(
            data=str(data), strategy="isolated", target_modules="all-linear", r=4, learning_rate=0.03, epochs=2.0,
            batch_size=8, max_length=64, device="cpu", **more,
        )  # fmt: skip
        api.add_task(bank, task, config, init=InitConfig(base=str(base), task_type=pair.task_type))
    api.compose(bank, ComposeConfig(mode="prototype", device="cpu"))
    texts = tuple(row["text"] for labels in LABELS.values() for row in rows(labels, 6))
    together, alone = (api.predict(bank, texts, PredictConfig(batch_size=size, device="cpu")) for size in (64, 1))
    assert {answer.task for answer in together} == set(LABELS)
    assert [(one.task, one.label) for one in together] == [(one.task, one.label) for one in alone]
    for task in LABELS:
        labels = api.overview(bank).task(task).labels
        folder = tmp_path / f"plain-{task}"
        api.export(bank, task, folder)
        plain = Plain(base, pair.task_type, labels)
        plain.model = PeftModel.from_pretrained(plain.model, folder).eval()
        with torch.no_grad():
            for answer in (*together, *alone):
                if answer.task == task:
                    expected = plain.scores(answer.text).exp()
                    assert answer.label == labels[int(expected.argmax())]
                    assert answer.probability == pytest.approx(float(expected.max()), abs=1e-3)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("SEQ_CLS-IBert", "no linear layers"),
        ("SEQ_2_SEQ_LM-ProphetNet", "depends on how many words follow"),
        ("CAUSAL_LM-XLNet", "sees the words that follow"),
    ],
)
def test_no_bank_is_made_on_a_base_that_cannot_be_used(name: str, reason: str, tmp_path: Path) -> None:
    pair, base, bank = PAIRS[name], tmp_path / "base", tmp_path / "bank"
    zoo.build(pair, zoo.tiny_config(pair), base)
    data = tmp_path / "films.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows(LABELS["films"], 12)))
    with pytest.raises(IncompatibleError, match=reason) as caught:
        api.add_task(
            bank, "films", TrainConfig(data=str(data)), init=InitConfig(base=str(base), task_type=pair.task_type)
        )
    assert "\n" not in str(caught.value)
    assert not bank.exists()
