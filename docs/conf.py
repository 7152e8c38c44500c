"""The documentation as a site: `make docs` writes it to build/site, every warning an error.

The pages are Markdown that reads as well in a checkout; this adds what is generated: the commands
from click, the Python interface from docstrings.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from sphinx.util import logging

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "Trilobit"
author = "The Trilobit authors"
release = metadata.version("trilobit")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3  # as a forge makes them, for links into pages
highlight_language = "text"
default_role = "code"  # docstrings are written with single backquotes

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = "Trilobit"
html_static_path = ["web"]
if (_COMPILED := Path(__file__).parents[1] / "build/web").exists():  # by `make docs`
    html_static_path.append(str(_COMPILED))
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False

_OUTSIDE = re.compile(r"\]\(\.\./([^)#]+)")


def _link_sources(app: Sphinx, page: str, text: list[str]) -> None:
    """Lead links that leave this folder to where the sources are published, if there are such."""
    for path in _OUTSIDE.findall(text[0]):
        if not (Path(app.srcdir).parent / path).exists():
            logging.getLogger(__name__).warning(
                "link to ../%s, which is not there", path, location=page
            )
    urls = dict(
        line.split(", ", 1) for line in metadata.metadata("trilobit").get_all("Project-URL") or []
    )
    text[0] = _OUTSIDE.sub(rf"]({urls['Source']}/blob/main/\1", text[0])


_ABOUT = re.compile(r"([a-z_]+(?:, [a-z_]+)*): (\S.*)")


def _list_arguments(
    app: Sphinx, what: str, name: str, it: object, options: object, lines: list[str]
) -> None:
    """Make a list of what a docstring says of its arguments, `name: …` at the start of a line."""
    told: list[str] = []
    for line in lines:
        about = _ABOUT.fullmatch(line)
        if told and not line.startswith(" ") and (about or _begins_argument(told[-1])):
            told.append("")
        told.append(f":{about[1]}: {about[2]}" if about else line)
    lines[:] = told


def _begins_argument(line: str) -> bool:
    return line.startswith((":", "    "))


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _link_sources)
    app.connect("autodoc-process-docstring", _list_arguments)
