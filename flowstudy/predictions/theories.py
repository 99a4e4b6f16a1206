"""The interface between predictions and the theory of a kind of net, and the table of the kinds that have one."""

import math
from typing import ClassVar

import numpy as np
import pandas as pd

from flowstudy import names, theory

NOT_KNOWN = theory.Moments(math.nan, math.nan)


class BodyTheory:
    """Theory of layers 2..depth of one kind of net.  Here every answer is nan; a kind overrides those that it has.

    `cell` is a row of a frame with the fields of a `Cell`, and the measured `activation_mean_square` and
    `activation_mean` of the first layer's output where norms are predicted; `layers` counts the body's, depth - 1.

    Attributes:
        carries: a layer hands on part of its input past its weights.  Where activations have a mean, one singular
            value then grows beyond all others (`theory.mean_mode`).
        covers_orthogonal: whether theory covers orthogonal weights too.
        first_order: whether the mean of a layer's factor is known to first order in 1 / width
            (`predictions.gradients`).
    """

    carries: ClassVar[bool] = False
    covers_orthogonal: ClassVar[bool] = False
    first_order: ClassVar[bool] = False

    # --- infinite width, layer by layer ------------------------------------------------------------------------------

    def layers(self, cell: pd.Series, layers: int, weight_var: float, q0: float, m0: float,
               bias_var: float) -> pd.DataFrame:
        """`q` and `chi` of every layer, from the mean square and the mean of the body's input."""
        return pd.DataFrame(np.nan, index=range(layers), columns=["q", "chi"])

    def moments(self, cell: pd.Series, layers: int, weight_var: float, q0: float, m0: float, c0: float,
                bias_var: float) -> pd.DataFrame:
        """`layer`, and what is known of `body_moments`' quantities, of two inputs with cosine c0."""
        return pd.DataFrame({"layer": range(1, layers + 1)})

    def correlations(self, cell: pd.Series, layers: int, weight_var: float, q0: float, m0: float, c0: float,
                     bias_var: float) -> pd.DataFrame:
        """`c` and `gradient_correlation` of two inputs with cosine c0, by layer."""
        return pd.DataFrame(np.nan, index=range(layers), columns=["c", "gradient_correlation"])

    def mean_mode(self, cell: pd.Series, layers: int, weight_var: float, q0: float, m0: float,
                  bias_var: float) -> pd.DataFrame:
        """`theory.mean_mode` of a kind that carries."""
        raise NotImplementedError

    def carried(self, cell: pd.Series, weight_var: float, q: np.ndarray) -> np.ndarray | float:
        """The part of each layer's chi that does not pass through its weights, from its inputs' mean squares."""
        return math.nan

    def independent_masks(self, cell: pd.Series, weight_var: float) -> float:
        """Correlation of gradients if the masks of two inputs were independent (`theory.shattered_correlation`)."""
        return math.nan

    # --- at the nets' own width --------------------------------------------------------------------------------------

    def exact_step(self, cell: pd.Series, weight_var: float) -> theory.Moments:
        """Mean and variance of the change of ln ||error signal||^2 from one layer's output to the one before."""
        return NOT_KNOWN

    # --- spectra of the body's Jacobian ------------------------------------------------------------------------------

    def rank(self, cell: pd.Series) -> float:
        """Mean over nets of the number of singular values that are not 0."""
        return math.nan

    def mean_log(self, cell: pd.Series, weight_var: float, layers: pd.DataFrame) -> float:
        """Mean of ln s, where none is 0, from the layers' theory."""
        return math.nan

    def relative_variance(self, cell: pd.Series, layers: pd.DataFrame) -> float:
        """Variance of s^2 over its mean squared, of a kind that does not carry."""
        return math.nan

    def is_free_product(self, cell: pd.Series) -> bool:
        """Whether the spectrum is that of a product of carry_l I + gain_l G (`theory.product_log_singular_values`)."""
        return False


class CarryingTheory(BodyTheory):
    """Theory of kinds whose layers pass on part of their input: one recursion, `moments`, gives all infinite-width
    answers."""

    carries = True

    def layers(self, cell: pd.Series, layers: int, weight_var: float, q0: float, m0: float,
               bias_var: float) -> pd.DataFrame:
        return self.moments(cell, layers, weight_var, q0, m0, 1.0, bias_var)

    def correlations(self, cell: pd.Series, layers: int, weight_var: float, q0: float, m0: float, c0: float,
                     bias_var: float) -> pd.DataFrame:
        return self.moments(cell, layers, weight_var, q0, m0, c0, bias_var)

    def is_free_product(self, cell: pd.Series) -> bool:
        return True


def relu_masks(kind: str, cell: pd.Series, weight_var: float) -> float:
    """`BodyTheory.independent_masks` of ReLU nets with He's weights, whose first layer is plain; nan for others."""
    if cell["activation"] != "relu" or not math.isclose(weight_var, 2):
        return math.nan
    body = 1.0 if cell["depth"] == 1 else float(theory.shattered_correlation(kind, cell["depth"] - 1))
    return 0.5 * body


THEORIES: dict[str, BodyTheory] = {}  # by kind of net; `flowstudy.kinds` fills it


def theory_of(cell: pd.Series) -> BodyTheory:
    names.meet_kinds()
    return THEORIES[cell["net"]]
