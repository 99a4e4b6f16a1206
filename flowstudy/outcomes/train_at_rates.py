"""Nets of one architecture really trained, from all starts and at all learning rates at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from flowstudy.trainability.trials.optimizers import OPTIMIZERS
from flowstudy.trainability.trials.trial import flushed_denormals

BATCH, LOOKED_AT = 32, 500


@dataclass(frozen=True)
class Course:
    """Loss and accuracy on samples of the training set, by number of steps made, start and rate; nan where it diverged.

    Attributes:
        loss, accuracy: by steps, (start, rate) each.
    """

    loss: dict[int, Float[Tensor, "start rate"]]
    accuracy: dict[int, Float[Tensor, "start rate"]]


def train_at_rates(nets: Sequence[nn.Module], x: Float[Tensor, "sample *pixel"], y: Int[Tensor, " sample"], *,
                   optimizer: str, rates: Sequence[float], steps: int, looks: Sequence[int] = (),
                   seed: int = 0) -> Course:
    """Train a copy of every net at every rate, all on the same batches of 32.

    Args:
        nets: of one architecture, with their initial weights, which stay; no random parts, no buffers that change.
        optimizer: "sgd", "momentum" (0.9), "adam" or "adamw".
        looks: after how many steps loss and accuracy are taken, beside the last.
        seed: of the batches, and of the up to 500 samples looked at.
    """
    learning = Learning(nets, optimizer, rates, x, y)
    generator = torch.Generator().manual_seed(seed)
    batch = min(BATCH, len(x))
    looked_at = torch.randperm(len(x), generator=generator)[:max(1, min(LOOKED_AT, len(x)) // batch) * batch]
    order = torch.cat([torch.randperm(len(x), generator=generator) for _ in range(-(-steps * batch // len(x)))])
    course = Course({}, {})
    with flushed_denormals():
        for step in range(1, steps + 1):
            learning.step(order[(step - 1) * batch:step * batch].to(x.device), step)
            if step in (*looks, steps):
                course.loss[step], course.accuracy[step] = learning.seen(looked_at.view(-1, batch).to(x.device))
    return course


class Learning:
    """Copies of nets side by side: net i at rate j is number i * rates + j."""

    def __init__(self, nets: Sequence[nn.Module], optimizer: str, rates: Sequence[float], x: Tensor, y: Tensor):
        self.template, self.x, self.y, self.shape = nets[0], x, y, (len(nets), len(rates))
        self.rule = OPTIMIZERS[optimizer]
        starts = [dict(net.named_parameters()) for net in nets]
        self.state = {name: torch.stack([start[name].detach() for start in starts for _ in rates]).requires_grad_()
                      for name in starts[0]}
        self.weights = list(self.state.values())
        self.moments = [[torch.zeros_like(w) for w in self.weights] for _ in range(self.rule.moments)]
        every = torch.tensor(list(rates) * len(nets), dtype=torch.float64)
        self.rates = [every.to(w).view(-1, *[1] * (w.ndim - 1)) for w in self.weights]

    def step(self, index: Int[Tensor, " sample"], step: int) -> None:
        losses = F.cross_entropy(self.outputs(index).movedim(0, -1), self.labels(index), reduction="none")
        gradients = torch.autograd.grad(losses.mean(0).sum(), self.weights)
        with torch.no_grad():
            self.rule.update(self.weights, self.moments, gradients, self.rates, step)

    def outputs(self, index: Int[Tensor, " sample"]) -> Float[Tensor, "net sample class"]:
        return torch.func.vmap(lambda state: torch.func.functional_call(self.template, state, (self.x[index],)))(
            self.state)

    def labels(self, index: Int[Tensor, " sample"]) -> Int[Tensor, "sample net"]:
        return self.y[index].unsqueeze(1).expand(-1, self.shape[0] * self.shape[1])

    @torch.no_grad()
    def seen(self, batches: Int[Tensor, "batch sample"]) -> tuple[Tensor, Tensor]:
        """Loss and accuracy, each net by the statistics of the batches, as it trains."""
        losses, right = [], []
        for index in batches:
            outputs = self.outputs(index).double()
            losses.append(F.cross_entropy(outputs.movedim(0, -1), self.labels(index), reduction="none").mean(0))
            right.append((outputs.argmax(-1).mT == self.labels(index)).double().mean(0))
        loss, accuracy = torch.stack(losses).mean(0), torch.stack(right).mean(0)
        finite = loss.isfinite()
        return tuple(torch.where(finite, value, torch.nan).view(self.shape).cpu() for value in (loss, accuracy))
