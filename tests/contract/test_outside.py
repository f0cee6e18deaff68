"""A package from outside, which lorabank knows by its entry points alone: its methods count as lorabank's own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from lorabank import api
from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.bank.bank import Bank
from lorabank.compose.base import with_its_settings
from lorabank.core.config import ComposeConfig, PredictConfig
from lorabank.core.errors import ConfigError
from lorabank.models.bases.targets import find_targets
from lorabank.models.mixing.mixture import Mixture
from tests.contract.conftest import OUTSIDE
from tests.unit.training.plain import plain_layers

CPU = {"device": "cpu", "batch_size": 5}


pytestmark = pytest.mark.usefixtures("outside")


def test_a_strategy_that_trains_each_task_alone_is_answered_by_each_tasks_own_adapter(lab, texts) -> None:
    bank = lab.bank("apart", 2)
    found = api.predict(bank, texts, PredictConfig(task="one", **CPU))
    assert {name for one in found for name in one.adapters} == {"one"}


def test_who_answers_stays_known_without_the_package(lab, texts, outside: Path, monkeypatch) -> None:
    bank = lab.bank("apart", 2)
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if entry != str(outside)])
    found = api.predict(bank, texts, PredictConfig(task="one", **CPU))
    assert {name for one in found for name in one.adapters} == {"one"}


def test_a_routed_composition_is_the_default(copy, texts) -> None:
    bank = copy("olora", 2)
    api.compose(bank, ComposeConfig(mode="manual", device="cpu"))
    api.compose(bank, ComposeConfig(mode="soft", set=("kmeans.clusters_per_task=2",), device="cpu"))
    found = api.predict(bank, texts, PredictConfig(**CPU))
    assert {one.composition for one in found} == {"soft"}
    assert {one.task_id for one in found} == {"routed"}


def test_a_setting_of_its_own_reaches_a_merger(copy, texts) -> None:
    bank = copy("olora", 2)
    halved = ComposeConfig(mode="merged", merger="shares", set=("share=0.5",), name="halved", device="cpu")
    made = api.compose(bank, halved).composition
    assert made.parameters["share"] == 0.5
    api.compose(bank, ComposeConfig(mode="merged", set=("weights=one=0.5,two=0.5",), name="weighed", device="cpu"))
    for task in ("one", "two"):
        answers = [
            [(one.label, one.probability) for one in api.predict(bank, texts, PredictConfig(**asked, **CPU))]
            for asked in ({"task": task, "composition": "halved"}, {"task": task, "composition": "weighed"})
        ]
        assert answers[0] == answers[1]
    command = with_its_settings(made).line()
    assert command.endswith("--merger shares --set share=0.5")


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("shar=2", "merger shares: there is no setting 'shar'. Did you mean 'share'?"),
        ("share=0", "merger shares: share = '0': input should be greater than 0"),
        ("share", "'share' is not KEY=VALUE"),
    ],
)
def test_a_setting_that_does_not_fit_makes_no_composition(copy, given: str, problem: str) -> None:
    bank = copy("olora", 2)
    with pytest.raises(ConfigError) as caught:
        api.compose(bank, ComposeConfig(mode="merged", merger="shares", set=(given,), device="cpu"))
    assert caught.value.message.endswith(f"--set: {problem}")
    assert not api.overview(bank).compositions


def test_a_penalty_finds_the_basis_of_earlier_rows_when_it_needs_one(lab, copy) -> None:
    bank = copy("inclora", 1)
    lab.add(bank, "two", strategy="inclora", penalty="away", penalty_weight=1e4, epochs=12)
    adapter = Bank.open(bank).snapshot().adapter_of("two")
    assert adapter.penalties == {"away": 1e4}
    assert max(adapter.metrics["overlap"].values()) < 0.02


def test_the_documents_show_every_file_of_the_package_as_it_is() -> None:
    page = (OUTSIDE.parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
    files = [OUTSIDE / "pyproject.toml", *sorted((OUTSIDE / "lorabank_extras").glob("*.py"))]
    assert len(files) > 12
    for file in files:
        if file.name != "__init__.py":
            name, text = file.relative_to(OUTSIDE).as_posix(), file.read_text(encoding="utf-8")
            language = {".py": "python", ".toml": "toml"}[file.suffix]
            assert f"<!-- {name} -->\n```{language}\n{text}```\n" in page, f"docs/extending.md shows another {name}"


def test_a_kind_of_site_is_trained_and_answers_as_linear_layers_do(save_base, tmp_path: Path) -> None:
    """All linear layers of a model as dense layers: found, trained, merged and left as they were."""
    from lorabank_extras.site import Dense
    from transformers import AutoModelForSequenceClassification

    folder, ids = save_base(tmp_path / "base"), torch.arange(24).view(2, 12) % 30

    def model(dense: bool) -> torch.nn.Module:
        torch.manual_seed(0)
        made = AutoModelForSequenceClassification.from_pretrained(folder).eval().requires_grad_(False)
        for name, module in list(made.named_modules()):
            if dense and isinstance(module, torch.nn.Linear) and name != "classifier":
                made.set_submodule(name, Dense(module))
        return made

    found = [find_targets(model(dense), "all-linear", ("classifier",)) for dense in (False, True)]
    assert found[0].names == found[1].names
    assert {site.kind for site in found[1].sites} == {"dense"}
    trained = []
    for dense in (False, True):
        network = model(dense)
        torch.manual_seed(1)
        layers = plain_layers(network, found[0].names, r=2, lora_alpha=4)
        optimizer = torch.optim.SGD([leaf for layer in layers.values() for leaf in layer.leaves()], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            network(input_ids=ids).logits.square().mean().backward()
            optimizer.step()
        trained.append(layers)
    for name, layer in trained[0].items():
        torch.testing.assert_close(trained[1][name].lora_A, layer.lora_A, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(trained[1][name].lora_B, layer.lora_B, rtol=1e-4, atol=1e-6)
    B = {name: layer.lora_B.detach() for name, layer in trained[1].items()}
    A = {name: layer.lora_A.detach() for name, layer in trained[1].items()}
    stack = AdapterStack.build({"a": LoraFactors(A, B, dict.fromkeys(A, 2.0))})
    answers = []
    for dense in (False, True):
        network = model(dense)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        mixture = Mixture(network, stack)
        mixture.merge(torch.tensor([1.0]))
        answers.append(network(input_ids=ids).logits)
        mixture.detach()
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-5, atol=1e-6)
