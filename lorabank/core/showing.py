"""What a prompt and a notebook show of a record or a result: a line, a table (its text is escaped), a data frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from lorabank.core.escaping import safe

C = TypeVar("C", bound=type)

_MOST = 5
"""Items of a collection."""

_LONGEST = 60
"""Characters of a text."""


def shown(*names: str) -> Callable[[C], C]:
    """Give a class a short ``repr`` and a ``_repr_html_`` of these attributes; what it defines itself stays."""

    def give(shown_class: C) -> C:
        def line(self: Any) -> str:
            facts = ", ".join(f"{name}={brief(getattr(self, name))}" for name in names)
            return f"{type(self).__name__}({facts})"

        def html(self: Any) -> str:
            rows = [(name, brief(getattr(self, name))) for name in names]
            return table(type(self).__name__, (), rows)

        setattr(shown_class, "__repr__", line)  # noqa: B010, the class is any class
        if "_repr_html_" not in vars(shown_class):
            setattr(shown_class, "_repr_html_", html)  # noqa: B010
        return shown_class

    return give


def brief(value: object) -> str:
    """A value in a few words: of a record its name, of a collection the first items, of a text its beginning."""
    if isinstance(value, str):
        return repr(value if len(value) <= _LONGEST else f"{value[: _LONGEST - 3]}...")
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        items = [f"{brief(key)}: {brief(item)}" for key, item in list(value.items())[:_MOST]]
        return "{" + _listed(items, len(value)) + "}"
    if isinstance(name := getattr(value, "name", None), str):
        return brief(name)
    if isinstance(value, Sequence) and not hasattr(value, "_fields"):
        return "[" + _listed([brief(item) for item in value[:_MOST]], len(value)) + "]"
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table; the first cell of a row names it."""
    top = "".join(f"<th>{_plain(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr><th>{_plain(first)}</th>{''.join(f'<td>{_plain(cell)}</td>' for cell in rest)}</tr>"
        for first, *rest in rows
    )
    return f"<table><caption>{_plain(title)}</caption>{f'<tr>{top}</tr>' if head else ''}{body}</table>"


def data_frame(columns: Mapping[str, Sequence[Any]], index: Sequence[str] | None = None, name: str = "") -> Any:
    """A ``pandas.DataFrame``.

    Args:
        columns: Name to values, as many in each.
        index: What names the rows; None for their numbers.
        name: What the index is.

    Raises:
        MissingExtraError: pandas is not installed.
    """
    from importlib import import_module  # `lorabank list` imports the records, and makes no data frame

    from lorabank.core.errors import MissingExtraError
    from lorabank.core.machine.packages import install

    try:
        pandas = import_module("pandas")
    except ImportError as error:
        raise MissingExtraError(
            "a data frame needs the package pandas, which is not installed",
            hint=install("pandas"),
            unchanged="nothing was changed",
        ) from error
    rows = None if index is None else pandas.Index(list(index), name=name)
    return pandas.DataFrame({column: list(values) for column, values in columns.items()}, index=rows)


def _listed(items: Sequence[str], count: int) -> str:
    return ", ".join([*items, *(["..."] if count > len(items) else [])])


def _plain(text: str) -> str:
    from html import escape  # `lorabank list` imports the records, and shows none of them as HTML

    return escape(safe(text))
