"""The frame of a page: templates that escape everything, the stylesheet, unique ids, and numbers for people."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from lorabank.components.colours import scale_rules
from lorabank.components.markup import visible


def environment(package: str, templates: str = ".") -> Environment:
    """Where a page's templates are found: those of a package, and ``frame.html.j2``, which they extend.

    Every value is escaped, and characters that cannot be seen are shown by their escapes; a name that is not defined
    is an error. Filters: ``score``, ``plain``, ``moment``, ``pairs``, ``count``.

    Args:
        package: The package that holds the templates.
        templates: Their folder in it.
    """
    found = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=ChoiceLoader([PackageLoader(package, templates), PackageLoader("lorabank.components", ".")]),
    )
    found.finalize = visible
    found.filters |= FILTERS
    return found


def stylesheet() -> str:
    """The stylesheet of every page: light and dark, print, and phone width."""
    return files("lorabank.components").joinpath("style.css").read_text(encoding="utf-8") + scale_rules() + "\n"


class Ids:
    """Ids that are unique in a page, whatever the names are that they are made of.

    Args:
        taken: Ids that the page's template gives.
    """

    def __init__(self, *taken: str) -> None:
        self._given = {"main", *taken}

    def __call__(self, name: str) -> str:
        """A new id: letters, digits and hyphens of the name, with a number behind it where it was given before."""
        stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "part"
        stem = stem if stem[0].isalpha() else f"part-{stem}"
        found, number = stem, 1
        while found in self._given:
            number += 1
            found = f"{stem}-{number}"
        self._given.add(found)
        return found


def score(value: float | None, decimals: int = 3) -> str:
    """A number, or an en dash where there is none; what is rounded to 0 has no sign."""
    return "–" if value is None or math.isnan(value) else f"{value:z.{decimals}f}"


def plain(name: str) -> str:
    """``exact match`` for ``exact_match``, and one word for several metrics."""
    return "mixed scores" if "," in name else name.replace("_", " ")


def moment(text: str) -> str:
    """A time to the minute: ``2030-01-02 03:04 UTC``; another text as it is."""
    found = re.match(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)\S*(Z|\+00:00)$", text)
    return f"{found[1]} {found[2]} UTC" if found else text


def pairs(values: Mapping[str, Any]) -> str:
    """``a = 1, b = 2``."""
    return ", ".join(
        f"{key} = {value:g}" if type(value) is float else f"{key} = {value}" for key, value in values.items()
    )


def count(number: int, noun: str) -> str:
    """``1 task``, ``2 tasks``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


FILTERS: dict[str, Any] = {"score": score, "plain": plain, "moment": moment, "pairs": pairs, "count": count}
