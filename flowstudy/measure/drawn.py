"""Results that can draw themselves."""

import io
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Drawn:
    """`plot()`, and a small picture in notebooks, for a result whose plot in `flowstudy.plots` is named `drawn_by`.

    Measuring knows nothing of plots: the one import is made when somebody asks for a picture.
    """

    drawn_by: ClassVar[str]

    @property
    def drawn_with(self) -> dict[str, object]:
        """What the plot is told besides the frame."""
        return {}

    def plot(self) -> "Figure":
        """The result as a matplotlib Figure; `figure.savefig(path)` keeps it."""
        from flowstudy import plots

        return getattr(plots, self.drawn_by)(self.frame, **self.drawn_with)

    def _repr_png_(self) -> bytes:
        picture = io.BytesIO()
        self.plot().savefig(picture, format="png", dpi=60)
        return picture.getvalue()
