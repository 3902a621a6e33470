"""The site: Sphinx, MyST and napoleon over the installed package; nothing is fetched while it builds."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import loopgrad  # noqa: E402

project, author, copyright = "loopgrad", "The loopgrad developers", "The loopgrad developers"
version = release = loopgrad.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_parser",
    "sphinxcontrib.bibtex",
    "mathml",
    "rendered",
    "generated",
]
exclude_patterns = ["_build"]
nitpicky = True
# what annotations and docstrings name beyond this package: its pages are not fetched, so there is nothing to link to
nitpick_ignore_regex = [("py:.*", r"(?!loopgrad\.).*"), ("py:.*", r"loopgrad(\.[a-z]\w*)+(\.\w+)?")]
default_role = "py:obj"  # `Name` links to what is documented, and is code where it is not

autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_custom_sections = [
    "Cost",
    "Not recommended when",
    "Variance",
    "Reference",
    ("Attributes", "params_style"),
]
napoleon_use_rtype = False

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
bibtex_bibfiles = ["../loopgrad/references.bib"]
bibtex_reference_style = "author_year"

html_theme = "furo"
html_title = "loopgrad"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
