"""What pages ask for in one line, put in before they are read.

    {{ names: flowstudy.theory }}     an entry of the reference for each name of the room's `__all__`
    {{ gallery }}                     each study of figures/gallery/: its question and its pictures, of real data first
    {{ file: CONTRIBUTING.md }}       a file of the repository, its links led from there to here
"""

import importlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import flowstudy

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
GALLERY = ROOT / "figures" / "gallery"
PICTURES = (".svg", ".png")
PAGES = {"README.md": "index", "CONTRIBUTING.md": "contributing", "CHANGELOG.md": "changelog",
         "REPLICATION.md": "explanation/replication", "benchmarks/results/trainability.md": "explanation/error_rates",
         "benchmarks/results/foreign.md": "explanation/foreign"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def setup(app: "Sphinx") -> dict[str, bool]:
    app.connect("source-read", expand)
    return {"parallel_read_safe": True}


def expand(app: "Sphinx", page: str, source: list[str]) -> None:
    asked: dict[str, Callable[[str, str], str]] = {"names": names, "gallery": gallery, "file": repository_file}
    source[0] = re.sub(r"^\{\{ (\w+):? ?(\S*) \}\}$", lambda found: asked[found[1]](found[2], page), source[0],
                       flags=re.MULTILINE)


# --- the reference ---------------------------------------------------------------------------------------------------


def names(room: str, page: str) -> str:
    """Of the rooms below flowstudy those names that it does not have itself: each has one entry."""
    module = importlib.import_module(room)
    listed = [name for name in module.__all__ if room == "flowstudy" or name not in flowstudy.__all__]
    entries = "\n".join(entry(room, name, getattr(module, name)) for name in listed)
    return f"```{{eval-rst}}\n{entries}\n```"


def entry(room: str, name: str, thing: object) -> str:
    if isinstance(thing, type):
        # What a class inherits from the standard library is not ours to describe.
        return f".. autoclass:: {room}.{name}\n   :members:\n"
    if callable(thing) and hasattr(thing, "__name__"):
        return f".. autofunction:: {room}.{name}\n"
    several = isinstance(thing, dict | list | tuple)
    what = "By name: " + ", ".join(f"``{key}``" for key in thing) if several else f"``{thing}``"
    return f".. py:data:: {room}.{name}\n\n   {what}.\n"


# --- the gallery -----------------------------------------------------------------------------------------------------


def gallery(_: str, page: str) -> str:
    """In the order of the gallery's own page."""
    order = re.findall(r'<section id="([^"]+)"', (GALLERY / "index.html").read_text(encoding="utf-8"))
    folders = sorted((folder for folder in GALLERY.iterdir() if folder.is_dir()),
                     key=lambda folder: (order.index(folder.name) if folder.name in order else len(order), folder.name))
    return "\n\n".join(study(folder, page) for folder in folders)


def study(folder: Path, page: str) -> str:
    """The question and its explanation are the study's own first cell, the pictures those that git holds."""
    cells = json.loads((ROOT / "studies" / f"{folder.name}.ipynb").read_text(encoding="utf-8"))["cells"]
    title, _, text = "".join(cells[0]["source"]).partition("\n")
    near = recorded(folder.name)
    pictures = sorted(path for path in folder.iterdir() if path.suffix in PICTURES)
    return "\n\n".join([f"## {title.lstrip('# ')}", text.strip(),
                        *["On the paper's data, from [the record](explanation/replication.md):"] * bool(near),
                        *pictures_of(near, page),
                        *["The same in minutes, on scikit-learn's digits:"] * bool(near),
                        *pictures_of(pictures, page),
                        f"Made by `make figures ONLY={folder.name}`."])


def recorded(study: str) -> list[Path]:
    """The study's pictures in REPLICATION.md, of the profile nearest to the paper, which comes first there."""
    report = (ROOT / "REPLICATION.md").read_text(encoding="utf-8")
    found = re.findall(rf"\((replication/\w+)/({study}_\w+\.svg)\)", report)
    return sorted({ROOT / profile / name for profile, name in found if profile == found[0][0]})


def pictures_of(paths: list[Path], page: str) -> list[str]:
    return [picture(path, os.path.relpath(path, ROOT / "docs" / Path(page).parent)) for path in paths]


def picture(path: Path, address: str) -> str:
    """With the message and the description that an SVG holds; of another picture, its name in words."""
    message, about = path.stem.replace("_", " "), ""
    if path.suffix == ".svg":
        root = ElementTree.parse(path).getroot()
        message = root.findtext("{*}title") or message
        about = root.findtext(".//{http://purl.org/dc/elements/1.1/}description") or ""
    alt = message.replace("[", "(").replace("]", ")")
    return f"![{alt}]({address})\n\n**{message}** {about}".rstrip()


# --- files of the repository -----------------------------------------------------------------------------------------


def repository_file(name: str, page: str) -> str:
    def led(found: re.Match[str]) -> str:
        picture, words, target = found.groups()
        if re.match(r"[a-z]+:|#", target):
            return found[0]
        path, _, anchor = target.partition("#")
        there = os.path.normpath(Path(name).parent / path)
        if there in PAGES:
            to = os.path.relpath(PAGES[there], Path(page).parent) + ".md" + (f"#{anchor}" if anchor else "")
        elif (ROOT / there).is_file():
            to = os.path.relpath(ROOT / there, ROOT / "docs" / Path(page).parent)
        else:   # a folder: it has no page
            return words
        return f"{picture}[{words}]({to})"

    parts = re.split(r"(```.*?```|`[^`\n]+`)", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)
    return "".join(part if part.startswith("`") else LINK.sub(led, part) for part in parts)
