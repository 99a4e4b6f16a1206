"""The code blocks of a page of Markdown, and what a reader who follows it would do with each.

A block in `python` or `sh` is run, in the page's order, in one folder and one Python session.  A comment on the line
above it says what the page says in words:

    <!-- file: models.py -->             save it under this name (`, added`: at the end of that file)
    <!-- given: model, x, y -->          these names are the reader's own
    <!-- needs: transformers -->         from here on the page needs these packages
    <!-- not run: needs a GPU -->        with the reason
    <!-- exit: 1 -->                     the status of the last command
    <!-- prints -->                      what the block above printed; `, in part`: lines are left out
"""

import contextlib
import io
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(?:^<!-- (?P<mark>[^\n]*?) -->\n)?"
                   r"^(?P<fence>`{3,})(?P<language>[^\n]*)\n(?P<code>.*?)^(?P=fence)$", re.MULTILINE | re.DOTALL)
MARKS = ("", "file", "given", "needs", "not run", "exit", "prints")


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    mark: str    # "file", "prints", ...; "" without a comment
    value: str   # what follows it


def is_run(block: Block) -> bool:
    return block.language in ("python", "sh") and block.mark not in ("not run", "file")


def blocks(page: Path) -> list[Block]:
    found = []
    for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
        mark, _, value = (match["mark"] or "").partition(": ")
        mark, part, _ = mark.partition(", in part")
        found.append(Block(match["language"], match["code"], mark, value or part))
    return found


class Reader:
    """Someone who follows a page, in an empty folder that is the current one.

    Attributes: printed, what the latest block printed.
    """

    def __init__(self, folder: Path, given: dict[str, object]):
        self.folder, self.given, self.printed = folder, given, ""
        self.session: dict[str, object] = {"__name__": "__main__"}

    def follow(self, block: Block) -> None:
        if block.mark == "given":
            self.session |= {name: self.given[name] for name in block.value.split(", ")}
        if block.mark == "not run":
            return
        if block.mark == "prints":
            same = is_part(block.code, self.printed) if block.value else words(block.code) == words(self.printed)
            assert same, f"the page shows\n{block.code}\nand its block printed\n{self.printed}"
        elif block.mark == "file":
            name, _, added = block.value.partition(", ")
            with (self.folder / name).open("a" if added else "x", encoding="utf-8") as file:
                file.write(block.code)
        elif block.language == "python":
            self.printed = self.run_python(block.code)
        elif block.language == "sh":
            self.printed = self.run_shell(block.code, int(block.value) if block.mark == "exit" else 0)

    def run_python(self, code: str) -> str:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "<a block of the page>", "exec"), self.session)
        return printed.getvalue()

    def run_shell(self, code: str, status: int) -> str:
        env = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg",
                            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run(["bash", "-e", "-c", code], cwd=self.folder, env=env, capture_output=True, text=True)
        assert done.returncode == status, f"{code}\nended with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout


def words(text: str) -> list[str]:
    """Numbers differ from one machine to another in their last digits; words do not."""
    return re.findall(r"[A-Za-z_]+", re.sub(r"\b(nan|inf|NaN)\b|\d[\d.,]*e[+-]\d+", "", text))


def is_part(shown: str, printed: str) -> bool:
    """Each line that is shown, or a line that begins so, was printed, in this order, its numbers aside."""
    lines = iter([words(line) for line in printed.splitlines()])
    wanted = [words(line) for line in shown.splitlines() if words(line)]
    return all(any(line[:len(some)] == some for line in lines) for some in wanted)
