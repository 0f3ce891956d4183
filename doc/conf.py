"""Configuration of the documentation build: ``sphinx-build -W doc doc/_build``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sklearn_diffuq

project = "sklearn_diffuq"
author = "the sklearn_diffuq developers"
project_copyright = f"2026, {author}"
version = release = sklearn_diffuq.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.extlinks",
    "sphinx.ext.mathjax",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "_templates"]
autosummary_generate = True
autosummary_generate_overwrite = True
# Our own bases count as part of a class; what scikit-learn adds to every estimator does not.
autodoc_default_options = {
    "members": True,
    "inherited-members": "ClassifierMixin,BaseEstimator",
    "exclude-members": "get_metadata_routing,set_fit_request,set_score_request",
}
extlinks = {"arxiv": ("https://arxiv.org/abs/%s", "arXiv:%s")}
templates_path = ["_templates"]
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
add_module_names = False

html_theme = "pydata_sphinx_theme"
html_title = f"sklearn_diffuq {version}"
html_show_sourcelink = False
html_theme_options = {"show_prev_next": False, "secondary_sidebar_items": ["page-toc"]}

# `sphinx-build -D plot_gallery=0` builds without running the examples.
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"/plot_",
    "ignore_pattern": r"/benchmarks/",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_memory": False,
}
