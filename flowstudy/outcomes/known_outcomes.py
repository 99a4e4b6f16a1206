"""A row for every net: what could be read at its start, and what became of it in training."""

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor, nn

from flowstudy import theory
from flowstudy.arguments import check_one_of, check_whole
from flowstudy.data import load_dataset
from flowstudy.progress import progress_bar
from flowstudy.refusal import RefusalError
from flowstudy.sweep.workers.tasks import found_device
from flowstudy.torch_arguments import check_device_or_auto
from flowstudy.trainability import Trainability, trainability
from flowstudy.trainability.trials.rates import USUAL_RATES
from flowstudy.whole_file import write_whole

from .rivals import jacobian_covariance, last_layer_cosine, synflow
from .small_nets import FAMILIES, MAP, Architecture, chosen_nets
from .train_at_rates import Course, train_at_rates

KEPT = Path(__file__).with_name("will_it_train.csv")  # the rows that were trained once: see `known_outcomes`
OPTIMIZERS = ("momentum", "adam")
TRIALS = (12, 25, 50, 100)  # steps after which the lowest loss over the rates is noted
SAMPLES = 48                # of the readings at the start
FEWER = 16                  # of jacob_cov: fewer than a layer has units, else eigenvalues are 0 in every net
FAR = 6.0                   # xi_c: Schoenholz et al. 2017 found nets of up to about so many trainable


def known_outcomes(families: Sequence[str] = (*FAMILIES, MAP), *, train: bool = False, steps: int = 300,
                   seeds: int = 1, dataset: str = "digits", device: str = "auto",
                   store: str | Path = "results") -> pd.DataFrame:
    """The nets of `small_nets` and `highway_map`, each trained at eight rates by SGD with momentum 0.9 and by Adam.

    Args:
        families: of `small_nets`, or "highway map".
        train: train them now, else read the rows that are part of flowstudy: of the digits, 300 steps of batch 32, one
            seed, on a CPU of 2 cores that did other work too.  What was trained is kept in `store`, architecture by
            architecture; a run that was stopped goes on.
        steps, seeds, dataset: of the training, more than 100 steps, since the trial is its beginning;
            images have one channel and are square.
        device: "auto" is the GPU where there is one, else the CPU; or any name that torch knows.

    Returns:
        A row a net.  `family`, `kind`, `activation`, `depth`, `start`, `seed`, `architecture` say which.  At the start:
        `loss`, `constant_loss`; `remaining_1000`, `remaining_10000` by the kernel, and `..._adam` in Adam's metric;
        `condition`, `decades` (of the error signal, last layer to first), `cosine` (of two inputs at the last layer),
        `depth_scales` (depth over 6 xi_c; nan where mean-field theory has no such scale: all but plain nets), `synflow`
        and `jacob_cov` (see `rivals`), `stable_rate` (the kernel's largest for momentum).  For both optimizers:
        `accuracy_momentum` (best over the rates after the last step), `accuracies_momentum` (at each rate, nan where
        it diverged), `trial_12_momentum` and so on (lowest loss over the rates; inf where all diverged).  `seconds` are
        of all of this for the architecture, over its starts.
    """
    check_whole("known_outcomes", "steps", steps, TRIALS[-1] + 1)
    check_whole("known_outcomes", "seeds", seeds, 1)
    for family in families:
        check_one_of("known_outcomes", "families", family, (*FAMILIES, MAP))
    if not train:
        if (dataset, steps, seeds) != ("digits", 300, 1):
            raise RefusalError(f"known_outcomes: `train` must be True for {dataset}, {steps} steps and {seeds} seeds, "
                               "got False. The rows that are kept are of the digits, 300 steps, 1 seed.")
        kept = read_rows(KEPT)
        return kept[kept["family"].isin(families)].reset_index(drop=True)
    check_device_or_auto("known_outcomes", "device", device)
    device = found_device(device)
    wanted = chosen_nets(families)
    path = Path(store) / f"will_it_train_{dataset}_{steps}.csv"
    done = read_rows(path) if path.exists() else pd.DataFrame()
    x, y = images(dataset, device)
    plan = [(a, seed) for seed in range(seeds) for a in wanted]
    for architecture, seed in progress_bar(iterable=plan, desc="nets", unit="architecture"):
        if len(done) and ((done["architecture"] == architecture.name) & (done["seed"] == seed)).any():
            continue
        new = pd.DataFrame(list(rows_of(architecture, seed, x, y, steps, dataset)))
        done = pd.concat([done, new], ignore_index=True)
        write_whole(path, done.to_csv(index=False, float_format="%.6g", na_rep="nan").encode())
    mine = done["family"].isin(families) & (done["seed"] < seeds)
    return done[mine].reset_index(drop=True)


