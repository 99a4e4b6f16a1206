"""The display of results in notebooks.

It consists of a sentence, a short table, and a picture at a readable size.
"""

import base64
import html
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

ROWS, COLUMNS = 10, 12  # of a table at most: the first and the last
PIXELS_PER_INCH = 80    # on the screen; drawn with twice as many, for screens that have them


def as_html(words: str, frame: "pd.DataFrame | None" = None, figure: "Figure | None" = None) -> str:
    """A fragment of HTML, without scripts and without anything to load; whatever names the user gave are escaped."""
    parts = "".join(f"<p>{html.escape(line)}</p>" for line in words.splitlines() if line)
    if frame is not None:
        parts += frame.to_html(max_rows=ROWS, max_cols=COLUMNS, float_format="{:.4g}".format, index=False, border=0)
    if figure is not None:
        parts += picture(figure)
    return f'<div style="max-width: 72em; overflow-x: auto">{parts}</div>'


def picture(figure: "Figure") -> str:
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=2 * PIXELS_PER_INCH)
    width = round(figure.get_figwidth() * PIXELS_PER_INCH)
    words = html.escape(" ".join(figure.get_suptitle().split()))
    return (f'<img alt="{words}" style="width: {width}px; max-width: 100%; height: auto" '
            f'src="data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}">')
