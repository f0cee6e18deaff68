"""The stylesheet and what it is for: each class has a rule, and each rule and colour has what uses it."""

from __future__ import annotations

import re
from pathlib import Path

import lorabank
from lorabank.components.frame import stylesheet

PACKAGE = Path(lorabank.__file__).parent
PAGE = PACKAGE / "page"
CSS = stylesheet() + (PAGE / "static" / "page.css").read_text(encoding="utf-8")
OF_OTHERS = {"htmx-request"}
"""What htmx gives to a form whose answer is awaited."""


def made() -> str:
    """All that makes pages and pictures."""
    folders = (PAGE, PACKAGE / "components", PACKAGE / "evaluation" / "reporting")
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.suffix in (".j2", ".py")]
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


def ruled() -> set[str]:
    """Classes that the stylesheet has rules for."""
    selectors = re.findall(r"([^{}]+)\{", re.sub(r"/\*.*?\*/", "", CSS, flags=re.S))
    return {name for one in selectors for name in re.findall(r"\.([a-z][\w-]*)", one)}


def test_every_class_of_a_template_has_a_rule() -> None:
    given = {name for words in re.findall(r'class="([^"{]+)"', made()) for name in words.split()}
    assert given <= ruled()


def test_every_rule_is_for_something() -> None:
    text = made()
    plain = {name for name in ruled() if not re.fullmatch(r"(s|v|dash)\d+", name)} - OF_OTHERS
    assert [name for name in sorted(plain) if not re.search(rf"[\"' ]{name}[\"' ]", text)] == []


def test_every_colour_is_used() -> None:
    defined = set(re.findall(r"--([\w-]+):", CSS))
    assert defined == set(re.findall(r"var\(--([\w-]+)\)", CSS))
