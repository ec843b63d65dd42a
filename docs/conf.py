"""Sphinx: four kinds of documentation, after Diátaxis; the reference from the docstrings."""

from __future__ import annotations

from sphinx.application import Sphinx

import tornadose

project = "Tornadose"
author = "The Tornadose authors"
release = tornadose.__version__
version = ".".join(release.split(".")[:2])

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {
    "description": "Publish/subscribe for Tornado",
    "fixed_sidebar": True,
    "page_width": "60rem",
}
html_show_copyright = False

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = True
autodoc_type_aliases = {name: f"tornadose.{name}" for name in ("GapReason", "Policy", "Released")}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Source", "notes_style")]

nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(.*\.)?(T|T_co|T_contra|P)"),  # type variables
    (r"py:obj", r"[a-z_]+"),  # arguments and methods in the docstrings of something else
    (r"py:obj", r"Options"),
    (r"py:exc", r"ConnectionClosed"),  # of tornado.iostream
    (r"py:.*", r"(_?asyncio|collections|collections\.abc|contextlib|typing)\..*"),
    (r"py:.*", r"(tornado|redis)\..*"),
]


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-signature", without_a_constructor)


def without_a_constructor(
    app: Sphinx, what: str, name: str, obj: object, *_: object
) -> tuple[str, None] | None:
    """Show no constructor of what is never built: protocols."""
    return ("", None) if what == "class" and getattr(obj, "_is_protocol", False) else None
