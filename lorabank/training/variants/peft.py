"""PEFT's own tuners as variants: PEFT makes the layers, lorabank's trainer trains them.

What comes of it has no factors and is kept as PEFT saves it, so such a task answers alone: with its own adapter, or
where a router sends a text to it. The settings are the fields of PEFT's config, with PEFT's help.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from lorabank.core.commands import Command
from lorabank.core.config import TrainConfig
from lorabank.core.errors import ConfigError
from lorabank.core.limits import MAX_RANK
from lorabank.core.methods import values_of
from lorabank.core.settings import setting
from lorabank.models.tuners.library import UnfitError, put_on, setting_fields, trained_numbers
from lorabank.training.variants.alone import AloneVariant, Tuned

if TYPE_CHECKING:
    from lorabank.models.bases.sites import Site
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart

_OF_FACTORS = ("r", "lora_alpha", "use_rslora")
"""Settings of a training that say something of A and B alone."""
_BOUNDS: dict[str, Any] = {"r": {"le": MAX_RANK}}
"""Of fields, which PEFT itself does not bound."""


@dataclass(frozen=True)
class Tuner(AloneVariant):
    """A tuner of PEFT.

    Attributes:
        kind: Its ``PeftType``.
        about: What it makes of a weight.
    """

    kind: ClassVar[str] = ""
    about: ClassVar[str] = ""
    draws: ClassVar[bool] = True
    floats: ClassVar[bool] = True
    why: ClassVar[str] = "PEFT trains no A and B here"
    no_penalty: ClassVar[str] = "a penalty is about A and B, which PEFT's tuner does not train"
    whole: ClassVar[str] = "PEFT's layers need every pass whole"

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
        return super().unfit(config)

    def refusal(self, site: Site, r: int, number: int) -> ConfigError | None:
        """Only linear layers are adapted, and PEFT says which settings fit their shape."""
        if type(site.module) is not nn.Linear or site.rows is not None:
            fused = site.rows is not None
            kind = "a part of a fused matrix" if fused else f"of the class {type(site.module).__name__}"
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
            f"every strategy but isolated: {self.why}, so the task answers alone",
            "every penalty and every start: both are about A and B",
            "savings of a part of each step, a shared head, and all modules but linear layers in floats",
        )

    def parameters(self, d_out: int, d_in: int, r: int) -> int:
        """As many as PEFT trains."""
        return trained_numbers(self.kind, tuple(values_of(self).items()), d_out, d_in)

    def _unfit(self, said: str) -> ConfigError:
        return ConfigError(
            f"PEFT refuses the settings of variant {self.name!r}: {said}",
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
