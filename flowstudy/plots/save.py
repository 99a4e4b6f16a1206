"""Figures and the data behind them, into a folder."""

import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from flowstudy.arguments import MAPPING, NAME, check_function, check_path, takes
from flowstudy.whole_file import write_whole

from .message import caption_of, message_of

DOTS_PER_INCH = 200  # twice a screen's resolution at full width, so that letters stay sharp
MOST_ROWS = 100_000  # the most rows of a table that is also written as CSV


@takes(frames=MAPPING, name=NAME, plot=check_function)
def each(frames: Mapping[str, pd.DataFrame], name: str, plot: Callable[..., Figure],
         *args: object) -> dict[str, Figure]:
    """The same plot for several frames.

    Args:
        frames: by key; `name`, the beginning of the figures' names; `plot`, the function from frame to Figure.

    Returns:
        The figures by name: {"<name>_<key>": figure}.
    """
    return {f"{name}_{key}": plot(frame, *args) for key, frame in frames.items()}


@takes(figures=MAPPING, frames=MAPPING, folder=check_path)
def save(figures: Mapping[str, Figure], frames: Mapping[str, pd.DataFrame], folder: str | os.PathLike[str]) -> None:
    """Write each figure as <name>.svg, <name>.pdf and <name>.png, and the data behind them as <name>.parquet, and as
    <name>.csv up to `MOST_ROWS` rows, whole or not at all.

    Pictures carry the figure's message as their title, and its caption as their description or subject: the gallery has
    its alternative texts from there.  The same figures give the same bytes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        message, caption = message_of(figure), caption_of(figure)
        for kind, options in {
            "svg": {"dpi": DOTS_PER_INCH, "metadata": {"Title": message, "Description": caption, "Date": None}},
            "pdf": {"dpi": DOTS_PER_INCH, "metadata": {"Title": message, "Subject": caption, "CreationDate": None}},
            "png": {"dpi": DOTS_PER_INCH, "metadata": {"Title": message, "Description": caption}},
        }.items():
            picture = io.BytesIO()
            with mpl.rc_context({"svg.hashsalt": name}):  # names of an SVG's parts: random without
                figure.savefig(picture, format=kind, **options)
            write_whole(folder / f"{name}.{kind}", picture.getvalue())
    for name, frame in frames.items():
        write_whole(folder / f"{name}.parquet", frame.to_parquet(index=False))
        if len(frame) <= MOST_ROWS:
            write_whole(folder / f"{name}.csv", frame.to_csv(index=False, float_format="%.6g").encode())
