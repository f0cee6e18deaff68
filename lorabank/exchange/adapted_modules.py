r"""Which modules a stranger's config asks for, and with which settings, by PEFT's own rules.

The tensors say what is adapted; the config must not contradict them. So its fields are evaluated on the base's module
names as PEFT evaluates them (``check_target_module_exists`` and ``get_pattern_key``), expressions within a bound
(`lorabank.exchange.expressions`). Where an expression is not taken, the tensors alone decide, with a notice; only a
scaling cannot be had from tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lorabank.exchange.config_fields import is_name, names, refuse_field
from lorabank.exchange.expressions import Expression, Unreadable

_WEIGHT = ".weight"
_FIRST_NUMBER = re.compile(r".*?\.[^.]*\.(\d+)\.")
_EXPRESSIONS = 64
"""Most keys of a pattern that are expressions, not plain names."""


@dataclass(frozen=True)
class Targets:
    """What a config says of the modules that are adapted.

    Attributes:
        modules: Endings of names, an expression, or None for every linear layer.
        parameters: Endings of names of weights, without the ``.weight``.
        excluded: As ``modules``.
        layers: Numbers of the layers that are adapted, None for all.
        stacks: Names before a layer's number; empty for any.
        unread: Fields that are not evaluated, with the reason.
        experts: Endings of names of other parameters, which hold the matrices of several experts.
    """

    modules: frozenset[str] | Expression | None
    parameters: frozenset[str] = frozenset()
    excluded: frozenset[str] | Expression = frozenset()
    layers: frozenset[int] | None = None
    stacks: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    experts: frozenset[str] = frozenset()

    def has_experts(self, parameter: str) -> bool:
        """Whether a parameter is named that holds the matrices of several experts."""
        return bool(self.experts) and not self.experts.isdisjoint(_endings(parameter))

    def wraps(self, module: str) -> bool:
        """Whether a module holds such parameters, by the name that PEFT gives its factors."""
        stem = module.split(".base_layer")[0]
        return any(f".{stem}".endswith(f".{name.rpartition('.')[0]}") for name in self.experts)

    def among(self, linear: Iterable[str]) -> set[str]:
        """The modules that are asked for.

        Args:
            linear: Full names of the base's linear layers outside its head.

        Raises:
            Unreadable: The config cannot say.
        """
        if self.unread:
            raise Unreadable("; ".join(self.unread))
        return {module for module in linear if self._asks(module)}

    def _asks(self, module: str) -> bool:
        if self.as_parameter(module):
            return True
        if _fits(self.excluded, module):
            return False
        if self.modules is None:
            return True
        if isinstance(self.modules, Expression) or module in self.modules or self.layers is None:
            return _fits(self.modules, module)
        return _fits(self.modules, module) and self._layer_of(module) in self.layers

    def as_parameter(self, module: str) -> bool:
        """Whether a module is named by its weight."""
        return bool(self.parameters) and not self.parameters.isdisjoint(_endings(module))

    def _layer_of(self, module: str) -> int | None:
        if not self.stacks:
            found = _FIRST_NUMBER.match(module)
            return int(found[1]) if found else None
        for stack in self.stacks:
            if found := re.search(rf"(?:^|\.){re.escape(stack)}\.(\d+)\.", module):
                return int(found[1])
        return None


def read_targets(fields: Mapping[str, Any]) -> Targets:
    """The fields that say which modules are adapted.

    Raises:
        DataError: One of them has a form that PEFT does not know.
    """
    unread: list[str] = []
    modules = _modules(fields, "target_modules", unread)
    named = names(fields, "target_parameters")
    parameters = frozenset(name.removesuffix(_WEIGHT) for name in named if name.endswith(_WEIGHT))
    experts = frozenset(name for name in named if not name.endswith(_WEIGHT))
    if any("." not in name for name in experts):
        refuse_field(fields, "target_parameters", "names parameters without their modules")
    if modules == frozenset() and not named and not unread:
        refuse_field(fields, "target_modules", "names no module")
    excluded = _modules(fields, "exclude_modules", unread)
    return Targets(
        modules, parameters, excluded or frozenset(), _layers(fields), _stacks(fields, unread), tuple(unread), experts
    )


def _modules(fields: Mapping[str, Any], field: str, unread: list[str]) -> frozenset[str] | Expression | None:
    value = fields.get(field)
    if not isinstance(value, str):
        return frozenset(names(fields, field))
    if value.lower() == "all-linear" and field == "target_modules":
        return None
    try:
        return Expression(value)
    except Unreadable as error:
        unread.append(f"{field} ({error})")
        return frozenset()


def _layers(fields: Mapping[str, Any]) -> frozenset[int] | None:
    value = fields.get("layers_to_transform")
    numbers = [value] if type(value) is int else value
    if numbers in (None, []):
        return None
    if not isinstance(numbers, list) or not all(type(number) is int and number >= 0 for number in numbers):
        refuse_field(fields, "layers_to_transform", "is neither the number of a layer nor a list of such numbers")
    return frozenset(numbers)


def _stacks(fields: Mapping[str, Any], unread: list[str]) -> tuple[str, ...]:
    value = fields.get("layers_pattern")
    stacks = [value] if isinstance(value, str) and value else value or []
    if not isinstance(stacks, list) or not all(isinstance(stack, str) for stack in stacks):
        refuse_field(fields, "layers_pattern", "is neither a name nor a list of names")
    if not all(is_name(stack) for stack in stacks):
        unread.append("layers_pattern (an expression)")
    return tuple(stacks)


class Pattern:
    """``rank_pattern`` or ``alpha_pattern``: the first key that a module's name ends in counts.

    Args:
        values: Key to value, already judged.

    Raises:
        Unreadable: A key is an expression that is not taken, or there are too many of them.
    """

    def __init__(self, values: Mapping[str, float]) -> None:
        self._keys = [(key if is_name(key) else Expression(key), value) for key, value in values.items()]
        if sum(isinstance(key, Expression) for key, _ in self._keys) > _EXPRESSIONS:
            raise Unreadable(f"more than {_EXPRESSIONS} expressions")

    def value(self, name: str, default: float) -> float:
        """The value for a module, or the default.

        Raises:
            Unreadable: An expression takes too long.
        """
        endings = _endings(name)
        for key, value in self._keys:
            if key.ends(name) if isinstance(key, Expression) else key in endings:
                return value
        return default


def _fits(wanted: frozenset[str] | Expression, module: str) -> bool:
    if isinstance(wanted, Expression):
        return wanted.matches(module)
    return not wanted.isdisjoint(_endings(module))


def _endings(name: str) -> set[str]:
    """A name and what follows each of its dots."""
    parts = name.split(".")
    return {".".join(parts[start:]) for start in range(len(parts))}
