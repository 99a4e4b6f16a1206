"""The result of `trainability`."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from flowstudy.arguments import a_real, takes
from flowstudy.measure.drawn import Drawn
from flowstudy.measure.gradients.flow import GradientFlow
from flowstudy.refusal import RefusalError

from .half import Survival
from .kernel.tangent import Kernel
from .reading import TrainabilityVerdict
from .trials.trial import Trial


@dataclass(frozen=True)
class Trainability(Drawn):
    """Will it train, in how many steps, at which rate.

    Attributes:
        remaining: by number of steps, the predicted share of the squared residual that is left at the best stable rate,
            the residual being dL/d output less its mean over samples.
        remaining_error: by number of steps, by how much `remaining` may be too small; 0 if the kernel is known.
        learning_rate: of gradient descent and momentum, the largest rate at which the first 20 steps, of all samples of
            the kernel, do not raise the loss above that of the start.  It is not the best rate to train at, which lay
            between 0.01 and 50 times that of the curvature on 136 nets; but a net that needs a rate of 1e4 has inputs
            or weights that are too small.  nan for Adam.
        rate_by: "steps": `learning_rate` is from such steps, by bisection; "curvature", where these would take long:
            2 over the largest eigenvalue of the loss's curvature at the start, which may be 5 times off.
        condition: largest over smallest eigenvalue of the kernel; nan where these are not all known.
        loss: at the start, in the loss's own units; `constant_loss` is the least that constant outputs have.
        by_layer: by module, its share of what the first step learns; 0 if frozen, cut off, or behind a layer of zeros.
        spectrum: eigenvalues of the kernel over the number of samples, descending (by "krylov" some of them).
        trial: rate against loss (see `trainability.trial.Trial.frame`); None without a trial.
        verdict: the reading; `str()` gives the sentences.
        flow: what `gradient_flow` says of the same model and batch.
        route: "rows" or "krylov" (see `trainability.kernel`).
        dtype: in which the model was differentiated: "float64", or "float32" where that would have taken minutes.
        optimizer: the one asked about.
        seconds: taken.
        survival: what of each layer's gradient survives in the format of 16 bits that was asked about, and the loss
            scale that saves the rest (`trainability.half.Survival`); None where none was.
    """

    remaining: pd.Series
    remaining_error: pd.Series
    learning_rate: float
    rate_by: str
    condition: float
    loss: float
    constant_loss: float
    by_layer: pd.Series
    spectrum: np.ndarray
    trial: pd.DataFrame | None
    verdict: TrainabilityVerdict
    flow: GradientFlow
    route: str
    dtype: str
    optimizer: str
    seconds: float
    kernel: Kernel = field(repr=False)
    tried: Trial | None = field(default=None, repr=False)
    survival: Survival | None = None

    drawn_by = "trainability"

    @takes(share=a_real("a number"))
    def steps_to(self, share: float | int) -> float:
        """Predicted number of steps until this share of the squared residual is left, at the best stable rate.

        Returns:
            A number of steps, not rounded; inf where the share is never reached.
        """
        if not 0 < share < 1:
            raise RefusalError(f"steps_to: `share` must be between 0 and 1, got {share!r}.")
        return self.kernel.decay.steps_to(share)

    @property
    def frame(self) -> pd.DataFrame:
        """A row per layer: `gradient_flow`'s, and `share_of_learning`, of its own parameters and of those of the
        modules inside it that are no layers themselves, divided evenly among its uses.
        """
        layers = self.flow.frame["module"]
        known, shares = set(layers), dict.fromkeys(layers, 0.0)
        for module, share in self.by_layer.items():
            around = [module, *(module.rsplit(".", parts)[0] for parts in range(1, module.count(".") + 1)), ""]
            owner = next((name for name in around if name in known), None)
            if owner is not None:
                shares[owner] += share
        uses = layers.map(layers.value_counts())   # all uses of a module share its weights
        return self.flow.frame.assign(share_of_learning=layers.map(shares) / uses)

    @property
    def drawn_with(self) -> dict[str, object]:
        steps = np.geomspace(1, 1e5, 60)
        curve = pd.DataFrame({"steps": steps, "remaining": [self.kernel.decay.remaining(t) for t in steps]})
        return {"path": self.flow.path, "curve": curve, "trial": self.trial, "constant_loss": self.constant_loss,
                "title": str(self.verdict)}

    def __repr__(self) -> str:
        return f"Trainability by {self.optimizer}: {self.verdict}"
