"""How Sphinx builds the site: `make docs`. Its pages are the repository's Markdown files, and those of tools/reference.py."""

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import reference  # noqa: E402

import legion_p2p  # noqa: E402

project = "legion_p2p"
author = "the legion_p2p contributors"
version = release = legion_p2p.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "docs/reference/index"
include_patterns = ["*.md", "docs/*.md", "docs/**/*.md", "deploy/README.md", "tests/README.md"]
exclude_patterns = ["legion-out", "build", ".venv", ".github"]
source_suffix = {".md": "markdown"}

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # those of torch are written for another reader, in another markup
python_use_unqualified_type_names = True
default_role = "code"

html_theme = "furo"
html_title = f"legion_p2p {version}"
html_show_copyright = False
html_copy_source = False
html_show_sphinx = False


def setup(app: Any) -> None:
    """Write the generated pages before the sources are read, and let autodoc read docstrings as the plain text that they are."""
    reference.write(ROOT / "docs" / "reference")
    app.connect("autodoc-process-docstring", reference.plain_text)
    app.connect("autodoc-process-signature", reference.struct_signature)
    app.connect("source-read", reference.unlink_folders)
