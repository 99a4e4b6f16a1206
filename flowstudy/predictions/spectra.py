"""Theory beside measured spectra of the body's Jacobian J: statistics of its singular values, and whole spectra."""

import math

import numpy as np
import pandas as pd
from scipy.special import logsumexp

from flowstudy.arguments import check_frame, takes
from flowstudy.theory.random_matrix.free_product import product_log_singular_values

from .gradients import carried, kinds_of, z_of
from .layers import KIND, cell_weight_var, has_mean_mode, is_gaussian, layer_theory, mode_theory
from .theories import theory_of

STATISTICS = {
    "rank": "singular values that are not 0",
    "mean_log": "mean of ln s, where none is 0",
    "log_mean_square": "ln of the mean of s²",
    "relative_variance": "variance of s² over its mean squared",
}
NONE_LIVE = (-math.inf, math.nan)
BESIDE_WIDTH = 1 / 4  # largest E s^4 / (E s^2)^2 over the width at which the infinite-width limit holds to some 10 %
SAME_LAW = 0.1        # largest relative difference of relative variances at which the free law counts as the spectrum's


@takes(spectra=check_frame, flow=check_frame)
def with_predicted_statistics(spectra: pd.DataFrame, flow: pd.DataFrame) -> pd.DataFrame:
    """Theory beside what each net's spectra amount to, a row per net and statistic.

    `rank` of plain ReLU nets is exact at any width (`theory.expected_rank`), and so is `mean_log` of plain linear
    Gaussian ones.  All else is for infinite width, from the measured mean square of the first hidden layer: width must
    be large beside depth, the more so the higher the moment.  `mean_log` of plain nets takes the weights' part at the
    nets' own width and the slopes' part at infinite width.  `log_mean_square` and `relative_variance` of highway and
    residual nets count the mean mode at the nets' own width (`theory.mean_mode`).

    Args:
        spectra: rows of the measurement "jacobian_spectrum", part "body".
        flow: rows of "gradient_flow" of the same cells, on the same samples.
    Returns:
        `statistic` (see `STATISTICS`), its mean over samples `measured`, `predicted`, and `z`: mean over nets of one
        kind, less `predicted`, in standard errors of that mean (of few nets, Student's t); nan where theory or
        measurement says nothing.  `valid`: false where theory has a number but does not cover such nets: a relative
        variance that is not small beside the width, orthogonal weights in highway and residual nets.
    """
    nets = net_statistics(spectra)
    kinds = kinds_of(flow)
    laws = [pd.DataFrame({"statistic": list(STATISTICS), "predicted": statistics_law(cell),
                          "valid": statistics_valid(cell)}).assign(**cell[KIND]) for _, cell in kinds.iterrows()]
    rows = nets.merge(pd.concat(laws).astype(flow[KIND].dtypes), how="left", on=[*KIND, "statistic"])
    rows["valid"] = rows["valid"].fillna(False).astype(bool)
    groups = rows.groupby([*KIND, "statistic"], dropna=False, sort=False)["measured"]
    gap = groups.transform("mean") - rows["predicted"]
    return rows.assign(z=z_of(gap, groups.transform("std"), groups.transform("count")))


def net_statistics(spectra: pd.DataFrame) -> pd.DataFrame:
    """A row per cell and statistic: `measured`, the mean over the samples."""
    by_sample = spectra.groupby(["cell", "sample"], sort=False)["log_singular_value"]
    statistics = by_sample.apply(lambda s: pd.Series(spectrum_statistics(s.to_numpy()))).unstack()
    means = statistics.groupby("cell", sort=False).mean()
    long = means.melt(ignore_index=False, var_name="statistic", value_name="measured").reset_index()
    cells = spectra.drop(columns=["sample", "rank", "log_singular_value"]).drop_duplicates("cell")
    return cells.merge(long, on="cell")


def spectrum_statistics(log_s: np.ndarray) -> dict[str, float]:
    """`STATISTICS` of one spectrum, in logs: squares of what is far below 1 count."""
    live = np.isfinite(log_s)
    with np.errstate(divide="ignore"):
        square, fourth = (logsumexp(k * log_s) - math.log(len(log_s)) for k in (2, 4)) if live.any() else NONE_LIVE
    return {"rank": float(live.sum()), "mean_log": log_s.mean() if live.all() else math.nan, "log_mean_square": square,
            "relative_variance": math.expm1(fourth - 2 * square)}


def statistics_law(cell: pd.Series) -> list[float]:
    if cell["depth"] < 2:
        return [math.nan] * len(STATISTICS)
    layers, of_kind = layer_theory(cell), theory_of(cell)
    first = [of_kind.rank(cell), of_kind.mean_log(cell, cell_weight_var(cell), layers)]
    if not of_kind.carries:
        return [*first, np.log(layers["chi"]).sum(skipna=False), of_kind.relative_variance(cell, layers)]
    last = mode_theory(cell).iloc[-1]
    square = float(np.logaddexp(last["log_bulk"], last["log_mode"]))
    return [*first, square, relative_variance_with_mode(cell, last)]


