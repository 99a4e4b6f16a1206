"""Readings at the start held against outcomes: areas under ROC curves, thresholds of other families, error rates.

Every statistic is turned so that it grows with what hinders training.  An area (AUC) is the share of pairs, one net
that trained and one that did not, of which the statistic is lower for the first; ties count one half.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from jaxtyping import Float

from flowstudy.trainability.reading import LOSS_WEIGHT, kind_by_kernel, kind_by_trial

from .known_outcomes import OPTIMIZERS, TRIALS

TRAINED = 0.7  # of training samples right, at the best rate after the last step: more than that is trained
RESAMPLES = 1_000
LARGE = 1e30   # a loss that is no longer finite is taken as one so large

Rule = Callable[[pd.DataFrame, str], pd.Series]


def kernel_score(rows: pd.DataFrame, _optimizer: str = "") -> pd.Series:
    """What `trainability` reads without a trial."""
    far_off = np.log10(rows["loss"].clip(upper=LARGE) / rows["constant_loss"]).clip(lower=0.0)
    return rows["remaining_10000_adam"] + LOSS_WEIGHT * far_off


def trial_score(rows: pd.DataFrame, optimizer: str) -> pd.Series:
    """What `trainability` reads with a trial of 100 steps."""
    lowest = rows[f"trial_100_{optimizer}"].clip(upper=LARGE)
    return np.log(lowest / rows["constant_loss"]) + rows["remaining_10000_adam"]


STATISTICS: dict[str, Rule] = {
    "remaining(10³)": lambda rows, _: rows["remaining_1000"],
    "remaining(10⁴)": lambda rows, _: rows["remaining_10000"],
    "remaining(10³), Adam's metric": lambda rows, _: rows["remaining_1000_adam"],
    "remaining(10⁴), Adam's metric": lambda rows, _: rows["remaining_10000_adam"],
    "the same and the loss at the start": kernel_score,
    "condition number": lambda rows, _: rows["condition"].fillna(np.inf),
    **{f"trial of {t} steps": lambda rows, optimizer, t=t: rows[f"trial_{t}_{optimizer}"] for t in TRIALS},
    "trial of 100 and remaining(10⁴)": trial_score,
    "decades of the error signal": lambda rows, _: rows["decades"],
    "cosine of two inputs": lambda rows, _: rows["cosine"],
    "depth over 6 ξ_c": lambda rows, _: rows["depth_scales"],
    "synflow": lambda rows, _: -rows["synflow"],
    "jacob_cov": lambda rows, _: -rows["jacob_cov"],
}


def scored(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each net, optimizer and statistic.

    Args:
        rows: of `known_outcomes`.

    Returns:
        `architecture`, `family`, `activation`, `depth`, `start`, `seed`, `dataset`, `steps`, `optimizer`, `statistic`,
        `score` (nan where the net has none: depth scales of nets that are not plain), `accuracy` and `trained`.
    """
    keys = ["architecture", "family", "activation", "depth", "start", "seed", "dataset", "steps"]
    parts = [rows[keys].assign(optimizer=optimizer, statistic=name, score=rule(rows, optimizer).astype(float),
                               accuracy=rows[f"accuracy_{optimizer}"],
                               trained=rows[f"accuracy_{optimizer}"] > TRAINED)
             for optimizer in OPTIMIZERS for name, rule in STATISTICS.items()]
    return pd.concat(parts, ignore_index=True)


# --- areas -----------------------------------------------------------------------------------------------------------


def areas(scores: pd.DataFrame, resamples: int = RESAMPLES) -> pd.DataFrame:
    """AUC of each statistic over all nets and by family, with 95 % intervals by the bootstrap over architectures.

    Args:
        scores: of `scored`.
        resamples: of architectures, with all nets of each.

    Returns:
        `optimizer`, `statistic`, `family` ("all" too), `nets` (that have the statistic), `dataset`, `architectures`,
        `trained` (of the nets), `auc`, `low`, `high`; nan where all of them trained or none did.
    """
    table = []
    for (optimizer, statistic), part in scores.groupby(["optimizer", "statistic"], sort=False):
        for family, nets in by_family(part):
            nets = nets.dropna(subset="score")
            table.append({"optimizer": optimizer, "statistic": statistic, "family": family, "nets": len(nets),
                          "dataset": part["dataset"].iloc[0], "architectures": nets["architecture"].nunique(),
                          "trained": int(nets["trained"].sum()),
                          **dict(zip(("auc", "low", "high"), area_and_interval(nets, resamples), strict=True))})
    return pd.DataFrame(table)


