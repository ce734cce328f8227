"""Sphinx's configuration: bash scripts/docs.sh builds the site in build/docs."""

import os
import pathlib
import sys

sys.path[:0] = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parents[1])]

import ldro_jax  # noqa: E402

project, author = "ldro-jax", "the authors of ldro-jax"
version = release = ldro_jax.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "_links",
    "_mathml",
    "_methods",
    "_reference",
]
# Where links to files that are no page of the site lead.
repository = os.environ.get("LDRO_JAX_REPOSITORY", "https://github.com/ldro-jax/ldro_jax")
exclude_patterns = ["_static"]
nitpicky = True
# What stands between single backticks is code in docstrings.
default_role = "code"

autodoc_member_order = "bysource"
napoleon_use_ivar = True
# Signatures have the types.
napoleon_attr_annotations = False
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"
myst_heading_anchors = 6

html_theme = "furo"
html_title = f"ldro-jax {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_copyright = False
# The output of a program is no part of what is copied.
copybutton_exclude = ".linenos, .gp, .go"
