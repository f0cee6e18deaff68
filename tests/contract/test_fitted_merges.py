"""Mergers that ask the model with kept rows, against plain transformers with the adapters' files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lorabank_cli.main import main
from safetensors.torch import load as load_tensors
from safetensors.torch import load_file
from torch import Tensor
from torch.func import functional_call

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.compose.mergers.fitted import lorahub
from lorabank.core.config import ComposeConfig, EvalConfig
from lorabank.core.errors import ConfigError, MissingExtraError, NotFoundError
from lorabank.data.formats.parquet import from_parquet
from lorabank.data.rows import sample_rows
from lorabank.models.bases.open_base import OpenBase
from lorabank.workflows.assemble import RuntimeSettings, load_runtime
from lorabank.workflows.results import ComposeResult
from tests.contract.conftest import KINDS, PLAIN, TASKS, Lab

ROWS = 6


@pytest.fixture(scope="session", params=["bert", "llama"])
def lab(request: pytest.FixtureRequest, make_lab: Callable[[str], Lab]) -> Lab:
    return make_lab(request.param)


def merge(bank: Path, merger: str, *given: str, **config: Any) -> ComposeResult:
    settings = {"mode": "merged", "merger": merger, "name": "merge", "device": "cpu", "scores": False, "set": given}
    return api.compose(bank, ComposeConfig(**settings | config))


class Plain:
    """The tasks of a bank by transformers, safetensors and autograd: delta weights, and the predictions of rows."""

    def __init__(self, lab: Lab, bank: Path, seed: int = 0) -> None:
        opened = Bank.open(bank)
        snapshot = opened.snapshot()
        self.kind, self.tasks = lab.kind, [task.name for task in snapshot.tasks]
        self.models, self.deltas, self.rows, self.labels = {}, {}, {}, {}
        for task in snapshot.tasks:
            digest = snapshot.adapter_of(task.name).digest
            self.models[task.name], _ = PLAIN[lab.kind](lab.base, bank, digest)
            self.deltas[task.name] = _deltas(bank / "adapters" / digest)
            self.labels[task.name] = task.labels
            kept = from_parquet(opened.read_blob(snapshot.dataset(task.name, "calibration").blob))
            few = sample_rows(kept, ROWS, seed)
            self.rows[task.name] = list(zip(few.texts, few.labels, strict=True))
        self.modules = list(self.deltas[self.tasks[0]])
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(lab.base)

    def weights(self, task: str, w: dict[str, Any]) -> dict[str, Tensor]:
        """``W + sum_k w_k delta W_k`` as parameters; w by task, each one number or one for each module."""
        model, found = self.models[task], {}
        for i, module in enumerate(self.modules):
            found[f"{module}.weight"] = model.get_submodule(module).weight.detach()
            for other, weight in w.items():
                own = weight if isinstance(weight, float) else weight[i]
                found[f"{module}.weight"] = found[f"{module}.weight"] + own * self.deltas[other][module]
        return found

    def predictions(self, task: str, text: str, label: str, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits and what is to be predicted of one row."""
        if self.kind == "bert":
            ids = torch.tensor([[0, *(4 + ord(letter) - ord("a") for letter in text.split()), 2]])
            logits = functional_call(self.models[task], weights, (), {"input_ids": ids}).logits
            return logits, torch.tensor([self.labels[task].index(label)])
        prompt = self.tokenizer(f"{text}\nOption: {', '.join(self.labels[task])}\nAnswer:")["input_ids"]
        answer = [*self.tokenizer(f" {label}", add_special_tokens=False)["input_ids"], 2]
        ids = torch.tensor([[*prompt, *answer]])
        logits = functional_call(self.models[task], weights, (), {"input_ids": ids}).logits
        return logits[0, len(prompt) - 1 : -1], torch.tensor(answer)

    def loss(self, w: dict[str, Any]) -> Tensor:
        """The mean over the tasks of the mean over their tokens (rows)."""
        means = []
        for task in self.tasks:
            made = self.weights(task, w)
            pairs = [self.predictions(task, text, label, made) for text, label in self.rows[task]]
            logits, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
            means.append(F.cross_entropy(logits, labels))
        return torch.stack(means).mean()