def statistics_valid(cell: pd.Series) -> list[bool]:
    """For each statistic, whether theory covers this kind of net."""
    if cell["depth"] < 2:
        return [False] * len(STATISTICS)
    of_kind = theory_of(cell)
    excess = (mode_theory(cell)["P"].iloc[-1] - 1 if of_kind.carries
              else of_kind.relative_variance(cell, layer_theory(cell)))
    small = bool(1 + excess <= BESIDE_WIDTH * cell["width"] or excess == 0)
    known = [math.isfinite(value) and is_gaussian(cell) for value in statistics_law(cell)]
    return [*known[:-1], known[-1] and small]


def relative_variance_with_mode(cell: pd.Series, last: pd.Series) -> float:
    """Variance over mean squared of s^2: P of the bulk, and one value for the mean mode.

    The mode's direction is made from the layers' own Jacobians, so it lies along their large singular values, and the
    bulk adds about P times its mean square to s^2 of the mode (not derived; by Monte Carlo the mode's s^2 is then right
    to 5 %).
    """
    if not has_mean_mode(cell):
        return float(last["P"]) - 1
    mode = math.exp(last["log_mode"] - last["log_bulk"])  # of the mean square, the bulk's being 1
    fourth = last["P"] + 2 * mode * last["P"] + cell["width"] * mode**2
    return float(fourth) / (1 + mode) ** 2 - 1


def predicted_spectrum(cell: pd.Series) -> tuple[np.ndarray, bool]:
    """ln singular values of J by rank, infinite width, nan where the law is not known in closed form; and whether the
    law is that of such nets.

    Highway, residual and plain linear Gaussian nets, as products of carry_l I + gain_l G with the layers' own mean
    squared carry and gain.  That is their law where these do not vary from unit to unit (`free_product`); where gates
    or slopes do (ReLU with open gates), it is too narrow, and not valid where its relative variance is more than a
    tenth below the nets'.  The mean mode, the largest value where activations have a mean, has no prediction.
    """
    width = cell["width"]
    layers = layer_theory(cell)
    if not theory_of(cell).is_free_product(cell) or cell["depth"] < 2 or layers["chi"].isna().any():
        return np.full(width, math.nan), False
    chi = layers["chi"].to_numpy()
    carry = np.broadcast_to(carried(cell, np.append(cell["activation_mean_square"], layers["q"].to_numpy()[:-1])),
                            chi.shape)
    quantiles = (width - np.arange(1, width + 1) + 0.5) / width
    law = product_log_singular_values(quantiles, np.sqrt(carry), np.sqrt(chi - carry))
    own = (1 - (carry / chi) ** 2).sum()  # the law's relative variance: (2 carry gain + gain^2) / chi^2 a layer
    true = mode_theory(cell)["P"].iloc[-1] - 1 if theory_of(cell).carries else own
    valid = is_gaussian(cell) and abs(own - true) <= SAME_LAW * abs(true)
    return np.where((quantiles > 1 - 1 / width) & has_mean_mode(cell), math.nan, law), bool(valid)


@takes(spectra=check_frame, flow=check_frame)
def with_predicted_spectra(spectra: pd.DataFrame, flow: pd.DataFrame) -> pd.DataFrame:
    """Theory beside each measured singular value; `spectra` and `flow` as in `with_predicted_statistics`.

    Returns:
        The rows of `spectra` with `predicted` beside `log_singular_value` [nats], `valid` (see `predicted_spectrum`),
        and `z`: mean over nets of one kind and rank, less `predicted`, in standard errors of that mean.
    """
    laws = []
    for _, cell in kinds_of(flow).iterrows():
        law, valid = predicted_spectrum(cell)
        laws.append(pd.DataFrame({"rank": range(1, cell["width"] + 1), "predicted": law,
                                  "valid": valid & np.isfinite(law)}).assign(**cell[KIND]))
    rows = spectra.merge(pd.concat(laws).astype(flow[KIND].dtypes), how="left", on=[*KIND, "rank"])
    by_net = rows.groupby([*KIND, "rank", "cell"], dropna=False, sort=False)["log_singular_value"].mean()
    groups = by_net.groupby([*KIND, "rank"], dropna=False, sort=False)
    of_kind = groups.agg(["mean", "std", "count"]).reset_index()
    rows = rows.merge(of_kind, how="left", on=[*KIND, "rank"])
    return rows.assign(z=z_of(rows["mean"] - rows["predicted"], rows["std"], rows["count"])).drop(
        columns=["mean", "std", "count"])
