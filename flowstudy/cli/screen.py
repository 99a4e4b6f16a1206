"""Printing of a command's paragraphs and tables, and saving of its picture and its table."""

import textwrap
from pathlib import Path

import pandas as pd
import typer
from rich.console import Console
from rich.table import Table

from flowstudy.measure.drawn import Drawn

from .outcomes import stop


def say(words: str, indent: int = 0) -> None:
    """Print a paragraph, wrapped to the width of the screen."""
    typer.echo(textwrap.fill(words, max(40, Console().width - 1), initial_indent=" " * indent,
                             subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False))


def show(frame: pd.DataFrame, rows: int) -> None:
    """Print the table; of a table with more than `rows` rows, print only the first and the last."""
    table = Table(box=None, pad_edge=False)
    for name, column in frame.items():
        table.add_column(str(name), justify="right" if pd.api.types.is_numeric_dtype(column) else "left",
                         overflow="fold")
    half = rows // 2
    shown = frame if len(frame) <= rows else pd.concat([frame[:half], frame[-half:]])
    for i, row in enumerate(shown.itertuples(index=False)):
        if len(shown) < len(frame) and i == half:
            table.add_row(*["..."] * len(frame.columns))
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row))
    Console().print(table)


def check_picture(call: str, picture: Path | None) -> None:
    from matplotlib.backend_bases import FigureCanvasBase  # takes a second, and `status` draws nothing

    if picture is not None and picture.suffix.lstrip(".").lower() not in FigureCanvasBase.filetypes:
        stop(f"{call}: `--picture` must be a file that ends in one of {', '.join(FigureCanvasBase.filetypes)}, got "
             f"{str(picture)!r}.")


def keep(call: str, result: Drawn, picture: Path | None, csv: Path | None) -> None:
    for path, write in ((picture, lambda path: result.plot().savefig(path, dpi=110)),
                        (csv, lambda path: result.frame.to_csv(path, index=False))):
        if path is None:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
        except OSError as error:
            stop(f"{call}: {str(path)!r} must be a file that can be written, got {error.strerror or error}.")
        typer.echo(f"wrote {path}")
