"""C: the config."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.faults.corpus.case import CONFIG, Case, Spoil, fields


def large(folder: Path) -> None:
    os.truncate(folder / CONFIG, 300 * 10**6)


def text(content: bytes) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / CONFIG).write_bytes(content)

    return spoil


def not_a_number(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    (folder / CONFIG).write_text(json.dumps(config | {"lora_alpha": float("nan")}))


def costly() -> str:
    """Groups in groups, each to be repeated."""
    text = "[a-z.0-9]"
    for _ in range(30):
        text = f"(?:{text}?){{50}}"
    return f"{text}.*(query|value)"


CASES = (
    Case("C01 r of a million", 6, fields(r=1_000_000)),
    Case("C02 negative r", 6, fields(r=-2)),
    Case("C03 r a float", 6, fields(r=2.0)),
    Case("C04 r a text", 6, fields(r="2")),
    Case("C05 lora_alpha of a million", 0, fields(lora_alpha=10**6)),
    Case("C06 lora_alpha NaN", 6, not_a_number),
    Case("C07 regular expression that never ends", 6, fields(target_modules="([a-z.0-9_]+)+!")),
    Case("C08 the same in a pattern", 0, fields(alpha_pattern={"(a+)+$": 2})),  # matched within a bound: it names none
    Case("C09 unknown key", 6, fields(surprise="boo")),
    Case("C10 no peft_type", 6, fields(peft_type=...)),
    Case("C11 odd peft_type", 6, fields(peft_type="../LORA")),
    Case("C12 auto_mapping", 0, fields(auto_mapping={"base_model_class": "system", "parent_library": "os"})),
    Case("C13 megatron_core", 0, fields(megatron_core="os")),
    Case("C14 base a path", 5, fields(base_model_name_or_path="/etc/passwd")),
    Case("C15 base an address", 5, fields(base_model_name_or_path="https://localhost:1/model")),
    Case("C16 another base", 5, fields(base_model_name_or_path="someone/else")),
    Case("C17 odd revision", 0, fields(revision="../../refs/heads/main")),
    Case("C18 trust_remote_code", 6, fields(trust_remote_code=True)),
    Case("C19 layers a hundred thousand times", 6, fields(layer_replication=[[0, 100_000]])),
    Case("C20 cache files of LoftQ and CorDA", 6, fields(corda_config={"cache_file": "/dev/zero"})),
    Case("C21 300 MB", 6, large),
    Case("C22 LoftQ", 6, fields(init_lora_weights="loftq", loftq_config={"loftq_bits": 4})),
    Case("C23 nested 100,000 deep", 6, text(b"[" * 100_000)),
    Case("C24 key twice", 6, text(b'{"peft_type": "LORA", "peft_type": "LORA"}')),
    Case("C25 number of 5,000 digits", 6, text(b'{"r": ' + b"9" * 5000 + b"}")),
    Case("C26 a megabyte of target_modules", 6, fields(target_modules=["query" * 50_000])),
    Case("C28 layers that the tensors contradict", 6, fields(layers_to_transform=[0])),
    Case("C29 layers that the tensors have", 0, fields(layers_to_transform=[0, 1], layers_pattern="layer")),
    Case("C30 layer of a million digits", 6, fields(layers_to_transform="9" * 100_000)),
    Case("C31 excluded though it has tensors", 6, fields(exclude_modules=["query"])),
    Case("C32 excluded by an expression that never ends", 0, fields(exclude_modules="(([a-z.]+)+)+!")),
    Case("C33 an expression for the targets", 0, fields(target_modules=r".*\.(query|value)")),
    Case("C34 an expression that is not taken", 0, fields(target_modules=r".*(?<=self\.)(query|value)")),
    Case("C35 one that is not taken for a scaling", 6, fields(alpha_pattern={r"(?<=self\.)query": 2})),
    Case("C36 many expressions for scalings", 6, fields(alpha_pattern={f"(a+)+{n}": 2 for n in range(100)})),
    Case("C37 an expression that costs too much", 0, fields(target_modules=costly())),
    Case("C38 experts as parameters", 6, fields(target_parameters=["mlp.experts.gate_up_proj"])),
    Case("C27 unknown key passed over", 0, fields(trust_remote_code=True), words=("--ignore-unknown",)),
)
