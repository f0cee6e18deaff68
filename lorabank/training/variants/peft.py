"""PEFT's own tuners as variants: PEFT makes the layers, lorabank's trainer trains them.

What comes of it has no factors and is kept as PEFT saves it, so such a task answers alone: with its own adapter, or
where a router sends a text to it. The settings are the fields of PEFT's config, with PEFT's help.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, make_dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from lorabank.algebra.factors import LoraFactors
from lorabank.core.commands import Command
from lorabank.core.config import TrainConfig
from lorabank.core.errors import ConfigError
from lorabank.core.limits import MAX_RANK
from lorabank.core.methods import values_of
from lorabank.core.settings import setting
from lorabank.models.tuners.library import TunerState, UnfitError, put_on, setting_fields, trained_numbers
from lorabank.training.variants.base import Parametrization, PastUse, Variant

if TYPE_CHECKING:
    from lorabank.models.bases.sites import Site
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart

_OF_FACTORS = ("r", "lora_alpha", "use_rslora")
"""Settings of a training that say something of A and B alone."""
_BOUNDS: dict[str, Any] = {"r": {"le": MAX_RANK}}
"""Of fields, which PEFT itself does not bound."""


class Tuned(Parametrization):
    """What PEFT's layers train; the model holds it.

    Args:
        state: Gives the adapter as it is now.
    """

    def __init__(self, state: Callable[[], TunerState]) -> None:
        super().__init__()
        self._state = state

    def factors(self) -> LoraFactors:
        """None at all."""
        return LoraFactors({}, {}, {})

    def tuned(self) -> TunerState:
        """The adapter as PEFT saves it."""
        return self._state()


@dataclass(frozen=True)
class Tuner(Variant):
    """A tuner of PEFT.

    Attributes:
        kind: Its ``PeftType``.
        name: Its name on the shelf.
        about: What it makes of a weight.
    """

    kind: ClassVar[str] = ""
    name: ClassVar[str] = ""
    about: ClassVar[str] = ""
    alone: ClassVar[bool] = True
    draws: ClassVar[bool] = True

    def parametrize(self, context: TrainContext, start: FactorStart) -> Tuned:
        """PEFT's layers in the place of the model's."""
        try:
            return Tuned(put_on(context.model, self.kind, values_of(self), [site.name for site in context.sites]))
        except UnfitError as error:
            raise self._unfit(str(error)) from error

    def unfit(self, config: TrainConfig) -> ConfigError | None:
        """Settings of factors, or a head that all tasks share."""
        changed = [name for name in _OF_FACTORS if getattr(config, name) != getattr(TrainConfig, name)]
        if config.lora_dropout not in (0, TrainConfig.lora_dropout):  # 0 also means no dropout in the base
            changed.append("lora_dropout")
        if changed:
            option = f"--{changed[0].replace('_', '-')}"
            return self._refused(f"has its own settings, and {option} is of A and B", f"leave {option} out")
        if config.head == "shared":
            return self._refused("answers alone, and under --head shared the newest adapter answers for all tasks")
        return None

    def refusal(self, site: Site, r: int, number: int) -> ConfigError | None:
        """Only linear layers are adapted, and PEFT says which settings fit their shape."""
        if type(site.module) is not nn.Linear or site.rows is not None:
            kind = "a part of a fused matrix" if site.rows is not None else f"a {type(site.module).__name__}"
            hint = "--target-modules with names of linear layers"
            return self._refused(f"adapts linear layers of a base in floats, and {site.name} is {kind}", hint)
        try:
            self.parameters(site.d_out, site.d_in, r)
        except UnfitError as error:
            return self._unfit(f"{site.name} [{site.d_out}, {site.d_in}]: {error}")
        return None

    @property
    def refused(self) -> tuple[str, ...]:
        """All but the usual methods: no other has anything to act on."""
        return (
            "every strategy but isolated: PEFT trains no A and B here, so the task answers alone",
            "every penalty and every start: both are about A and B",
            "savings of a part of each step, a shared head, and all modules but linear layers in floats",
        )

    def refuses_saving(self, *, partial: bool) -> str | None:
        """A saving may not leave out what only PEFT's layers know."""
        return "PEFT's layers need every pass whole" if partial else None

    def parameters(self, d_out: int, d_in: int, r: int) -> int:
        """As many as PEFT trains."""
        return trained_numbers(self.kind, tuple(values_of(self).items()), d_out, d_in)

    def refuses(self, strategy: PastUse, start: FactorStart) -> str | None:
        """It has no A and B that could be summed, continued or held."""
        if strategy.earlier != "off" or strategy.answers != "own":
            return "PEFT trains no A and B here, so the task answers alone: use --strategy isolated"
        if strategy.penalty:
            return "a penalty is about A and B, which PEFT's tuner does not train"
        return super().refuses(strategy, start)

    def _unfit(self, said: str) -> ConfigError:
        return ConfigError(
            f"PEFT refuses the settings of variant {self.name!r}: {said}",
            commands=[Command("methods", self.name)],
            unchanged="nothing was changed",
        )

    def _refused(self, why: str, hint: str | None = None) -> ConfigError:
        return ConfigError(
            f"variant {self.name!r} {why}",
            hint=hint,
            commands=[Command("methods", self.name)],
            unchanged="nothing was changed",
        )


def _tuner(kind: str, about: str, paper: str) -> type[Tuner]:
    """A tuner with the fields of its config."""
    own: Sequence[tuple[str, Any, Any]] = [
        (name, hint, setting(default, said or f"PEFT's {name}.", **_BOUNDS.get(name, {})))
        for name, (hint, default, said) in setting_fields(kind).items()
    ]
    shown = {"kind": kind, "name": f"peft:{kind.lower()}", "about": about, "paper": paper, "__doc__": about}
    return make_dataclass(kind.title(), own, bases=(Tuner,), namespace=shown, frozen=True)


LOHA = _tuner("LOHA", "The entrywise product of two products of factors is added.", "LoHa, FedPara, arXiv 2108.06098")
LOKR = _tuner("LOKR", "A Kronecker product of small matrices is added.", "LoKr, LyCORIS, arXiv 2309.14859")
OFT = _tuner("OFT", "Blocks of the inputs are rotated.", "OFT, arXiv 2306.07280")
BOFT = _tuner("BOFT", "Outputs are rotated by a product of sparse rotations, a butterfly.", "BOFT, arXiv 2311.06243")
HRA = _tuner("HRA", "Inputs are reflected by a chain of Householder reflections.", "HRA, arXiv 2405.17484")
FOURIERFT = _tuner("FOURIERFT", "A few entries of the spectrum of what is added are trained.", "arXiv 2405.03003")
WAVEFT = _tuner("WAVEFT", "A few wavelet coefficients of what is added are trained.", "WaveFT, arXiv 2505.12532")
MISS = _tuner("MISS", "One matrix, repeated over shards of the inputs, is added.", "MiSS, arXiv 2409.15371")
RANDLORA = _tuner("RANDLORA", "A sum of random products is added, each scaled by trained vectors.", "arXiv 2502.00987")
C3A = _tuner("C3A", "Blocks of circulant matrices are added.", "C3A, arXiv 2407.19342")
SHIRA = _tuner("SHIRA", "A few entries of the weight, at random places, are trained.", "SHiRA, arXiv 2406.13175")
ROAD = _tuner("ROAD", "Pairs of outputs are rotated and scaled.", "RoAd, arXiv 2409.00119")
DELORA = _tuner("DELORA", "A normalised low-rank product of a trained strength is added.", "arXiv 2503.18225")
