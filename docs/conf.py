"""How Sphinx builds these pages: `python -m sphinx -W --keep-going docs build/docs`."""

import re

from sphinx.application import Sphinx

import collective_einsum

project = "collective-einsum"
author = "the collective-einsum authors"
version = release = collective_einsum.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["build"]
html_theme = "furo"
html_title = f"collective-einsum {version}"

myst_heading_anchors = 3

# Docstrings write `name` for code.
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "groupwise"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
# A frozen dataclass is documented by the "Attributes" of its docstring.
autodoc_default_options = {"show-inheritance": False}

# "name, name, ...: text" of an "Args" section whose names take more than one line: Napoleon reads the
# names of one line only.
_NAMES_GO_ON = re.compile(r"^\s+(\w+, )*\w+,$")


def _join_names(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Joins the lines of such a list, in place."""
    del app, what, name, obj, options
    for i in range(len(lines) - 2, -1, -1):
        if _NAMES_GO_ON.match(lines[i]):
            lines[i : i + 2] = [f"{lines[i]} {lines[i + 1].lstrip()}"]


# Napoleon's fields of an "Attributes" section: `:ivar name, name: text`.
_ATTRIBUTES = re.compile(r":ivar (\w+(?:, \w+)+):(.*)")


def _split_attributes(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Splits such a field by name, in place: Sphinx takes all names but the last for a type."""
    del app, what, name, obj, options
    i = 0
    while i < len(lines):
        field = _ATTRIBUTES.fullmatch(lines[i])
        end = i + 1
        while field and end < len(lines) and lines[end].startswith(" "):
            end += 1
        if field:
            text = lines[i + 1 : end]
            names = field[1].split(", ")
            lines[i:end] = [line for name in names for line in (f":ivar {name}:{field[2]}", *text)]
        i += 1


def _keep_sentences(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Joins the sentence of a property, in place: Napoleon takes its words before a colon for a type."""
    del app, name, obj, options
    if what == "property" and any(line.startswith(":type:") for line in lines):
        at = next(i for i, line in enumerate(lines) if line.startswith(":type:"))
        lines[0] = f"{lines[at].removeprefix(':type:').strip()}: {lines[0]}"
        del lines[at]


def setup(app: Sphinx) -> None:
    """Registers hooks ahead of Napoleon's and behind it."""
    app.connect("autodoc-process-docstring", _join_names, priority=100)
    app.connect("autodoc-process-docstring", _split_attributes, priority=900)
    app.connect("autodoc-process-docstring", _keep_sentences, priority=900)
