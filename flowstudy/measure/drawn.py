"""Results that can draw themselves."""

from typing import TYPE_CHECKING, ClassVar

from flowstudy import names
from flowstudy.shown import as_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Drawn:
    """`plot()`, and words, table and picture in notebooks, of a result with a `frame`, whose plot in `flowstudy.plots`
    is named `drawn_by`.

    Measuring knows nothing of plots: it finds one by its name when it is to draw.
    """

    drawn_by: ClassVar[str]

    @property
    def drawn_with(self) -> dict[str, object]:
        """What the plot is told besides the frame."""
        return {}

    def plot(self) -> "Figure":
        """The result as a matplotlib Figure; `figure.savefig(path)` keeps it."""
        return names.find_plot(self.drawn_by)(self.frame, **self.drawn_with)

    def _repr_html_(self) -> str:
        return as_html(repr(self), self.frame, self.plot())
