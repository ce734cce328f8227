"""Sphinx's configuration: bash scripts/docs.sh builds the site in build/docs."""

import hashlib
import os
import pathlib
import sys

DOCS = pathlib.Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(DOCS), str(ROOT)]

import ldro_jax  # noqa: E402

project, author = "ldro-jax", "the authors of ldro-jax"
version = release = ldro_jax.__version__

extensions = [
    "myst_nb",
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
# A notebook is read from the Markdown that it is made of.
exclude_patterns = ["_static", "notebooks/*.ipynb"]
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

# Pages of notebooks without outputs are quickly made, and are what the tests look at.
# scripts/docs.sh executes them, and keeps what came out until they or the library change.
nb_execution_mode = "off"
_library = b"".join(path.read_bytes() for path in sorted(ROOT.glob("ldro_jax/**/*.py")))
nb_execution_cache_path = str(ROOT / "build/notebooks" / hashlib.sha256(_library).hexdigest()[:12])
nb_execution_timeout = 1200
nb_execution_raise_on_error = True
# Progress bars.
nb_output_stderr = "remove"
nb_merge_streams = True

html_theme = "furo"
html_title = f"ldro-jax {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_copyright = False
# The output of a program is no part of what is copied.
copybutton_exclude = ".linenos, .gp, .go"
