"""How the residual of a linearised net decays: sums of exponentials, from eigenvalues and weights."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

HORIZON = 10_000  # steps: what remains after them is what nets are judged by


@dataclass(frozen=True)
class Decay:
    """The squared residual along the eigenvectors of a tangent kernel.

    Gradient descent multiplies the residual's part along eigenvalue lam by exp(-eta lam t) in t steps; the largest
    rate eta that does not raise the part of the largest eigenvalue is of the order of 1 / lam_max.  At the best rate
    only ratios count:  remaining(t) = sum_i c_i exp(-2 t lam_i / lam_max).

    Attributes:
        ratios: lam_i / lam_max, at least 0.
        shares: c_i, the residual's squared part along each eigenvector; they add up to 1.
        exact: all eigenvalues are known; else they are those of a quadrature rule of the spectral measure, which
            underestimates what remains (Golub & Meurant 2010), and `upper` belongs to the rule that overestimates it.
    """

    ratios: np.ndarray
    shares: np.ndarray
    exact: bool = True
    upper: "Decay | None" = None

    def remaining(self, steps: float | int) -> float:
        """Share of the squared residual that is left after so many steps."""
        return float(self.shares @ np.exp(-2.0 * steps * self.ratios))

    def error(self, steps: float | int) -> float:
        """The largest amount by which `remaining` may be too small; 0 where it is exact."""
        return 0.0 if self.upper is None else max(0.0, self.upper.remaining(steps) - self.remaining(steps))

    def steps_to(self, share: float | int, most: float = 1e12) -> float:
        """Steps until this share is left; inf where it never is, or after more than `most`."""
        if self.remaining(0.0) <= share:
            return 0.0
        if self.remaining(most) > share:
            return float("inf")
        return float(np.exp(brentq(lambda t: self.remaining(np.exp(t)) - share, -30.0, np.log(most))))
