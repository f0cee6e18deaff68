"""Elements of HTML and SVG from plain values: every text in them is escaped, and what cannot be seen is shown."""

from __future__ import annotations

import re
from typing import Any

from markupsafe import Markup, escape

from lorabank.core.escaping import safe


def element(name: str, *children: object, **attributes: object) -> Markup:
    """An element.

    Args:
        name: Its tag.
        children: Markup is put in as it is, anything else as escaped text; None is left out.
        attributes: ``class_`` is written ``class``, and ``_`` inside a name ``-``. Numbers lose needless decimals; an
            attribute that is None is left out.
    """
    inside = Markup("").join(text(child) for child in children if child is not None)
    written = Markup("").join(
        Markup(' {}="{}"').format(Markup(key.rstrip("_").replace("_", "-")), _value(value))
        for key, value in attributes.items()
        if value is not None
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), written, inside)


def text(value: object) -> Markup:
    """A value as text of a page; markup stays as it is."""
    return value if isinstance(value, Markup) else escape(visible(str(value)))


def visible(value: Any) -> Any:
    """Show the characters of a text that cannot be seen by their escapes; tabs, line ends and other values stay."""
    return re.sub(r"[^\t\n]+", lambda found: safe(found[0]), value) if type(value) is str else value


def figure(*parts: object, caption: str, kind: str) -> Markup:
    """A picture under its caption.

    Args:
        parts: The picture and what stands below it.
        caption: What it shows.
        kind: Class of the stylesheet.
    """
    return element("figure", element("figcaption", caption), *parts, class_=kind)


def fold(summary: str, *parts: object) -> Markup:
    """Parts that are opened by their summary."""
    return element("details", element("summary", summary), *parts)


def table(caption: object, head: object, rows: object, *, kind: str | None = None) -> Markup:
    """A table that scrolls by itself where the page is too narrow, and can be reached by keyboard to do so.

    Args:
        caption: What it shows.
        head: The cells of its first row.
        rows: Its other rows, as markup.
        kind: Classes of the stylesheet.
    """
    whole = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", head)),
        element("tbody", rows),
        class_=kind,
    )
    return element("div", whole, class_="scroll", tabindex="0", role="group", aria_label=caption)


def head_cell(name: object, *, numeric: bool = False, title: str | None = None) -> Markup:
    """The head of a column; ``title`` is its tooltip."""
    inside = name if title is None else element("abbr", name, title=title)
    return element("th", inside, scope="col", class_="n" if numeric else None)


def row_head(name: object) -> Markup:
    """The head of a row."""
    return element("th", name, scope="row")


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(visible(str(value)))
