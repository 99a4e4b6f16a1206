"""Inspection of a drawn figure: the places of its words and lines, and how dark its colours are."""

import itertools

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox


def contrast_on_white(color: object) -> float:
    """By WCAG 2: (1 + 0.05) / (relative luminance + 0.05)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return 1.05 / (float(np.dot([0.2126, 0.7152, 0.0722], linear)) + 0.05)


def pale_lines(figure: Figure) -> list[tuple[str, float]]:
    """Colour and contrast of every line and mark below 3:1, but for what is drawn faint on purpose: single nets behind
    their median, which is drawn in full, and a line between two parts of a model."""
    found = [(line.get_color(), contrast_on_white(line.get_color())) for ax in figure.axes for line in ax.lines
             if line.get_visible() and line.get_alpha() is None and line.get_zorder() > 0]
    return [(color, contrast) for color, contrast in found if contrast < 3]


def written(figure: Figure) -> list[tuple[str, Bbox]]:
    """What is written and shown: titles, captions, labels, ticks, legends, annotations; less a pixel on every side."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    legends = [*figure.legends, *(ax.get_legend() for ax in figure.axes if ax.get_legend())]
    texts = [figure._suptitle, figure._supxlabel, figure._supylabel]
    texts += [t for legend in legends for t in [legend.get_title(), *legend.get_texts()]]
    for ax in figure.axes:
        texts += [ax.title, ax._left_title, ax.xaxis.label, ax.yaxis.label, *ax.texts]
        for place, axis in enumerate((ax.xaxis, ax.yaxis) if ax.axison else ()):
            low, high = sorted(axis.get_view_interval())   # beyond it there are labels that are not drawn
            texts += [t for t in axis.get_ticklabels() if low <= t.get_position()[place] <= high]
    shown = [t for t in texts if t is not None and t.get_visible() and t.get_text().strip()]
    return [(t.get_text(), t.get_window_extent(canvas.get_renderer()).padded(-1)) for t in shown
            if t.get_rotation() in (0, 90)]


def texts_that_overlap(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of words that share more than a pixel."""
    return [(one, other) for (one, a), (other, b) in itertools.combinations(written(figure), 2) if a.overlaps(b)]


def texts_outside(figure: Figure) -> list[str]:
    """Words that the figure's edge cuts off."""
    width, height = figure.get_size_inches() * figure.dpi
    return [text for text, box in written(figure)
            if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1]


def texts_on_data(figure: Figure) -> list[str]:
    """Words inside axes, or their legends, that a line of these axes crosses; of a figure that has been drawn."""
    found = []
    for ax in figure.axes:
        boxes = [(t.get_text(), t.get_window_extent().padded(-1)) for t in ax.texts if shows(t)]
        if ax.get_legend() is not None:
            boxes.append(("legend", ax.get_legend().get_window_extent()))
        found += [text for text, box in boxes if any(crosses(ax, line, box) for line in ax.lines)]
    return found


def shows(text: Text) -> bool:
    return text.get_visible() and bool(text.get_text().strip())


def crosses(ax: Axes, line: object, box: Bbox) -> bool:
    """Whether the line, as it is drawn inside the axes, goes through the box."""
    x, y = line.get_transform().transform(np.column_stack(np.broadcast_arrays(*line.get_data(orig=False)))).T
    if line.get_linestyle() != "None" and len(x) > 1:  # also between its points
        places = np.linspace(0, len(x) - 1, 40 * len(x))
        x, y = np.interp(places, range(len(x)), x), np.interp(places, range(len(y)), y)
    frame = ax.get_window_extent()
    inside = (x >= frame.x0) & (x <= frame.x1) & (y >= frame.y0) & (y <= frame.y1)
    return bool(np.any(inside & (x > box.x0) & (x < box.x1) & (y > box.y0) & (y < box.y1)))
