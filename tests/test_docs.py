"""README and docs are what they say: every block of code runs as written, in the order of its page."""

import doctest
import importlib
import inspect
import re
import runpy
import sys
from importlib.util import find_spec

import pytest
import torch
from matplotlib import pyplot as plt
from page_reader import MARKS, ROOT, Reader, blocks, is_part, is_run, words

import flowstudy

DOCS = ROOT / "docs"
PAGES = {path.relative_to(ROOT).as_posix(): path
         for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md")))}
FOLLOWED = [name for name, path in PAGES.items() if any(map(is_run, blocks(path)))]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")   # other people's packages warn too
@pytest.mark.parametrize("page", FOLLOWED)
def test_a_page_can_be_followed_as_written(page, tmp_path, monkeypatch):
    """From an empty folder; what a block prints is what the page shows, numbers aside."""
    given = {} if page != "README.md" else runpy.run_path(str(ROOT / ".ci" / "public_types.py"))
    if given:
        exec(given["GIVEN"], given)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    modules, random_state = set(sys.modules), torch.get_rng_state()
    reader = Reader(tmp_path, given)
    try:
        for block in blocks(PAGES[page]):
            if block.mark == "needs" and not all(map(find_spec, block.value.split(", "))):
                pytest.skip(f"{page}: the rest needs {block.value}")
            reader.follow(block)
    finally:
        torch.set_rng_state(random_state)
        plt.close("all")
        for name in set(sys.modules) - modules:   # the page's own, whose names another page has too
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
                del sys.modules[name]


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_says_why_not(page):
    for block in blocks(PAGES[page]):
        assert block.mark in MARKS, block
        assert is_run(block) or block.mark in ("not run", "prints", "file") or block.language.startswith("{"), block
        assert block.mark != "not run" or block.value, block


def test_the_reference_has_every_public_name():
    """Each room with an `__all__` has a page of the reference, and no page is of a room that is none."""
    listed = set(re.findall(r"^\{\{ names: (\S+) \}\}$", "\n".join(
        path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md")), re.MULTILINE))
    rooms = {f"flowstudy.{room}": importlib.import_module(f"flowstudy.{room}") for room in flowstudy._ROOMS}
    with_names = {name for name, room in rooms.items() if set(getattr(room, "__all__", ())) - set(flowstudy.__all__)}
    assert with_names | {"flowstudy"} == listed


def public_things():
    """Every public function and class once, by the module that defines it."""
    rooms = [flowstudy, *(importlib.import_module(f"flowstudy.{room}") for room in flowstudy._ROOMS)]
    named = {id(thing): thing for room in rooms for name in getattr(room, "__all__", ())
             if hasattr(thing := getattr(room, name), "__qualname__")}
    return sorted(named.values(), key=lambda thing: (thing.__module__, thing.__qualname__))


def lacks_returns(thing):
    """A public function that returns something, and does not say what."""
    return inspect.isfunction(thing) and inspect.signature(thing).return_annotation not in (None, "None") \
        and "Returns:" not in (inspect.getdoc(thing) or "")


def test_every_public_function_says_what_it_returns():
    assert not [thing.__qualname__ for thing in public_things() if lacks_returns(thing)]


def test_a_function_without_returns_is_found():
    def silent() -> int:
        """One."""
        return 1

    def told() -> int:
        """One.

        Returns:
            1.
        """
        return 1

    def acts() -> None:
        """Nothing comes back."""

    assert [lacks_returns(function) for function in (silent, told, acts)] == [True, False, False]


def test_examples_in_docstrings_print_what_they_say():
    """Of every public name, in the namespace of its module."""
    runner, examples = doctest.DocTestRunner(), 0
    finder = doctest.DocTestFinder(exclude_empty=True)
    for thing in public_things():
        for test in finder.find(thing, thing.__qualname__, globs=dict(vars(sys.modules[thing.__module__]))):
            examples += len(test.examples)
            runner.run(test)
    assert examples > 50 and runner.summarize(verbose=False).failed == 0


# --- docstrings as the site shows them -------------------------------------------------------------------------------


def test_house_docstrings_become_rst(monkeypatch):
    """Worked by hand: notes, tables, lists, code, and text that would be markup."""
    monkeypatch.syspath_prepend(str(DOCS / "extensions"))
    house = importlib.import_module("house_docstrings")
    lines = ["E||x||^2 of `a_b` and c_, *d", "", "    code(1)", "", "| a | b |", "|---|---|", "| 1 | 2 |", "",
             "Returns:", "    frame: rows.", "", "        q: length", "            and more.", "Source: One 1999,",
             "    and two.", ">>> 2 * 3", "6"]
    house.to_rst(None, "function", "f", None, None, lines)
    assert lines == [
        r"E\|\|x\|\|^2 of `a_b` and c\_, \*d", "", "::", "", "    code(1)", "", ".. list-table::",
        "   :header-rows: 1", "", "   * - a", "     - b", "   * - 1", "     - 2", "", "",
        "Returns:", "    frame: rows.", "", "        - `q`: length", "          and more.", "",
        "**Source:** One 1999, and two.", ">>> 2 * 3", "6"]


# --- the reader ------------------------------------------------------------------------------------------------------


def test_a_reader_does_what_the_page_says(tmp_path, monkeypatch):
    """Worked by hand: files, a session that goes on, a status, and what a block printed."""
    page = tmp_path / "page.md"
    page.write_text("<!-- file: a.py -->\n```python\nprint('one', 2.5)\n```\n<!-- file: a.py, added -->\n```python\n"
                    "raise SystemExit(3)\n```\nwords\n\n<!-- exit: 3 -->\n```sh\npython a.py\n```\n<!-- prints -->\n"
                    "```text\none 2.4\n```\n```python\nx = 1\n```\n<!-- not run: needs luck -->\n```python\nx = 2\n"
                    "```\n```python\nassert x == 1\nprint('a')\nprint('b')\nprint('c')\n```\n<!-- prints, in part -->\n"
                    "```text\na\nc\n```\n")
    (tmp_path / "here").mkdir()
    reader = Reader(tmp_path / "here", {})
    for block in blocks(page):
        reader.follow(block)
    page.write_text("```python\nprint('one')\n```\n<!-- prints -->\n```text\ntwo\n```\n")
    with pytest.raises(AssertionError, match="the page shows"):
        for block in blocks(page):
            reader.follow(block)


def test_what_is_shown_in_part_was_printed_in_this_order():
    assert is_part("a 1\n...\nc 3", "a 2\nb\nc 4\n") and not is_part("c\na", "a\nb\nc\n")
    assert words("at 1e-05, 3 of nan") == words("at 0.2, 14 of 5.1") == ["at", "of"]
