"""Figures and the data behind them, into a folder."""

import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from flowstudy.arguments import MAPPING, NAME, check_function, check_path, takes
from flowstudy.whole_file import write_whole


@takes(frames=MAPPING, name=NAME, plot=check_function)
def each(frames: Mapping[str, pd.DataFrame], name: str, plot: Callable[..., Figure],
         *args: object) -> dict[str, Figure]:
    """The same plot of several frames: {"<name>_<key>": figure}."""
    return {f"{name}_{key}": plot(frame, *args) for key, frame in frames.items()}


@takes(figures=MAPPING, frames=MAPPING, folder=check_path)
def save(figures: Mapping[str, Figure], frames: Mapping[str, pd.DataFrame], folder: str | os.PathLike[str]) -> None:
    """Write each figure as <name>.png and <name>.pdf, and the data behind them as <name>.parquet, whole or not at all.

    The same figures give the same bytes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        for kind, options in {"png": {"dpi": 110}, "pdf": {"metadata": {"CreationDate": None}}}.items():
            picture = io.BytesIO()
            figure.savefig(picture, format=kind, **options)
            write_whole(folder / f"{name}.{kind}", picture.getvalue())
    for name, frame in frames.items():
        write_whole(folder / f"{name}.parquet", frame.to_parquet(index=False))

