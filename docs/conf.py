"""How Sphinx builds the site: ``bash scripts/docs.sh``. Its sources are Markdown pages that read as well on a forge."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_extensions")]

import prune_lab  # noqa: E402  # of this checkout

project = "prune_lab"
author = "The prune_lab authors"
copyright = "the prune_lab authors, Apache License 2.0"  # Sphinx asks for a variable of this name
version = release = prune_lab.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "configuration", "mathml"]
root_doc = "docs/index"
# The top of the checkout is the source, so that a link from docs/ to results/ is the same here and on a forge.
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/*.md",
    "docs/methods/*.md",
    "prune_lab/reference/README.md",
    "results/bench/*.md",
    "results/tables/*.md",
]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
smartquotes = False  # settings and shell commands are copied from the pages
suppress_warnings = ["myst.header"]  # what bench_oneshot.py --all writes begins with a table, and has no title
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
default_role = "py:obj"  # in docstrings a name in single backquotes is an object
napoleon_google_docstring = True
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"prune_lab {release}"
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False
templates_path = ["_templates"]
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_additional_pages = {"index": "to_start.html"}
