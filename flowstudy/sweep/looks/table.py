"""The measurements of `run`, called looks: functions of a group of cells at one moment that return tidy rows."""

import inspect
from collections.abc import Callable

import pandas as pd
import torch
from torch import nn

from flowstudy.data import Dataset
from flowstudy.measure import jacobian_spectrum, stacked_gradient_flow, stacked_jacobian_spectrum
from flowstudy.measure.gradients.statistics import STATISTICS
from flowstudy.refusal import RefusalError
from flowstudy.train import Stack
from flowstudy.train.stacks.any_module import EVALUATION_BATCH

from .body_moments import body_moments_rows
from .gates import gate_routing, gate_routing_by_class, lesions
from .moment import CellsMoment
from .shattering import gradient_around_circle_rows, gradient_correlation_rows

Look = Callable[..., pd.DataFrame]  # (moment, data, **options) -> rows with `place`, a cell's position in moment.cells


def training_loss(moment: CellsMoment, data: Dataset) -> pd.DataFrame:
    """`epoch`, `loss` (mean training cross-entropy, nats per sample), `diverged` (first bad epoch, -1 if none)."""
    nets, epochs = moment.losses.shape
    bad = ~moment.losses.isfinite()
    diverged = torch.where(bad.any(1), bad.int().argmax(1), -1)
    return pd.DataFrame({
        "place": torch.arange(nets).repeat_interleave(epochs).numpy(),
        "epoch": torch.arange(epochs).repeat(nets).numpy(),
        "loss": moment.losses.masked_fill(bad, torch.nan).flatten().numpy(),
        "diverged": diverged.repeat_interleave(epochs).numpy(),
    })


def accuracy(moment: CellsMoment, data: Dataset) -> pd.DataFrame:
    """`loss` (training cross-entropy after the last whole epoch), `train_accuracy` and `test_accuracy`, shares of the
    samples; nan where the net diverged."""
    loss = moment.losses[:, -1]
    finite = loss.isfinite()
    shares = {f"{part}_accuracy": share_right(moment.stack, *samples).where(finite, torch.nan).numpy()
              for part, samples in (("train", (data.x_train, data.y_train)), ("test", (data.x_test, data.y_test)))}
    return pd.DataFrame({"place": range(len(finite)), "loss": loss.numpy()} | shares)


@torch.no_grad()
def share_right(nets: Stack, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Share of samples whose largest output is their label's, per net, float64 on the CPU."""
    right = sum((nets(part).argmax(-1) == labels).sum(-1)
                for part, labels in zip(x.split(EVALUATION_BATCH), y.split(EVALUATION_BATCH), strict=True))
    return right.double().cpu() / len(x)


def gradient_flow_rows(moment: CellsMoment, data: Dataset, samples: int = 100) -> pd.DataFrame:
    """`gradient_flow`'s statistics per `layer`, on the first training samples."""
    (x, y), nets = first_samples(data, samples), moment.stack
    statistics = stacked_gradient_flow(nets.template, nets.state, x, y)
    layers = next(iter(statistics.values())).shape[1]
    return pd.DataFrame({
        "place": torch.arange(len(nets)).repeat_interleave(layers).numpy(),
        "layer": torch.arange(1, layers + 1).repeat(len(nets)).numpy(),
    } | {name: statistics[name].flatten().cpu().numpy() for name in STATISTICS})


def jacobian_spectrum_rows(moment: CellsMoment, data: Dataset, samples: int = 4, part: str = "body") -> pd.DataFrame:
    """`log_singular_value` per `sample` and `rank` (1 is the largest), on the first training samples."""
    (x, _), nets = first_samples(data, samples), moment.stack
    log_s = stacked_jacobian_spectrum(nets.template, nets.state, x, part=part)
    count, _, ranks = log_s.shape
    return pd.DataFrame({
        "place": torch.arange(count).repeat_interleave(samples * ranks).numpy(),
        "sample": torch.arange(samples).repeat_interleave(ranks).repeat(count).numpy(),
        "rank": torch.arange(1, ranks + 1).repeat(count * samples).numpy(),
        "log_singular_value": log_s.flatten().numpy(),
    })


def spectrum_by_route(moment: CellsMoment, data: Dataset) -> pd.DataFrame:
    """`log_singular_value` of the body Jacobian at the first sample by `route`: "float32" and "float64" multiply the
    layers out and take svdvals, "product" does not."""
    (x, _), nets = first_samples(data, 1), moment.stack
    frames = []
    for i in range(len(nets)):
        net = nets.net(i)
        exact = jacobian_spectrum(net, x, part="body", method="product").log_singular_values[0]
        logs = {"product": exact} | {str(dtype).removeprefix("torch."): multiplied_out(net.to(dtype), x.to(dtype))
                                     for dtype in (torch.float64, torch.float32)}
        frames += [pd.DataFrame({"place": i, "route": route, "rank": range(1, len(log_s) + 1),
                                 "log_singular_value": log_s.double().cpu().numpy()}) for route, log_s in logs.items()]
    return pd.concat(frames, ignore_index=True)


@torch.no_grad()
def multiplied_out(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Log singular values of the body's Jacobian, multiplied out as other tools do."""
    body = nn.Sequential(*net.hidden_layers[1:])
    return torch.linalg.svdvals(torch.func.jacrev(body)(net.hidden_layers[0](x)[0])).log()


def first_samples(data: Dataset, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    if samples > len(data.x_train):  # the data set is smaller than the plan's check assumed
        raise RefusalError(f"run: `samples` must be between 1 and the training set's {len(data.x_train)}, got "
                           f"{samples}.")
    return data.x_train[:samples], data.y_train[:samples]


MEASUREMENTS: dict[str, Look] = {
    "training_loss": training_loss, "accuracy": accuracy, "gradient_flow": gradient_flow_rows,
    "jacobian_spectrum": jacobian_spectrum_rows, "spectrum_by_route": spectrum_by_route,
    # of highway nets
    "gate_routing": gate_routing, "gate_routing_by_class": gate_routing_by_class, "lesions": lesions,
    # of nets as they start
    "body_moments": body_moments_rows, "gradient_correlation": gradient_correlation_rows,
    "gradient_around_circle": gradient_around_circle_rows,
}
AS_THEY_START = {  # measurements that refuse trained nets, with the words that the error uses for them
    "body_moments": "body_moments", "gradient_correlation": "input gradients",
    "gradient_around_circle": "input gradients",
}
# Options that every measurement of nets in training accepts; at these defaults they are left out of the table's name.
OF_TRAINING = {"at": None, "precision": "float32"}
FEWER = {"training_loss": ("precision",), **dict.fromkeys(AS_THEY_START, ())}  # losses are of every epoch anyway


def options_of(measure: str) -> dict[str, object]:
    """The options of a measurement with their defaults.

    They are the arguments of its function after (moment, data), and, for nets in training, those of `OF_TRAINING`.
    """
    own = list(inspect.signature(MEASUREMENTS[measure]).parameters.values())[2:]
    return {p.name: p.default for p in own} | {name: OF_TRAINING[name] for name in FEWER.get(measure, OF_TRAINING)}
