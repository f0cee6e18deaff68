"""Experiment trackers: the names that transformers knows, and the package behind each."""

from __future__ import annotations

from importlib.util import find_spec

from lorabank.core.errors import ConfigError, MissingExtraError
from lorabank.core.machine.packages import EXTRAS, install
from lorabank.core.settings import nearest

TRACKERS: dict[str, dict[str, str]] = {
    "azure_ml": {"azureml": "azureml-core"},
    "clearml": {"clearml": "clearml"},
    "codecarbon": {"codecarbon": "codecarbon"},
    "comet_ml": {"comet_ml": "comet-ml"},
    "dagshub": {"dagshub": "dagshub"},
    "dvclive": {"dvclive": "dvclive"},
    "flyte": {"flytekit": "flytekit"},
    "mlflow": {"mlflow": "mlflow"},
    "neptune": {"neptune": "neptune"},
    "swanlab": {"swanlab": "swanlab"},
    "tensorboard": {"tensorboard": "tensorboard", "tensorboardX": "tensorboardX"},
    "trackio": {"trackio": "trackio"},
    "wandb": {"wandb": "wandb"},
}
"""Name to the modules of which one is needed, and what each is called when it is installed."""


def check_tracker(name: str) -> None:
    """Refuse a tracker that could not be reported to, before anything is trained.

    Raises:
        ConfigError: There is no such tracker; ``all`` is refused too, since it would report to whatever is installed.
        MissingExtraError: Its package is not installed.
    """
    if name == "none":
        return
    if name not in TRACKERS:
        raise ConfigError(
            f"there is no experiment tracker {name!r}{nearest(name, [*TRACKERS, 'none'])}",
            hint=f"choose none or one of: {', '.join(TRACKERS)}",
            unchanged="nothing was changed",
        )
    if not any(find_spec(module) for module in TRACKERS[name]):
        package = next(iter(TRACKERS[name].values()))
        command = install("tracking") if EXTRAS["tracking"].startswith(package) else f"pip install {package}"
        raise MissingExtraError(
            f"--report-to {name} needs the package {package}, which is not installed",
            hint=command,
            unchanged="nothing was changed",
        )
