"""How the documentation site is built: `nox -s docs`, or `sphinx-build -W --keep-going -n docs build/docs`."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "omni"
author = "the authors of omni"
copyright = author  # Sphinx calls it so
version = release = version_of("omni-core")

extensions = ["myst_parser", "generated_pages"]
root_doc = "index"
exclude_patterns = ["_ext", "diagrams"]
# Headings down to this level can be linked to, as on GitHub.
myst_heading_anchors = 4

html_theme = "furo"
html_title = f"omni {release}"
html_show_sphinx = False
html_show_copyright = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
