"""Docstrings as the house writes them, as reStructuredText: plain text that happens to hold no markup but `code`."""

import inspect
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

# A section that has its text on the line of its name: a paragraph that begins with the name in bold.
NOTE = re.compile(r"^(Args|Attributes|Returns|Raises|Source|Limits|What it cannot \w+): (\S.*)$")
# A list inside a section: names with what they mean, one level further in.
ITEM = re.compile(r"^ {8}(\w+): (\S.*)$")


def setup(app: "Sphinx") -> dict[str, bool]:
    app.connect("autodoc-process-docstring", to_rst, priority=100)  # before napoleon
    app.connect("autodoc-skip-member", is_a_field)
    return {"parallel_read_safe": True}


def is_a_field(app: "Sphinx", what: str, name: str, thing: object, skip: bool, options: object) -> bool | None:
    """Fields of a NamedTuple, whose own docstrings say nothing, are among its class's Attributes."""
    return True if (getattr(thing, "__doc__", None) or "").startswith("Alias for field number") else None


def to_rst(app: "Sphinx", what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    lines[:] = [*lists(code(tables(notes([plain(line) for line in lines])))), *shapes(thing)]


def shapes(thing: object) -> list[str]:
    """The shapes that a function's signature states."""
    if not inspect.isfunction(thing):
        return []
    signature = inspect.signature(thing)
    known = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    said = [f"`{name}` {kind.__name__.partition('[')[0]} `({', '.join(kind.dim_str.split())})`"
            for name, kind in {**known, "returned": signature.return_annotation}.items() if hasattr(kind, "dim_str")]
    return ["", f"**Shapes:** {', '.join(said)}.", ""] if said else []


def plain(line: str) -> str:
    """No character of the text is markup, but for code in backticks; doctests and tables stay as they are."""
    if line.lstrip().startswith((">>>", "...", "| ", "|-")):
        return line
    parts = re.split(r"(`[^`]*`)", line)
    return "".join(part if part.startswith("`") else re.sub(r"([|*\\])|(?<=\w)(_)(?!\w)", r"\\\1\2", part)
                   for part in parts)


def notes(lines: list[str]) -> list[str]:
    """`Source: text` with its indented continuation becomes one paragraph."""
    out: list[str] = []
    in_note = False
    for line in lines:
        if found := NOTE.match(line):
            out += ["", f"**{found[1]}:** {found[2]}"]
            in_note = True
        elif in_note and line.startswith(" "):
            out[-1] += f" {line.strip()}"
        else:
            out.append(line)
            in_note = False
    return out


def tables(lines: list[str]) -> list[str]:
    """A Markdown table becomes a list-table."""
    out: list[str] = []
    in_table = False
    for line in lines:
        if not line.startswith("|"):
            out += [""] * in_table + [line]
            in_table = False
        elif not line.startswith("|-"):
            out += [] if in_table else [".. list-table::", "   :header-rows: 1", ""]
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            out += [f"   {'*' if i == 0 else ' '} - {cell}" for i, cell in enumerate(cells)]
            in_table = True
    return out


def code(lines: list[str]) -> list[str]:
    """What stands further in, below a blank line and before the first section, is code."""
    out: list[str] = []
    for i, line in enumerate(lines):
        if re.match(r"^[A-Z]\w+:$", line):
            return out + lines[i:]
        if line.startswith("    ") and out and not out[-1]:
            out += ["::", ""]
        out.append(line)
    return out


def lists(lines: list[str]) -> list[str]:
    out: list[str] = []
    in_list = False
    for line in lines:
        found = ITEM.match(line) if in_list or (out and not out[-1]) else None
        if found:
            out.append(f"        - `{found[1]}`: {found[2]}")
            in_list = True
        elif in_list and line.startswith(" " * 12):
            out.append(line[2:])
        else:
            out.append(line)
            in_list = in_list and not line.strip()
    return out
