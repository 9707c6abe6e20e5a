"""Sphinx: the site is made of the Markdown files where they lie, and of two pages that are generated from the code.

`make docs`. The source folder is the repository itself, so that a page's links are right on the forge and on the site alike.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from pygments.lexers.special import TextLexer

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

import reference  # noqa: E402

from sf_fixpo import __version__  # noqa: E402

project = "sf_fixpo"
author = "sf_fixpo authors"
version = release = __version__
project_copyright = "sf_fixpo authors, MIT licence"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = [
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "docs/generated/*.md",
    "docker/README.md", "envs/dmlab/README.md", "launcher/README.md",
]  # fmt: skip
exclude_patterns = [".*", "build", "dist", "sf_fixpo", "tests", "benchmarks", "train_dir", "wandb"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
html_math_renderer = "mathml"

html_theme = "furo"
html_title = f"sf_fixpo {__version__}"
html_copy_source = False
html_additional_pages = {"index": "to_docs.html"}
templates_path = [str(HERE / "templates")]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
smartquotes = False  # two dashes are a flag


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="equation">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Equations as MathML, which browsers draw without a script from elsewhere; Mermaid's text as it stands; generated pages."""
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    app.add_lexer("mermaid", TextLexer)
    app.connect("builder-inited", lambda app: reference.write(ROOT / "docs" / "generated"))
