"""What a careful user writes with transformers and PEFT alone: the peer of whole commands, without lorabank.

    python -m benchmarks.peft_script train BASE TRAIN EVAL EPOCHS FOLDER
    python -m benchmarks.peft_script predict BASE CENTROIDS TEXTS FOLDER ...

The first trains one adapter and scores it; the second labels texts, each with the adapter of the task that it is
nearest to.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)
from transformers.utils import logging

RANK, ALPHA, DROPOUT, MAX_LENGTH = 8, 32, 0.1, 256


def train(base: str, train_file: str, eval_file: str, epochs: str, folder: str) -> None:
    """Batches of 16 grouped by length, then the accuracy on the evaluation rows, and the adapter in a folder."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = read(train_file)
    labels = sorted({row["label"] for row in rows})
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(labels))
    config = LoraConfig(
        task_type="SEQ_CLS", r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules=["query", "value"]
    )
    trainer = Trainer(
        model=get_peft_model(model, config),
        args=TrainingArguments(
            output_dir=folder,
            num_train_epochs=float(epochs),
            per_device_train_batch_size=16,
            per_device_eval_batch_size=64,
            train_sampling_strategy="group_by_length",
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            optim="adamw_torch_fused",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=encoded(tokenizer, rows, labels),
        eval_dataset=encoded(tokenizer, read(eval_file), labels),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda said: {"accuracy": float(np.mean(said.predictions.argmax(-1) == said.label_ids))},
    )
    trainer.train()
    score = trainer.evaluate()["eval_accuracy"]
    trainer.save_model(folder)
    print(json.dumps({"steps": trainer.state.global_step, "accuracy": score}))


@torch.inference_mode()
def predict(base: str, centroids_file: str, texts_file: str, *folders: str) -> None:
    """Features of the base for the nearest centroid, then each task's texts with its adapter; sorted by length."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    peft = PeftModel.from_pretrained(model, folders[0], adapter_name="0")
    for k, folder in enumerate(folders[1:], start=1):
        peft.load_adapter(folder, adapter_name=str(k))
    peft.eval()
    ids = tokenizer([row["text"] for row in read(texts_file)], truncation=True, max_length=MAX_LENGTH)["input_ids"]
    by_length = sorted(range(len(ids)), key=lambda i: len(ids[i]))

    features = torch.zeros(len(ids), model.config.hidden_size)
    with peft.disable_adapter():
        for rows in batches(by_length):
            inputs = padded(tokenizer, [ids[i] for i in rows])
            mask = inputs["attention_mask"].unsqueeze(-1)
            hidden = model.bert(**inputs).last_hidden_state
            features[rows] = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    centroids = torch.from_numpy(np.load(centroids_file))  # [tasks, clusters, width]
    distances = torch.cdist(features, centroids.flatten(0, 1)).view(len(ids), *centroids.shape[:2])
    routes = distances.amin(-1).argmin(-1).tolist()

    labels = torch.zeros(len(ids), dtype=torch.long)
    for k in range(len(folders)):
        peft.set_adapter(str(k))
        for rows in batches([i for i in by_length if routes[i] == k]):
            labels[rows] = peft(**padded(tokenizer, [ids[i] for i in rows])).logits.argmax(-1)
    print(json.dumps({"routes": routes, "labels": labels.tolist()}))


def batches(order: list[int]) -> list[list[int]]:
    """Row numbers in batches of 64."""
    return [order[start : start + 64] for start in range(0, len(order), 64)]


def padded(tokenizer: Any, ids: list[list[int]]) -> dict[str, torch.Tensor]:
    """Inputs of one batch."""
    return dict(tokenizer.pad({"input_ids": ids}, return_tensors="pt"))


def read(path: str) -> list[dict[str, Any]]:
    """The rows of a JSON lines file."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def encoded(tokenizer: Any, rows: list[dict[str, Any]], labels: list[str]) -> list[dict[str, Any]]:
    """Token ids and the number of the label."""
    ids = tokenizer([row["text"] for row in rows], truncation=True, max_length=MAX_LENGTH)["input_ids"]
    return [{"input_ids": one, "labels": labels.index(row["label"])} for one, row in zip(ids, rows, strict=True)]


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    {"train": train, "predict": predict}[sys.argv[1]](*sys.argv[2:])
