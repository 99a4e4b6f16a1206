"""What `run` can measure: a group of same-structure cells in, tidy rows out."""

from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import nn

from flowstudy.measure import jacobian_spectrum, stacked_gradient_flow, stacked_jacobian_spectrum
from flowstudy.measure.gradients import STATISTICS
from flowstudy.nets import initialize
from flowstudy.train import Dataset, Settings, Stack, stack_states, train
from flowstudy.train.any_module import EVALUATION_BATCH
from flowstudy.train.loop import History

from .body_moments import body_moments_rows
from .cells import NETS, Cell
from .shattering import gradient_around_circle_rows, gradient_correlation_rows

Tick = Callable[[int], object]


def training_loss(cells: Sequence[Cell], data: Dataset, tick: Tick) -> pd.DataFrame:
    """`epoch`, `loss` (mean training cross-entropy, nats per sample), `diverged` (first bad epoch, -1 if none)."""
    history = train_cells(cells, data, tick)
    nets, epochs = history.loss.shape
    return pd.DataFrame({
        "cell": torch.arange(nets).repeat_interleave(epochs).numpy(),
        "epoch": torch.arange(epochs).repeat(nets).numpy(),
        "loss": history.loss.flatten().numpy(),
        "diverged": history.diverged.repeat_interleave(epochs).numpy(),
    })


def accuracy(cells: Sequence[Cell], data: Dataset, tick: Tick) -> pd.DataFrame:
    """After the cell's epochs: `loss` (training cross-entropy), `train_accuracy` and `test_accuracy`, shares of the
    samples; nan where the net diverged."""
    history = train_cells(cells, data, tick)
    finite = history.loss[:, -1].isfinite()
    shares = {f"{part}_accuracy": share_right(history.stack, *samples).where(finite, torch.nan).numpy()
              for part, samples in (("train", (data.x_train, data.y_train)), ("test", (data.x_test, data.y_test)))}
    return pd.DataFrame({"cell": range(len(cells)), "loss": history.loss[:, -1].numpy()} | shares)


@torch.no_grad()
def share_right(nets: Stack, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Share of samples whose largest output is their label's, per net, float64 on the CPU."""
    right = sum((nets(part).argmax(-1) == labels).sum(-1)
                for part, labels in zip(x.split(EVALUATION_BATCH), y.split(EVALUATION_BATCH), strict=True))
    return right.double().cpu() / len(x)


def gradient_flow_rows(cells: Sequence[Cell], data: Dataset, tick: Tick, samples: int = 100) -> pd.DataFrame:
    """`gradient_flow`'s statistics per `layer`, on the first training samples, after the cell's epochs."""
    x, y = first_samples(data, samples)
    nets = trained(cells, data, tick)
    statistics = stacked_gradient_flow(nets.template, nets.state, x, y)
    layers = next(iter(statistics.values())).shape[1]
    return pd.DataFrame({
        "cell": torch.arange(len(nets)).repeat_interleave(layers).numpy(),
        "layer": torch.arange(1, layers + 1).repeat(len(nets)).numpy(),
    } | {name: statistics[name].flatten().cpu().numpy() for name in STATISTICS})


def jacobian_spectrum_rows(cells: Sequence[Cell], data: Dataset, tick: Tick, samples: int = 4,
                           part: str = "body") -> pd.DataFrame:
    """`log_singular_value` per `sample` and `rank` (1 is the largest), on the first training samples."""
    if part not in ("all", "body"):
        raise ValueError(f"run: `part` must be 'all' or 'body', got {part!r}.")
    x, _ = first_samples(data, samples)
    nets = trained(cells, data, tick)
    log_s = stacked_jacobian_spectrum(nets.template, nets.state, x, part=part)
    count, _, ranks = log_s.shape
    return pd.DataFrame({
        "cell": torch.arange(count).repeat_interleave(samples * ranks).numpy(),
        "sample": torch.arange(samples).repeat_interleave(ranks).repeat(count).numpy(),
        "rank": torch.arange(1, ranks + 1).repeat(count * samples).numpy(),
        "log_singular_value": log_s.flatten().numpy(),
    })


def spectrum_by_route(cells: Sequence[Cell], data: Dataset, tick: Tick) -> pd.DataFrame:
    """`log_singular_value` of the body Jacobian at the first sample by `route`: "float32" and "float64" multiply the
    layers out and take svdvals, "product" does not."""
    nets = trained(cells, data, tick)
    x, _ = first_samples(data, 1)
    frames = []
    for i in range(len(nets)):
        net = nets.net(i)
        exact = jacobian_spectrum(net, x, part="body", method="product").log_singular_values[0]
        logs = {"product": exact} | {str(dtype).removeprefix("torch."): multiplied_out(net.to(dtype), x.to(dtype))
                                     for dtype in (torch.float64, torch.float32)}
        frames += [pd.DataFrame({"cell": i, "route": route, "rank": range(1, len(log_s) + 1),
                                 "log_singular_value": log_s.double().cpu().numpy()}) for route, log_s in logs.items()]
    return pd.concat(frames, ignore_index=True)


@torch.no_grad()
def multiplied_out(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What every other tool does."""
    body = nn.Sequential(*net.hidden_layers[1:])
    return torch.linalg.svdvals(torch.func.jacrev(body)(net.hidden_layers[0](x)[0])).log()


MEASUREMENTS = {"training_loss": training_loss, "accuracy": accuracy, "gradient_flow": gradient_flow_rows,
                "jacobian_spectrum": jacobian_spectrum_rows, "spectrum_by_route": spectrum_by_route,
                "body_moments": body_moments_rows, "gradient_correlation": gradient_correlation_rows,
                "gradient_around_circle": gradient_around_circle_rows}


def build(cells: Sequence[Cell], data: Dataset) -> Stack:
    """The cells' nets as they start: one module, initialised for each cell in turn (building modules is what costs)."""
    first = cells[0]  # of a group: all cells have its structure
    net = NETS[first.net](data.x_train.shape[1], first.width, first.depth, data.classes, first.activation)
    states = []
    for cell in cells:
        if cell.net == "highway":
            net.set_gate_bias(cell.gate_bias)
        initialize(net, cell.init, seed=cell.seed, gain=cell.gain, bias_var=cell.bias_var)
        states.append({name: value.detach().clone() for name, value in net.named_parameters()})
    return stack_states(net, states, data.x_train.device)


def train_cells(cells: Sequence[Cell], data: Dataset, tick: Tick) -> History:
    def column(name: str) -> torch.Tensor:
        return torch.tensor([getattr(cell, name) for cell in cells], dtype=torch.float64, device=data.x_train.device)

    first = cells[0]
    settings = Settings(column("learning_rate"), column("momentum"), column("decay"), first.epochs, first.batch_size,
                        first.order_seed)
    return train(build(cells, data), data, settings, tick)


def trained(cells: Sequence[Cell], data: Dataset, tick: Tick) -> Stack:
    """The cells' nets after their epochs."""
    return train_cells(cells, data, tick).stack if cells[0].epochs else build(cells, data)


def first_samples(data: Dataset, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    if not 1 <= samples <= len(data.x_train):
        raise ValueError(f"run: `samples` must be between 1 and the training set's {len(data.x_train)}, got {samples}.")
    return data.x_train[:samples], data.y_train[:samples]
