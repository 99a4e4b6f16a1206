"""An axis of layers that names the parts of a model, and marks that tell types of layers apart."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

MOST_NAMES = 24   # the most names on one axis
FEW = 6           # so few names, or fewer, say too little of a model with more layers than fit
LONG = 22         # the most letters of a name; the middle of a longer one is left out
WIDTH = 8.2       # of the axis, in inches; a little less than it really is
LETTER = 0.075    # width of a letter, in inches
MARKS = (("#0173b2", "o"), ("#d55e00", "s"), ("#02865f", "D"), ("#a3318f", "^"), ("#7a5c00", "v"), ("#555555", "P"))


RED = "#b00020"   # colour of values that are exactly 0, or lost
EXACTLY_0 = Line2D([], [], ls="", marker="x", color=RED, label="exactly 0")


@dataclass(frozen=True)
class Part:
    """Layers next to each other that share the beginning of their names: places first to last, from 0."""

    first: int
    last: int
    name: str


def parts_of(modules: Sequence[str], most: int = MOST_NAMES) -> list[Part]:
    """The model's parts, `most` of them or fewer: layers whose names begin alike, up to as many components as that
    allows.  Where this would leave a few only (a stack of many blocks), so many of the finer parts count as one, and
    have the name of the first.
    """
    names = [name.split(".") for name in modules]
    finer: list[Part] = []
    for level in range(max(map(len, names), default=1), 0, -1):
        parts, place = [], 0
        for head, group in itertools.groupby(names, key=lambda name: name[:level]):
            count = len(list(group))
            parts.append(Part(place, place + count - 1, ".".join(head)))
            place += count
        if len(parts) <= most and (len(parts) >= FEW or not finer):
            return parts
        if len(parts) > most:
            finer = parts
    every = -(-len(finer) // most)
    return [Part(group[0].first, group[-1].last, group[0].name)
            for group in (finer[at:at + every] for at in range(0, len(finer), every))]


def shortened(names: Sequence[str]) -> list[str]:
    """The names without the components that all of them begin with, long ones cut in the middle."""
    split = [name.split(".") for name in names]
    same = 0
    while len(split) > 1 and all(len(name) > same + 1 for name in split) and len({name[same] for name in split}) == 1:
        same += 1
    bare = [".".join(name[same:]) or "(model)" for name in split]
    return [name if len(name) <= LONG else f"{name[:LONG // 2 - 1]}…{name[-LONG // 2:]}" for name in bare]


def name_layers(ax: Axes, frame: pd.DataFrame) -> None:
    """Names of the model's parts under the axis, each in the middle of its layers, and a line between two parts."""
    layers, parts = frame["layer"].tolist(), parts_of(frame["module"].tolist())
    names = shortened([part.name for part in parts])
    ticks = [(layers[part.first] + layers[part.last]) / 2 for part in parts]
    inches = WIDTH / (layers[-1] - layers[0] + 1)
    close = any((after - before) * inches < LETTER * (len(one) + len(other) + 2) / 2
                for (before, one), (after, other) in itertools.pairwise(zip(ticks, names, strict=True)))
    ax.set_xticks(ticks, names, rotation=55 if close else 0, ha="right" if close else "center", fontsize=8,
                  **({"rotation_mode": "anchor"} if close else {}))
    for part in parts[1:] if any(part.last > part.first for part in parts) else []:
        ax.axvline(layers[part.first] - 0.5, color="0.88", lw=0.7, zorder=0)
    ax.grid(visible=False, axis="x")
    ax.set_xlim(layers[0] - 0.6, layers[-1] + 0.6)


def marks_of(types: pd.Series) -> dict[str, tuple[str, str]]:
    """Colour and marker of each type of layer, the most frequent first; what is over counts as "other"."""
    frequent = types.value_counts(sort=True).index.tolist()
    named = frequent if len(frequent) <= len(MARKS) else frequent[:len(MARKS) - 1]
    return {name: MARKS[i] if name in named else MARKS[-1]
            for i, name in enumerate([*named, *(t for t in frequent if t not in named)])}


def draw_marks(ax: Axes, frame: pd.DataFrame, column: str, marks: dict[str, tuple[str, str]]) -> None:
    """A mark per layer, full on the main path and hollow in branches; values that are not finite are left out."""
    size = 4.5 if len(frame) < 80 else 3.0
    for (kind, main), rows in frame.groupby(["type", on_path(frame)]):
        color, marker = marks[kind]
        ax.plot(rows["layer"], rows[column].where(rows[column].abs() < float("inf")), marker, ms=size, color=color,
                mfc=color if main else "white", mew=0.9)


def on_path(frame: pd.DataFrame) -> pd.Series:
    main = frame["main_path"] if "main_path" in frame else pd.Series(data=True, index=frame.index)
    return main.rename("main")


def handles_of(frame: pd.DataFrame, marks: dict[str, tuple[str, str]]) -> list[Line2D]:
    """For the legend: the types, and what hollow marks are where there are any."""
    shown: dict[tuple[str, str], list[str]] = {}
    for kind, mark in marks.items():
        shown.setdefault(mark, []).append(kind)
    handles = [Line2D([], [], ls="", marker=marker, color=color, ms=5, label=kinds[0] if len(kinds) == 1 else "other")
               for (color, marker), kinds in shown.items()]
    if not on_path(frame).all():
        handles.append(Line2D([], [], ls="", marker="o", color="0.35", mfc="white", ms=5, label="hollow: in a branch"))
    return handles


def mark_zeros(ax: Axes, frame: pd.DataFrame, column: str) -> bool:
    """Crosses on the lower edge where the norm is exactly 0 (its log is -inf); whether there are any."""
    zeros = frame.loc[frame[column] == -float("inf"), "layer"]
    if len(zeros):
        ax.plot(zeros, [0.03] * len(zeros), "x", color=RED, ms=5, transform=ax.get_xaxis_transform())
    return len(zeros) > 0