def _deltas(folder: Path) -> dict[str, Tensor]:
    tensors = load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    prefix, scaling = "base_model.model.", config["lora_alpha"] / config["r"]
    return {
        key.removeprefix(prefix).removesuffix(".lora_A.weight"): scaling * tensors[key.replace("lora_A", "lora_B")] @ a
        for key, a in tensors.items()
        if key.endswith(".lora_A.weight")
    }


def stored(bank: Path, stage: int) -> dict[str, Tensor]:
    opened = Bank.open(bank)
    objects = opened.snapshot().composition("merge").objects
    return load_tensors(opened.read_blob(objects[f"merge of stage {stage}"]))


def by_module(tensors: dict[str, Tensor], kind: str) -> Iterator[tuple[str, Tensor]]:
    return ((name.removeprefix(kind), tensor) for name, tensor in tensors.items() if name.startswith(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_s_loss_is_the_mean_cross_entropy_of_its_predictions(make_lab, kind: str) -> None:
    bank = Bank.open(make_lab(kind).bank("isolated", 1))
    snapshot = bank.snapshot()
    settings = RuntimeSettings(device="cpu", dtype="float32", batch_size=4)
    runtime = load_runtime(bank, snapshot, OpenBase(snapshot.base), settings)
    for text, label in (("a b c", "part0"), ("x", "part1")):
        logits, labels = runtime.predictions(text, label, 0)
        assert logits.shape == (len(labels), logits.shape[1])
        torch.testing.assert_close(F.cross_entropy(logits, labels), runtime.loss([text], [label], 0))


def test_fisher_is_that_of_the_rows_with_labels_that_the_model_draws(copy, lab) -> None:
    bank = copy("isolated", 2)
    merge(bank, "fisher", f"rows={ROWS}", "floor=1e-3", seed=3)
    plain, total, weighed = Plain(lab, bank, seed=3), {}, {}
    for task in plain.tasks:
        generator = torch.Generator().manual_seed(3)
        weights = {name: value.requires_grad_(True) for name, value in plain.weights(task, {task: 1.0}).items()}
        information = {name: torch.zeros_like(value) for name, value in weights.items()}
        for text, label in plain.rows[task]:
            logits, _ = plain.predictions(task, text, label, weights)
            drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)
            surprise = -logits.log_softmax(-1).gather(1, drawn).sum()
            for name, gradient in zip(weights, torch.autograd.grad(surprise, [*weights.values()]), strict=True):
                information[name] += gradient.square() / ROWS
        norm = torch.cat([part.flatten() for part in information.values()]).double().norm()
        for module in plain.modules:
            own = (information[f"{module}.weight"].double() / norm).clamp(min=1e-3)
            total[module] = total.get(module, 0) + own
            weighed[module] = weighed.get(module, 0) + own * plain.deltas[task][module]
    found = dict(by_module(stored(bank, 2), "delta:"))
    assert found.keys() == set(plain.modules)
    for module, delta in found.items():
        expected = weighed[module] / total[module]
        mean = (plain.deltas["one"][module] + plain.deltas["two"][module]) / 2
        assert float((delta - expected).norm() / expected.norm()) < 1e-4
        assert float((mean - expected).norm() / expected.norm()) > 1e-2


def test_regmean_reads_what_each_task_feeds_into_its_modules(copy, lab) -> None:
    bank = copy("isolated", 2)
    merge(bank, "regmean", f"rows={ROWS}", "off_diagonal=0.5")
    plain, grams = Plain(lab, bank), {}
    for task in plain.tasks:
        seen: dict[str, list[Tensor]] = {module: [] for module in plain.modules}
        model = plain.models[task]
        hooks = [
            model.get_submodule(m).register_forward_pre_hook(lambda _, args, to=seen[m]: to.append(args[0][0]))
            for m in plain.modules
        ]
        with torch.no_grad():
            for text, label in plain.rows[task]:
                if lab.kind == "llama":  # a row's last token predicts nothing, so it is no input of training
                    predict = plain.models[task].forward
                    model.forward = lambda input_ids, predict=predict: predict(input_ids=input_ids[:, :-1])
                plain.predictions(task, text, label, plain.weights(task, {task: 1.0}))
                if lab.kind == "llama":
                    del model.forward
        for hook in hooks:
            hook.remove()
        for module, rows in seen.items():
            x = torch.cat(rows).double()
            gram = 0.5 * x.T @ x + 0.5 * (x.T @ x).diag().diag()
            grams.setdefault(module, {})[task] = gram / gram.trace()
    found = stored(bank, 2)
    for module, own in grams.items():
        weighed = sum(plain.deltas[task][module].double() @ gram for task, gram in own.items())
        expected = weighed @ torch.linalg.inv(sum(own.values()))
        made = found[f"B:{module}"].double() @ found[f"A:{module}"].double()
        assert float((made - expected).norm() / expected.norm()) < 1e-4


def test_learned_descends_on_the_kept_rows_of_all_tasks(copy, lab) -> None:
    bank = copy("isolated", 2)
    told = merge(bank, "learned", f"rows={ROWS}", "steps=4", "learning_rate=0.1", batch_size=32).report
    plain = Plain(lab, bank)
    w = {task: torch.full((len(plain.modules),), 0.5, requires_grad=True) for task in plain.tasks}
    optimizer = torch.optim.Adam([*w.values()], lr=0.1)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = plain.loss(w)
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
    losses.append(float(plain.loss(w).detach()))
    assert [told["loss"]["first"], told["loss"]["last"]] == pytest.approx([losses[0], losses[-1]], rel=1e-5)
    assert losses[-1] < losses[0]
    for i, module in enumerate(plain.modules):
        own = stored(bank, 2)[f"weight:{module}"]
        np.testing.assert_allclose(own, [float(w[task][i].detach()) for task in plain.tasks], atol=1e-4)
    assert told["mean_weight"]["two"] == pytest.approx(float(w["two"].detach().mean()), abs=1e-4)
    for i, module in enumerate(plain.modules):  # the distance is from the sum with each task's mean weight
        mean = sum(w[task].detach().mean() * plain.deltas[task][module] for task in plain.tasks)
        made = sum(w[task].detach()[i] * plain.deltas[task][module] for task in plain.tasks)
        assert told["distance"][module] == pytest.approx(float((made - mean).norm() / mean.norm()), abs=1e-4)


def test_weight_search_keeps_the_whole_curve(copy, lab, tmp_path) -> None:
    bank = copy("isolated", 2)
    told = merge(bank, "weight-search", f"rows={ROWS}", "low=-0.5", "high=2", "points=6", batch_size=32).report
    plain = Plain(lab, bank)
    with torch.no_grad():
        losses = {
            factor: float(plain.loss(dict.fromkeys(plain.tasks, factor))) for factor in (-0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
        }
    assert {point["factor"]: point["loss"] for point in told["curve"]} == {
        factor: pytest.approx(loss, rel=1e-5) for factor, loss in losses.items()
    }
    best = min(losses, key=losses.__getitem__)
    assert told["factor"] == best
    assert stored(bank, 2)["weight"].tolist() == [best, best]
    assert Bank.open(bank).snapshot().composition("merge").parameters["curve"] == told["curve"]
    assert max(told["distance"].values()) < 1e-6  # it is a sum, and compared with that
    note = api.export(bank, "merge", tmp_path / "out").note
    assert note.startswith("one, two in one adapter by weight-search, r 4 on ")  # no weights that it does not have


def test_lorahub_searches_in_its_box(copy, lab) -> None:
    bank = copy("isolated", 2)
    given = (f"rows={ROWS}", "budget=12", "bound=0.4", "penalty=0.3")
    told = merge(bank, "lorahub", *given, seed=5, batch_size=32).report
    plain = Plain(lab, bank, seed=5)
    with torch.no_grad():
        loss = float(plain.loss(told["weights"])) + 0.3 * np.mean(np.abs([*told["weights"].values()]))
        start = float(plain.loss(dict.fromkeys(plain.tasks, 0.0)))
    assert told["objective"] == pytest.approx(loss, rel=1e-5)
    assert told["objective"] < start
    assert told["evaluations"] == 12
    assert all(abs(weight) <= 0.4 for weight in told["weights"].values())
    state = np.random.get_state()[1].tolist()
    again = merge(bank, "lorahub", *given, seed=5, batch_size=32, replace=True).report
    assert (again["weights"], np.random.get_state()[1].tolist()) == (told["weights"], state)
    assert merge(bank, "lorahub", *given, seed=6, replace=True).report["weights"] != told["weights"]


def test_lorahub_without_its_package_says_what_to_type(copy, monkeypatch, capsys) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(lorahub, "import_module", missing)
    bank = copy("isolated", 2)
    with pytest.raises(MissingExtraError, match="lorahub searches with the package cma, which is not installed"):
        merge(bank, "lorahub")
    assert main(["compose", "--mode", "merged", "--merger", "lorahub", "--bank", str(bank)]) == 7
    assert 'pip install "cma>=4"' in capsys.readouterr().err
    assert Bank.open(bank).snapshot().compositions == ()


def test_an_empty_grid_is_refused(copy) -> None:
    with pytest.raises(ConfigError, match=r"high = 0.5 is not above low = 1") as caught:
        merge(copy("isolated", 2), "weight-search", "low=1", "high=0.5")
    assert caught.value.hint == "--set high=2"


@pytest.mark.by_turns
@pytest.mark.parametrize("merger", ["fisher", "regmean", "learned", "lorahub", "weight-search"])
def test_a_task_without_kept_rows_is_named(copy, lab, merger: str) -> None:
    bank = copy("isolated", 1)
    lab.add(bank, "two", strategy="isolated", keep_samples=0)
    with pytest.raises(
        NotFoundError, match=f"task 'two' was added without calibration samples, which the merger {merger}"
    ):
        merge(bank, merger)
    merge(bank, merger, tasks="one")


def test_a_stage_that_was_left_out_is_fitted_once_and_kept(copy) -> None:
    bank = copy("isolated", 3)
    merge(bank, "learned", "steps=2", name="merge")
    merge(bank, "learned", "steps=2", name="late", stages="last")
    assert set(Bank.open(bank).snapshot().composition("late").objects) == {"merge of stage 3"}

    def matrix(name: str, batch_size: int) -> list[list[float | None]]:
        config = EvalConfig(compositions=(name,), forgetting_matrix=True, device="cpu", batch_size=batch_size)
        return api.evaluate(bank, config)[0].values

    assert matrix("late", 7) == matrix("merge", 7)
    assert [entry.kind for entry in api.history(bank)].count("derive") == 2  # stages 1 and 2
    matrix("late", 5)
    assert [entry.kind for entry in api.history(bank)].count("derive") == 2
    assert Bank.open(bank).verify(full=True) == []


def test_stages_measure_a_task_once(copy, monkeypatch) -> None:
    from lorabank.compose.mergers.fitted import fisher

    measured: list[str] = []
    own = fisher.Fisher._information
    monkeypatch.setattr(
        fisher.Fisher,
        "_information",
        lambda self, kept, task, modules: measured.append(task) or own(self, kept, task, modules),
    )
    merge(copy("isolated", 3), "fisher")
    assert measured == ["one", "two", "three"]


@pytest.mark.parametrize("merger", ["fisher", "regmean"])
def test_a_task_is_measured_again_where_a_later_one_adapts_other_modules(copy, lab, merger: str) -> None:
    bank = copy("isolated", 1)
    ending = {"bert": "key", "llama": "k_proj"}[lab.kind]
    lab.add(bank, TASKS[1], strategy="isolated", target_modules=ending)
    merge(bank, merger, stages="all")
    every = stored(bank, 2)
    merge(bank, merger, stages="last", replace=True)
    alone = stored(bank, 2)
    assert any(ending in name for name in every)
    assert every.keys() == alone.keys()
    for name, tensor in every.items():
        torch.testing.assert_close(tensor, alone[name], rtol=0, atol=0)


def test_delta_weights_of_full_rank_are_stored_as_they_are_cut(copy) -> None:
    bank = copy("isolated", 2)
    whole = merge(bank, "fisher").report["distance"]
    dense = dict(by_module(stored(bank, 2), "delta:"))
    cut = merge(bank, "fisher", "max_rank=2", replace=True).report
    tensors = stored(bank, 2)
    assert not list(by_module(tensors, "delta:"))
    for module, delta in dense.items():
        u, s, vt = np.linalg.svd(delta.double().numpy())
        found = tensors[f"B:{module}"] @ tensors[f"A:{module}"]
        np.testing.assert_allclose(found, (u[:, :2] * s[:2]) @ vt[:2], atol=1e-6)
        assert cut["relative_error"][module] == pytest.approx(np.sqrt(np.sum(s[2:] ** 2) / np.sum(s**2)), rel=1e-4)
    assert cut["distance"].keys() == whole.keys()
