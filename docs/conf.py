"""The documentation as a site that needs no network.

In the root of the repository: ``sphinx-build -W -c docs . site``; then open ``site/index.html``.
"""

import sys
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))

import pages

import lorabank

project = "lorabank"
author = "The lorabank developers"
release = version = lorabank.__version__
copyright = "The lorabank developers, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
# The root of the repository is the source, so that links between its documents are links between pages.
include_patterns = ["*.md", "docs/**.md", "benchmarks/**.md", "tests/faults/results/*.md"]
exclude_patterns = ["site", "build", ".*"]
suppress_warnings = ["myst.header"]  # the changelog's releases have equal headings
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4
highlight_language = "none"
default_role = "code"
nitpicky = False

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"lorabank {release}"
html_static_path = ["theme"]
html_css_files = ["lorabank.css"]
html_extra_path = ["theme/index.html"]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}


def _read(app: Sphinx, docname: str, source: list[str]) -> None:
    source[0] = pages.read(docname, source[0])


def setup(app: Sphinx) -> None:
    """Let `pages` complete every page that is read."""
    app.connect("source-read", _read)
