"""How the site is made of these pages: `make docs` builds it into build/site, and takes every warning for an error."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_extensions")]

from leace_fast import __version__  # noqa: E402

project = "leace-fast"
author = "the leace-fast developers"
project_copyright = author
version = release = __version__

# Where links to files of the repository outside docs/ lead to; see _extensions/repository_links.py.
repository_url = "https://github.com/leace-fast/leace-fast/blob/main"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "command_line",
    "public_names",
    "repository_links",
    "our_docstrings",
]
exclude_patterns = ["_extensions"]
# The modules whose `__all__` is public: a name that no page documents fails the build.
public_modules = [
    "leace_fast",
    "leace_fast.methods",
    "leace_fast.sklearn",
    "leace_fast.data",
    "leace_fast.concept_erasure",
]

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
copybutton_prompt_text = ">>> |\\.\\.\\. |\\$ "
copybutton_prompt_is_regexp = True

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_attr_annotations = True
napoleon_custom_sections = ["Source", "Guarantees"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "inherited-members": True}
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True

# Types of other packages, whose pages a build without a network cannot ask. Ours must resolve.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|numpy|sklearn|huggingface_hub|collections|pathlib|os|typing)\..*"),
    ("py:exc", "NotFittedError"),  # of scikit-learn
    ("py:class", "PreTrainedTokenizerBase"),  # of transformers
]

html_theme = "furo"
html_title = f"leace-fast {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "source_repository": "https://github.com/leace-fast/leace-fast",
    "source_branch": "main",
    "source_directory": "docs/",
}
