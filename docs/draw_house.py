"""Draws docs/house.svg from the floors that import-linter holds (pyproject.toml) and the docstring of every room.

    python docs/draw_house.py
"""

import ast
import textwrap
import tomllib
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

ROOT = Path(__file__).parent.parent
HOUSE = ROOT / "flowstudy"


def floors() -> list[list[str]]:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    names = next(c["layers"] for c in contracts if c.get("containers") == ["flowstudy"])
    return [[room.strip(" ()") for room in floor.split("|")] for floor in names]


def about(room: str) -> str:
    """First sentence of the room's docstring, and the rooms inside."""
    path = HOUSE / room / "__init__.py"
    text = ast.get_docstring(ast.parse((path if path.exists() else HOUSE / f"{room}.py").read_text())) or ""
    inside = sorted(p.parent.name for p in (HOUSE / room).glob("*/__init__.py"))
    return text.splitlines()[0].rstrip(".") + (f"\nrooms: {', '.join(inside)}" if inside else "")


def draw() -> Figure:
    storeys = floors()
    figure = Figure(figsize=(11, 0.95 * len(storeys) + 0.4))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 1), ylim=(-0.1, len(storeys) + 0.25))
    ax.set_axis_off()
    for i, rooms in enumerate(storeys):
        for j, room in enumerate(rooms):
            width, y = 0.98 / len(rooms), len(storeys) - 1 - i
            ax.add_patch(FancyBboxPatch((0.01 + j * width, y + 0.06), width - 0.008, 0.86, facecolor="#eef3f8",
                                        edgecolor="#8aa", boxstyle="round,pad=0,rounding_size=0.006"))
            ax.text(0.02 + j * width, y + 0.78, room, weight="bold", va="top", fontsize=11)
            lines = [textwrap.fill(line, int(150 * width)) for line in about(room).splitlines()]
            ax.text(0.02 + j * width, y + 0.52, "\n".join(lines), va="top", fontsize=8, color="0.25", linespacing=1.15)
    ax.text(0.01, len(storeys) + 0.08, "A room imports from rooms below it alone.", fontsize=9, color="0.3")
    return figure


if __name__ == "__main__":
    with mpl.rc_context({"svg.hashsalt": "house", "svg.fonttype": "none"}):
        draw().savefig(ROOT / "docs" / "house.svg", metadata={"Date": None})
