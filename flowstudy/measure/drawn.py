"""Results that can draw themselves."""

from typing import TYPE_CHECKING, ClassVar

from flowstudy import names
from flowstudy.shown import as_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Drawn:
    """Base of results with a `frame`: gives them `plot()`, and words, table and picture in notebooks.

    `drawn_by` is the name of the function in `flowstudy.plots` that draws the result.  It is looked up when a plot is
    asked for, so that `flowstudy.measure` does not import matplotlib.
    """

    drawn_by: ClassVar[str]

    @property
    def drawn_with(self) -> dict[str, object]:
        """Keyword arguments for the plotting function, besides the frame."""
        return {}

    def plot(self) -> "Figure":
        """The result as a matplotlib Figure; `figure.savefig(path)` keeps it."""
        return names.find_plot(self.drawn_by)(self.frame, **self.drawn_with)

    def _repr_html_(self) -> str:
        return as_html(repr(self), self.frame, self.plot())
