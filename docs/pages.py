"""What the site's pages have beyond their Markdown, made when the site is built.

- The comment ``<!-- facts -->`` on ``docs/methods/FAMILY/NAME.md`` becomes what the shelf says of that method.
- The comment ``<!-- table FAMILY -->`` becomes the table of a family's methods, with links to the pages that exist.
- The comment ``<!-- settings CONFIG -->`` becomes the table of a use case's settings.
- The comment ``<!-- rows FILE -->`` becomes the table of another document.
- The links of a page in `MAPS` to other pages become the site's navigation, one group for each of its sections.

So each page reads well as plain Markdown too, and nothing that the code knows is written down a second time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lorabank.core import config
from lorabank.core.methods import Method, MethodSetting, described, settings
from lorabank.core.shelf import Shelf
from lorabank.core.shelves import SHELVES, VARIANTS
from lorabank.workflows.asking.chat_config import ChatConfig

DOCS = Path(__file__).parent
ROOT = DOCS.parent
ROOT_PAGE = "docs/index"
MAPS = (ROOT_PAGE, "docs/methods", "docs/commands")
"""The pages whose links are the navigation."""
FAMILIES = {shelf.plural: shelf for shelf in SHELVES}


def read(docname: str, text: str) -> str:
    """The text of a page as the site shows it.

    Args:
        docname: Its path below the repository, without the ending.
        text: Its Markdown.
    """
    if (method := re.fullmatch(r"docs/methods/(\w+)/(.+)", docname)) and "<!-- facts -->" in text:
        family, name = method.groups()
        text = text.replace("<!-- facts -->", facts(FAMILIES[family], name))
    text = re.sub(r"<!-- table (\w+) -->", lambda found: table(FAMILIES[found[1]]), text)
    configs = {**vars(config), "ChatConfig": ChatConfig}
    text = re.sub(r"<!-- settings (\w+) -->", lambda found: _settings(settings(configs[found[1]])), text)
    text = re.sub(r"<!-- rows (\S+) -->", lambda found: rows(ROOT / found[1]), text)
    if not docname.startswith("docs/") and f"(../{docname}.md)" not in (DOCS / "index.md").read_text(encoding="utf-8"):
        return f"---\norphan: true\n---\n{text}"  # linked by other pages, and no part of the navigation
    return text + navigation(docname, text) if docname in MAPS else text


def facts(shelf: Shelf, name: str) -> str:
    """What a shelf says of one method: what it does, its paper, its settings, what it refuses."""
    entry, method = shelf.load(name), described(shelf, name)
    lines = ["| | |", "| --- | --- |", f"| in short | {_cell(_sentence(method.about or 'none'))} |"]
    lines.append(f"| paper | {_cell(method.paper or 'none')} |")
    if (rate := getattr(entry, "learning_rate", None)) is not None and shelf.kind == VARIANTS.kind:
        lines.append(f"| default of `--learning-rate` | `{rate:g}` |")
    if (weight := getattr(entry, "default_weight", None)) is not None:
        lines.append(f"| default of `--penalty-weight` | `{weight:g}` |")
    lines.append(f"| code | `{_home(entry, shelf, name)}` |")
    own = [_settings(method.settings, f"`{shelf.given.split()[0]}`"), ""] if method.settings else []
    return "\n".join([*lines, "", *own, *_refused(method)])


def table(shelf: Shelf) -> str:
    """The methods of a family."""
    rows = []
    for name in shelf.table:
        method = described(shelf, name)
        page = f"methods/{shelf.plural}/{name}.md"
        shown = f"[`{name}`]({page})" if (DOCS / page).exists() else f"`{name}`"
        settings = ", ".join(f"`{one.name}`" for one in method.settings)
        rows.append(f"| {shown} | {_cell(_sentence(method.about))} | {_cell(method.paper or '')} | {settings} |")
    refused = [f"| `{name}` | {_cell(_sentence(reason))} |" for name, reason in shelf.refused.items()]
    if refused:
        refused = ["", "Not offered:", "", "| name | reason |", "| --- | --- |", *refused]
    return "\n".join(["| name | what it does | paper | settings |", "| --- | --- | --- | --- |", *rows, *refused])


def rows(document: Path) -> str:
    """The lines of a document's table."""
    return "\n".join(line for line in document.read_text(encoding="utf-8").splitlines() if line.startswith("|"))


def navigation(docname: str, text: str) -> str:
    """A toctree for each section of a map, with the section's title; a page is in the last section that links to it.

    A map of a part of the documents, ``docs/methods.md``, has the pages of the folder of its name.
    """
    part = docname.removeprefix("docs/")
    folder = "" if docname == ROOT_PAGE else f"{part}/"
    titled = re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", text, flags=re.M)
    groups: dict[str, list[str]] = {}
    placed: set[str] = set()
    for title, section in reversed(titled):
        pages = dict.fromkeys(page for page in _pages(section) if page.startswith(folder) and page not in placed)
        groups[title] = list(pages)
        placed |= pages.keys()
    return "".join(_toctree(title, groups[title]) for title, _ in titled if groups[title])


def _pages(section: str) -> list[str]:
    """The pages of Markdown links, without ending and anchor."""
    links = re.findall(r"\]\(([^):\s#]+\.md)(?:#[^)\s]*)?\)", section)
    return [link.removesuffix(".md") for link in links]


def _toctree(title: str, pages: list[str]) -> str:
    return "\n".join(["", "", "```{toctree}", ":hidden:", f":caption: {title}", "", *pages, "```", ""])


def _settings(found: Sequence[MethodSetting], head: str = "setting") -> str:
    """A table of settings."""
    rows = [
        f"| `{one.name}` | {_cell(one.type)} | `{_default(one)}` | {', '.join(one.limits)} | {_cell(one.help)} |"
        for one in found
    ]
    return "\n".join([f"| {head} | type | default | bounds | |", "| --- | --- | --- | --- | --- |", *rows])


def _default(one: MethodSetting) -> str:
    return repr(one.default) if isinstance(one.default, str) else str(one.default).lower()


def _refused(method: Method) -> list[str]:
    if not method.refused:
        return []
    return ["It is refused with:", "", *(f"- {_cell(reason)}" for reason in method.refused), ""]


def _home(entry: object, shelf: Shelf, name: str) -> str:
    """The file of a method that lorabank brings, or the module of another package's."""
    module = shelf.table[name].partition(":")[0] if name in shelf.table else type(entry).__module__
    return f"{module.replace('.', '/')}.py" if name in shelf.table else module


def _sentence(text: str) -> str:
    return text.replace("``", "`")


def _cell(text: str) -> str:
    """Text that stays text in Markdown, in a table too."""
    return re.sub(r"([|<*_])", r"\\\1", text) if "`" not in text else text.replace("|", "\\|")
