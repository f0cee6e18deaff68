"""What callers hand to the functions of ``lorabank.api``: each argument fits the type that the signature names.

The signature is the one source: a function that is ``checked`` needs no check of its own, and no value of a wrong type
reaches the work, where it would end as an error about something else.
"""

from __future__ import annotations

import inspect
import math
import numbers
import os
import types
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import cache, update_wrapper, wraps
from io import BufferedIOBase
from pathlib import Path
from typing import (
    Any,
    Concatenate,
    Literal,
    NoReturn,
    ParamSpec,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from lorabank.core.config import (
    AdviseConfig,
    ComposeConfig,
    EvalConfig,
    FoldConfig,
    GenerateConfig,
    InitConfig,
    LoralibConfig,
    PredictConfig,
    TrainConfig,
)
from lorabank.core.errors import ConfigError
from lorabank.core.observer import Listener, Observer
from lorabank.core.settings import validate

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_CONFIGS: dict[Any, str] = {
    InitConfig: 'InitConfig(base="FOLDER")',
    LoralibConfig: "LoralibConfig(alpha=16)",
    TrainConfig: 'TrainConfig(data="rows.jsonl")',
    ComposeConfig: 'ComposeConfig(mode="routed")',
    FoldConfig: "FoldConfig(max_rank=8)",
    AdviseConfig: "AdviseConfig(minutes=5)",
    EvalConfig: "EvalConfig(all=True)",
    PredictConfig: 'PredictConfig(task="spam")',
    GenerateConfig: 'GenerateConfig(task="summaries")',
}
"""An example of each class of settings; of another one it is the class without values."""

_PLAIN: dict[Any, tuple[str, str]] = {
    str: ("a string", '"a text"'),
    Path: ("a path", '"bank"'),
    bool: ("True or False", "True"),
    int: ("a whole number", "1"),
    float: ("a finite number", "0.5"),
    Observer: ("an Observer", "SilentObserver()"),
    Listener: ("a function of one result", "print"),
    BufferedIOBase: ("an open binary file", "open(FILE, 'rb')"),
    type(None): ("None", "None"),
}
"""Other types: how a message calls one, and an example."""


_CHECKED: dict[tuple[type, str], Any] = {}
_MOST_CHECKED = 64


class _Unfit(Exception):
    """A value that does not fit; ``place`` is where in the argument it stands: ``[2]``."""

    def __init__(self, value: Any, place: str = "") -> None:
        self.value = value
        self.place = place


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function refuse arguments that do not fit its signature; settings are checked to the last value.

    Raises:
        ConfigError: When it is called: naming the argument, what was given and what is wanted.
    """
    signature = inspect.signature(function)
    name_of = function.__qualname__ if "self" in signature.parameters else f"api.{function.__name__}"

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # Python's own message also names the function
        for name, wanted in parameter_types(function).items():
            if name not in bound.arguments:
                continue
            try:
                bound.arguments[name] = _fitted(bound.arguments[name], wanted)
            except _Unfit as error:
                _refuse(name_of, name, error, wanted)
        return function(*bound.args, **bound.kwargs)

    return call


def by_path(
    opens: Callable[[str | Path], T], method: Callable[Concatenate[T, P], R]
) -> Callable[Concatenate[str | Path, P], R]:
    """A method as a function of `lorabank.api`: what it belongs to is opened at ``path`` for this one call.

    Args:
        opens: Makes the object of a path.
        method: Has the function's name, signature and docstring.
    """

    def call(path: str | Path, *args: P.args, **kwargs: P.kwargs) -> R:
        return method(opens(path), *args, **kwargs)

    update_wrapper(call, method)
    (own, *others), wrapped = inspect.signature(method).parameters.values(), cast("Any", call)
    path = own.replace(name="path", annotation="str | Path")
    wrapped.__signature__ = inspect.signature(method).replace(parameters=[path, *others])
    wrapped.__annotations__ = {"path": "str | Path", **inspect.get_annotations(method)}
    wrapped.__module__, wrapped.__qualname__ = "lorabank.api", method.__name__
    return cast("Callable[Concatenate[str | Path, P], R]", checked(call))


def texts_in_settings(function: Callable[P, R]) -> Callable[P, R]:
    """Take ``function(path, PredictConfig(texts=...))`` too, with a warning: texts are an argument of their own."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        config = args[1] if len(args) == 2 else kwargs.get("config")
        texts = getattr(config, "given_texts", None)
        if texts is None or "texts" in kwargs:
            return function(*args, **kwargs)
        better = f"api.{function.__name__}(path, texts, config)"
        warnings.warn(f"texts are not a setting of {type(config).__name__}: call {better}", DeprecationWarning, 2)
        moved: dict[str, Any] = {**kwargs, "texts": texts, "config": config}
        return cast("Callable[..., R]", function)(*args[:1], **moved)

    return call


@cache
def parameter_types(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of a function's parameters; what it returns may be a name that only type checkers import."""
    annotations = {name: hint for name, hint in inspect.get_annotations(function).items() if name != "return"}
    holder: Any = types.SimpleNamespace(__annotations__=annotations)
    return get_type_hints(holder, globalns=cast("Any", inspect.unwrap(function)).__globals__)


def _fitted(value: Any, hint: Any) -> Any:
    """The value as the function may take it: a sequence as a tuple, a number of NumPy's as Python's own."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        fitted = _first_fitting(value, inner)
        return fitted if Path not in inner or fitted is None or _can_be_path(fitted) else _unfit(value)
    if origin is Literal:
        fits = isinstance(value, str) and value in inner
    elif origin is tuple:
        fits = isinstance(value, tuple | list) and len(value) == len(inner)
        return tuple(_items(value, inner)) if fits else _unfit(value)
    elif origin in (Sequence, Iterable):
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
            raise _Unfit(value)
        return tuple(_items(value, inner))
    elif _are_settings(hint):
        return _checked_settings(value) if isinstance(value, hint) else _unfit(value)
    elif hint is int:
        fits = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        return int(value) if fits else _unfit(value)
    elif hint is float:
        fits = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
        return float(value) if fits else _unfit(value)
    elif hint is Path:
        fits = isinstance(value, os.PathLike)
    else:
        fits = isinstance(value, hint) and not isinstance(value, type)
    return value if fits else _unfit(value)


def _checked_settings(config: Any) -> Any:
    """Settings with every value checked; a session asks again and again with the same ones.

    Their text is what is compared: in it ``True`` and ``1`` are two things.
    """
    key = (type(config), repr(config))
    if key not in _CHECKED:
        if len(_CHECKED) == _MOST_CHECKED:
            _CHECKED.clear()
        _CHECKED[key] = validate(type(config), asdict(config))
    return _CHECKED[key]


def _are_settings(hint: Any) -> bool:
    """Whether a type is a class of settings, whose values are checked too."""
    return is_dataclass(hint) and any("help" in field.metadata for field in fields(hint))


def _can_be_path(value: str | os.PathLike[str]) -> bool:
    """Whether the system could hold a file of this name: a NUL character or a lone surrogate is in none."""
    try:
        return b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def _unfit(value: Any) -> NoReturn:
    raise _Unfit(value)


def _items(values: Iterable[Any], hints: Sequence[Any]) -> Iterable[Any]:
    """The items, each fitted to its own type, or all to the only one."""
    for place, item in enumerate(values):
        try:
            yield _fitted(item, hints[place] if len(hints) > 1 else hints[0])
        except _Unfit as error:
            raise _Unfit(error.value, f"[{place}]{error.place}") from None


def _first_fitting(value: Any, hints: Sequence[Any]) -> Any:
    """The value as the first of several types that takes it; where none does, the one that got furthest says why."""
    found = _Unfit(value)
    for hint in hints:
        try:
            return _fitted(value, hint)
        except _Unfit as error:
            found = max(found, error, key=lambda one: len(one.place))
    raise found


def _refuse(function: str, name: str, error: _Unfit, hint: Any) -> NoReturn:
    known, example = _described(hint)
    wanted = _described(_inner(hint))[0] if error.place else known
    raise ConfigError(
        f"{function}: {name}{error.place} is {_shown(error.value)}, not {wanted}",
        hint=f"for example {function}(..., {name}={example})",
        unchanged="nothing was changed",
    )


def _inner(hint: Any) -> Any:
    """What the items of a sequence are."""
    if get_origin(hint) in (Union, types.UnionType):
        return next(_inner(one) for one in get_args(hint) if get_args(one))
    return get_args(hint)[0]


def _described(hint: Any) -> tuple[str, str]:
    """How a message calls a type, and an example of it."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        each = [_described(one) for one in inner if one is not type(None)]
        names = ["a path"] if {*inner} >= {str, Path} else [name for name, _ in each]
        return " or ".join([*names, *(["None"] if type(None) in inner else [])]), each[-1][1]
    if origin is Literal:
        return " or ".join(map(repr, inner)), repr(inner[0])
    if origin is tuple:
        examples = [_described(one)[1] for one in inner]
        return f"a tuple of {len(inner)} values", f"({', '.join(examples)})"
    if origin in (Sequence, Iterable):
        name, example = _described(inner[0])
        return f"a list of {name.removeprefix('a ')}s", f"[{example}, ...]"
    if _are_settings(hint):
        return f"a {hint.__name__}", _CONFIGS.get(hint, f"{hint.__name__}()")
    return _PLAIN.get(hint) or (f"a {hint.__name__}", f"a {hint.__name__}")


def _shown(value: Any) -> str:
    """A value for a message: its type, and for plain ones what it is."""
    kind = type(value).__name__
    if isinstance(value, type):
        return f"the class {value.__name__}"
    plain = value is None or isinstance(value, str | bytes | numbers.Number)
    return "None" if value is None else f"the {kind} {value!r:.80}" if plain else f"a {kind}"
