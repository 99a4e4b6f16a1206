"""The gallery's page: what files hold is shown as text and never becomes part of the page."""

import html
import json
from html.parser import HTMLParser

import pytest

nbformat = pytest.importorskip("nbformat", reason="the extra `studies` is not installed")

HOSTILE = """<script>alert(1)</script><img src=x onerror=alert(1)>"' onload='alert(1)' &lt;"""
TAGS = {"html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "p", "code", "nav", "a", "section",
        "figure", "img", "figcaption", "span", "ul", "li", "details", "summary", "table", "tr", "th", "td"}
ATTRIBUTES = {"lang", "charset", "name", "content", "href", "id", "class", "src", "alt", "loading", "scope",
              "aria-label"}


class Page(HTMLParser):
    def __init__(self, page: str):
        super().__init__()
        self.tags, self.attributes, self.words = set(), set(), []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_whatever_a_stamp_and_a_notebook_hold_is_text(tmp_path):
    """A stamp that is hostile in every field, file names and parameters too: no tag or attribute that is not ours."""
    from flowstudy.figures.gallery import write_page

    folder = tmp_path / "study"
    folder.mkdir()
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(f"# {HOSTILE}\n\n{HOSTILE}")])
    nbformat.write(notebook, folder / "study.ipynb")
    fields = dict.fromkeys(("profile", "seconds", "device", "finished", "commit"), HOSTILE)
    stamp = fields | {"files": [f"{HOSTILE}.svg", "told.svg", f"{HOSTILE}.parquet"], "parameters": {HOSTILE: HOSTILE},
                      "versions": {HOSTILE: HOSTILE}}
    (folder / "told.svg").write_text(f"<svg><title>{html.escape(HOSTILE)}</title></svg>")
    (folder / "stamp.json").write_text(json.dumps(stamp))
    write_page(tmp_path, ["study"])
    page = Page((tmp_path / "index.html").read_text())
    assert page.tags <= TAGS and page.attributes <= ATTRIBUTES
    files, words = 1 + 1, 2  # a picture and a table; one picture's message, in the index and below it
    assert "".join(page.words).count(HOSTILE) == 2 + 5 + 2 + 2 + files + words  # question, fields, parameters, versions
