"""How Sphinx builds the site of docs/: `make docs` writes it to build/docs/, and takes every warning for an error."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

import flowstudy

project, author = "flowstudy", "The flowstudy authors"
copyright = author
version = release = flowstudy.__version__

# Pages are Markdown; the reference is made from docstrings; formulas are MathML, which browsers show without a script.
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon",
              "pages", "house_docstrings", "mathml"]
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["extensions"]
nitpicky = False
default_role = "code"                  # docstrings write code in single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "none"             # types stay in the signature; docstrings say what they mean
autodoc_mock_imports = ["lightning", "transformers"]   # what callbacks derive from need not be installed
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Source", "notes"), ("Limits", "notes")]
napoleon_attr_annotations = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_use_unqualified_type_names = True

html_theme = "pydata_sphinx_theme"
html_title = "flowstudy"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_math_renderer = "mathml"
html_sidebars = {page: [] for page in ("index", "gallery", "changelog", "reliability", "contributing")}
html_theme_options = {
    "logo": {"text": "flowstudy"},
    "navbar_persistent": ["search-button"],   # a field whose words are not its accessible name otherwise
    "navbar_end": ["theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": True,
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
