"""Every link, picture and anchor in what git holds leads to something that git holds; the internet is not asked."""

import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
INLINE = re.compile(r"!?\[(?:[^\[\]]|\[[^\[\]]*\](?:\([^()]*\))?)*\]"            # words, a picture among them
                    r"\(\s*<?([^()\s>]*(?:\([^()]*\)[^()\s>]*)*)>?[^()]*\)")    # where to, brackets in it or not
NESTED = re.compile(r"!\[[^\[\]]*\]\(\s*([^()\s]+)")  # a picture inside a link's words
DEFINED = re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?([^\s>]+)", re.MULTILINE)


class Page(HTMLParser):
    """The targets and the anchors of a page of HTML or an SVG picture."""

    def __init__(self, text: str):
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src", "xlink:href", "poster", "data-src"):
                self.targets.append(value or "")
            elif name == "srcset":
                self.targets += [part.split()[0] for part in (value or "").split(",") if part.strip()]
            elif name in ("id", "name") and value:
                self.anchors.add(value)


def read(name: str, content: str) -> tuple[list[str], set[str]]:
    """Targets and anchors of a file, by its kind."""
    if name.endswith(".ipynb"):
        cells = [cell for cell in json.loads(content)["cells"] if cell["cell_type"] == "markdown"]
        return read("cells.md", "\n\n".join("".join(cell["source"]) for cell in cells))
    if name.endswith(".md"):
        text = re.sub(r"^( *)(```|~~~).*?^\1\2.*?$", "", content, flags=re.MULTILINE | re.DOTALL)
        page = Page(re.sub(r"(`+).+?\1", "", text))
        prose = re.sub(r"(`+).+?\1", "code", text)
        targets = [found for pattern in (INLINE, NESTED, DEFINED) for found in pattern.findall(prose)]
        return targets + page.targets, page.anchors | headings(text)
    page = Page(content)
    return page.targets, page.anchors


def headings(text: str) -> set[str]:
    """What GitHub calls them: lower case, without punctuation, hyphens for spaces, numbered where they are repeated."""
    found: dict[str, int] = {}
    anchors = set()
    for title in re.findall(r"^#{1,6}\s+(.*?)\s*#*$", text, re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        anchors.add(f"{slug}-{found[slug]}" if slug in found else slug)
        found[slug] = found.get(slug, 0) + 1
    return anchors


def dead_links(files: dict[str, str | None]) -> list[str]:
    """Of files and their contents, None where they are no text with links: what leads to none of them."""
    read_ones = {name: read(name, content) for name, content in files.items() if content is not None}
    folders = {str(parent) for name in files for parent in Path(name).parents}
    dead = []
    for name, (targets, _) in read_ones.items():
        for target in targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            there = resolved(name, unquote(parts.path))
            anchors = read_ones[there][1] if there in read_ones else None
            nowhere = there not in files and there not in folders
            if nowhere or (parts.fragment and anchors is not None and unquote(parts.fragment) not in anchors):
                dead.append(f"{name}: {target}")
    return dead


def resolved(name: str, path: str) -> str:
    """From the repository's root; None of its files where it leads outside."""
    if not path:
        return name
    steps: list[str] = [] if path.startswith("/") else list(Path(name).parent.parts)
    for step in path.strip("/").split("/"):
        if step == ".." and not steps:
            return ".."
        steps = steps[:-1] if step == ".." else steps if step in ("", ".") else [*steps, step]
    return "/".join(steps) or "."


def tracked() -> dict[str, str | None]:
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    names = [name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).exists()]
    return {name: (ROOT / name).read_text(encoding="utf-8") if name.endswith((".md", ".ipynb", ".html", ".svg"))
            else None for name in names}


def test_no_link_in_what_git_holds_is_dead():
    files = tracked()
    assert len([name for name, text in files.items() if text is not None]) > 10
    assert dead_links(files) == []


def test_dead_links_of_every_form_are_found():
    """Worked by hand: what is there, elsewhere on the internet, or inside code is not counted."""
    files = {"a.md": "# One `two`\n# One two\n"
                     "[x](b/c.md#here) ![p](b/p.png) [up](b) [w](https://x.y/z) [s](#one-two-1)\n"
                     "`[no](no.md)`\n```\n[no](no.md)\n```\n[![p](b/lost.png)](b/c.md) <img src='b/gone.png'>\n"
                     "[r][1] [t](#three)\n\n[1]: b/none.md \"title\"\n",
             "b/c.md": "<a id='here'></a> [back](../a.md#one-two) [out](../../etc/passwd) [e](c%20d.md)",
             "b/c d.md": "", "b/p.png": None,
             "b/i.html": "<p id=top><a href='#top'>x</a><a href='#bottom'>x</a><img src=p.png><img src=q.png>",
             "n.ipynb": json.dumps({"cells": [{"cell_type": "markdown", "source": ["[x](b/", "zz.md)"]},
                                              {"cell_type": "code", "source": "[no](no.md)"}]})}
    assert sorted(dead_links(files)) == [
        "a.md: #three", "a.md: b/gone.png", "a.md: b/lost.png", "a.md: b/none.md", "b/c.md: ../../etc/passwd",
        "b/i.html: #bottom", "b/i.html: q.png", "n.ipynb: b/zz.md"]