def read_rows(path: Path) -> pd.DataFrame:
    """Of a file of this module: "none" is a transformer's kind, not a number that is missing."""
    return pd.read_csv(path, keep_default_na=False, na_values=["nan"])


def images(dataset: str, device: str) -> tuple[Float[Tensor, "sample 1 row column"], Int[Tensor, " sample"]]:
    """Of the training set, of mean 0 and variance 1."""
    data = load_dataset(dataset)
    x = data.x_train.to(device)
    return (x - x.mean()) / x.std(), data.y_train.to(device)


def rows_of(a: Architecture, seed: int, x: Tensor, y: Tensor, steps: int, dataset: str) -> Iterator[dict[str, object]]:
    started = time.perf_counter()
    nets = [a.net(x.shape[-1], int(y.max()) + 1, start, seed).to(x.device) for start in a.starts]
    courses = {name: train_at_rates(nets, x, y, optimizer=name, rates=USUAL_RATES[name], steps=steps,
                                    looks=[t for t in TRIALS if t < steps], seed=seed) for name in OPTIMIZERS}
    read = [readings(a, start, net, x, y) for start, net in zip(a.starts, nets, strict=True)]
    seconds = (time.perf_counter() - started) / len(nets)
    for place, (start, at_start) in enumerate(zip(a.starts, read, strict=True)):
        which = {"architecture": a.name, "family": a.family, "kind": a.kind, "activation": a.activation,
                 "depth": a.depth, "start": start, "seed": seed}
        after = {f"{key}_{name}": value for name, course in courses.items()
                 for key, value in what_became(course, place).items()}
        yield which | at_start | after | {"dataset": dataset, "steps": steps, "seconds": round(seconds, 1)}


def what_became(course: Course, place: int) -> dict[str, object]:
    """Of the net at this place among the starts."""
    accuracies = course.accuracy[max(course.accuracy)][place]
    lowest = {f"trial_{t}": lowest_loss(loss[place]) for t, loss in course.loss.items() if t in TRIALS}
    return {"accuracy": float(accuracies.nan_to_num(0.0).max()), **lowest,
            "accuracies": " ".join(f"{a:.3f}" for a in accuracies.tolist())}


def lowest_loss(losses: Float[Tensor, " rate"]) -> float:
    return float(losses.nan_to_num(math.inf).min())


def readings(a: Architecture, start: float, net: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """Of the initial weights."""
    found = trainability(net, x, y, optimizer="momentum", trial=0, samples=SAMPLES)
    few, net = x[:SAMPLES].cpu(), net.cpu()
    return {"loss": found.loss, "constant_loss": found.constant_loss,
            **{f"remaining_{t}": found.kernel.decay.remaining(t) for t in (1_000, 10_000)},
            **{f"remaining_{t}_adam": found.kernel.adams.remaining(t) for t in (1_000, 10_000)},
            "condition": found.condition, "decades": decades(found), "cosine": last_layer_cosine(net, few),
            "depth_scales": depth_scales(a, start), "synflow": synflow(net, tuple(x.shape[1:])),
            "jacob_cov": jacobian_covariance(net, few[:FEWER]), "stable_rate": found.learning_rate}


def decades(found: Trainability) -> float:
    """By which the error signal changes from the last layer to the first, either way; inf where it is 0 somewhere."""
    signal = found.flow.path["log10_error_signal_norm"].dropna()
    change = abs(signal.iloc[-1] - signal.iloc[0])
    return float(change) if math.isfinite(change) else math.inf


def depth_scales(a: Architecture, start: float) -> float:
    """Depth over 6 xi_c of the infinitely wide plain net, 0 where xi_c is inf; nan where it has none."""
    weight_var = start**2 * (2.0 if a.activation == "relu" else 1.0)
    if a.family != "plain" or (a.activation == "relu" and weight_var > 2):  # the length of the signal has no limit
        return math.nan
    return float(a.depth / (FAR * theory.mean_field(a.activation, weight_var).xi_c))