def by_family(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    yield "all", rows
    yield from rows.groupby("family", sort=False)


def area_and_interval(nets: pd.DataFrame, resamples: int) -> tuple[float, float, float]:
    """The area, and the 2.5th and 97.5th percentile of it; resamples of one outcome alone have none."""
    trained, score = nets["trained"].to_numpy(bool), nets["score"].to_numpy(float)
    if trained.all() or not trained.any():
        return np.nan, np.nan, np.nan
    won = wins(score[trained], score[~trained])
    known, place = np.unique(nets["architecture"], return_inverse=True)
    drawn = np.random.default_rng(0).multinomial(len(known), np.full(len(known), 1 / len(known)), resamples)
    times = drawn[:, place]   # of each net in each resample
    pairs = times[:, trained].sum(1) * times[:, ~trained].sum(1)
    total = np.einsum("rp,pn,rn->r", times[:, trained], won, times[:, ~trained], optimize=True)
    low, high = np.quantile(total[pairs > 0] / pairs[pairs > 0], [0.025, 0.975])
    return float(won.mean()), float(low), float(high)


def wins(trained: Float[np.ndarray, " p"], failed: Float[np.ndarray, " n"]) -> Float[np.ndarray, "p n"]:
    """1 where a net that trained has the lower score, 1/2 where both have the same."""
    one, other = trained[:, None], failed[None, :]
    return (one < other) + 0.5 * (one == other)


# --- thresholds and verdicts -----------------------------------------------------------------------------------------


def thresholds_elsewhere(scores: pd.DataFrame) -> pd.DataFrame:
    """How far a threshold travels: set on five families and used on the sixth, and set on one and used on the others.

    Args:
        scores: of `scored`.

    Returns:
        `optimizer`, `statistic`, `family`, `right_held_out` (share of its nets, by a threshold set on the other
        families) and `right_elsewhere` (share of the other families' nets, by a threshold set on this one).
    """
    table = []
    for (optimizer, statistic), part in scores.dropna(subset="score").groupby(["optimizer", "statistic"], sort=False):
        if part["family"].nunique() < 2:
            continue
        for family, own in part.groupby("family", sort=False):
            others = part[part["family"] != family]
            table.append({"optimizer": optimizer, "statistic": statistic, "family": family,
                          "right_held_out": right_by(own, best_threshold(others)),
                          "right_elsewhere": right_by(others, best_threshold(own))})
    return pd.DataFrame(table)


def best_threshold(nets: pd.DataFrame) -> float:
    """Of the thresholds that are right for most nets the middle one; nets below it are said to train."""
    score, trained = nets["score"].clip(-LARGE, LARGE).to_numpy(), nets["trained"].to_numpy(bool)
    values = np.unique(score)
    between = np.concatenate([[-np.inf], (values[1:] + values[:-1]) / 2, [np.inf]])
    right = ((score < between[:, None]) == trained).sum(1)
    best = np.flatnonzero(right == right.max())
    return float(between[best[len(best) // 2]])


def right_by(nets: pd.DataFrame, threshold: float) -> float:
    return float(((nets["score"] < threshold) == nets["trained"]).mean())


def verdicts(rows: pd.DataFrame) -> pd.DataFrame:
    """What `trainability` says, of the kernel alone and with a trial of 100 steps, and how often that was so.

    Args:
        rows: of `known_outcomes`.

    Returns:
        `optimizer`, `reading` ("kernel" or "trial"), `family`, `nets`, `trained`, `right` (share of the nets: "trains"
        and it did, or anything else and it did not), `wrongly_trains`, `wrongly_fails` (how many had "trains" and
        did not, "does not train" and did) and `cannot_tell`.
    """
    table = []
    for optimizer in OPTIMIZERS:
        for reading in ("kernel", "trial"):
            told = rows.assign(trained=rows[f"accuracy_{optimizer}"] > TRAINED, said=said(rows, optimizer, reading))
            for family, nets in by_family(told):
                trains, trained = nets["said"] == "trains", nets["trained"]
                table.append({
                    "optimizer": optimizer, "reading": reading, "family": family, "nets": len(nets),
                    "trained": int(trained.sum()), "right": float((trains == trained).mean()),
                    "wrongly_trains": int((trains & ~trained).sum()),
                    "wrongly_fails": int(((nets["said"] == "does not train") & trained).sum()),
                    "cannot_tell": int((nets["said"] == "cannot tell").sum())})
    return pd.DataFrame(table)


def said(rows: pd.DataFrame, optimizer: str, reading: str) -> list[str]:
    """By the product's own rules, what it names causes by left out."""
    if reading == "kernel":
        columns = rows[["remaining_10000_adam", "loss", "constant_loss"]]
        return [kind_by_kernel(left, 0.0, "adam", loss, constant, True)
                for left, loss, constant in columns.itertuples(index=False)]
    columns = rows[["remaining_10000_adam", f"trial_100_{optimizer}", "constant_loss"]]
    return [kind_by_trial(*row) for row in columns.itertuples(index=False)]
