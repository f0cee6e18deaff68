"""What any page must be: tags that match, ids that are unique, headings in order, and nothing from elsewhere."""

from __future__ import annotations

from html.parser import HTMLParser
from itertools import pairwise

VOID = {"meta", "br", "img", "link", "hr", "input"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and fails on tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())

    def all(self, name: str) -> list[dict[str, str | None]]:
        """The attributes of every element of a name."""
        return [attributes for tag, attributes in self.tags if tag == name]

    def classes(self, name: str) -> list[str | None]:
        """The classes of every element of a name."""
        return [attributes.get("class") for attributes in self.all(name)]


def assert_well_made(html: str) -> Page:
    """A whole page that stands by itself."""
    page = Page(html)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    levels = [int(tag[1]) for tag, _ in page.tags if tag in {"h1", "h2", "h3", "h4", "h5", "h6"}]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for landmark in ("header", "nav", "main"):
        assert len(page.all(landmark)) == 1
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "img", "image", "iframe", "object", "embed", "base"}
        for name, value in attributes.items():
            assert name not in {"src", "srcset", "action", "data", "style"}
            assert not name.startswith("on")
            if name in {"href", "xlink:href"}:
                assert (value or "").startswith("#")
                assert (value or "")[1:] in ids
    for svg in page.all("svg"):
        assert svg.get("aria-hidden") == "true" or (svg.get("role") == "img" and svg.get("aria-label"))
    return page
