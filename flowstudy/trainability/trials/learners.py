"""The learners of a trial: one copy of the model at one learning rate, or a stack of copies at all rates at once."""

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flowstudy.measure.gradients.losses import IGNORED, Objective
from flowstudy.measure.models.context import RandomState, modes_of_the_model
from flowstudy.measure.models.copies import own_copy
from flowstudy.measure.models.inputs import Inputs
from flowstudy.torch_settings import rules_only
from flowstudy.train.stacks.any_module import per_net
from flowstudy.train.stacks.group import CONVOLUTIONS

from .optimizers import Optimizer, warm_up_factor

CALL = "trainability"
SAME = 1e-4         # largest relative difference between stacked and single gradients taken for float32 rounding
STACK_BYTES = 2**28  # the most bytes of stacked weights; larger nets keep the machine busy one by one


@dataclass(frozen=True)
class TrialTask:
    """What is learnt, the same for every learning rate.

    Attributes:
        x, y: samples and targets, on the model's device.
        objective: the loss.
        has_classes: accuracy is defined.
        batches: the samples of each step.
        looked_at: the samples, in batches of the same size, on which the nets are evaluated.
        draws: the global random state; the nets draw from their own seeds where they draw at all.
        seed: of what they draw: the same at every learning rate, another at each step.
        warm_up: steps over which the learning rate grows linearly to its value.
    """

    x: Inputs
    y: Tensor
    objective: Objective
    has_classes: bool
    batches: Int[Tensor, "step sample"]
    looked_at: Int[Tensor, "batch sample"]
    draws: RandomState
    seed: int
    warm_up: int

    def outcome(self, net: Callable[[Tensor], object], index: Int[Tensor, " sample"],
                place: int) -> tuple[object, Tensor]:
        """The outputs that the loss is computed from, and the loss, with random numbers drawn from a given seed."""
        self.draw_anew(place)
        with modes_of_the_model(self.x.device):
            y = self.y[index]
            output = self.objective.taken(self.x[index].call_model(net), y)
            return output, self.objective.value(output, y)

    def draw_anew(self, place: int) -> None:
        seed = (self.seed * 1_000_003 + place) % 2**32
        if self.draws.drew_inside:
            torch.default_generator.manual_seed(seed)
            if self.x.device.type == "cuda":
                with torch.cuda.device(self.x.device):
                    torch.cuda.manual_seed(seed)
        if self.draws.drew_outside:
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002  the global state is what models draw from

    def share_right(self, output: Tensor, index: Int[Tensor, " sample"]) -> Tensor:
        """Share of the counted labels whose class has the largest output; nan where the loss has no classes."""
        if not self.has_classes:
            return torch.full((), torch.nan, dtype=torch.float64, device=self.x.device)
        y = self.y[index]
        return (output.argmax(1) == y).double().sum() / (y != IGNORED).sum()   # no class is IGNORED


def averages(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[list[float], list[float]]:
    """Means over the batches of (net,) losses and shares, which are of equal size."""
    losses, shares = (torch.stack([part.detach().double() for part in parts]).mean(0).tolist()
                      for parts in zip(*pairs, strict=True))
    return losses, shares


class Alone:
    """A copy of the model at one learning rate, trained as anyone trains it; `rows` is its place in the grid."""

    def __init__(self, model: nn.Module, task: TrialTask, optimizer: Optimizer, rate: float, row: int):
        self.net, self.task, self.rate, self.rows = own_copy(CALL, model), task, rate, [row]
        self.weights = [p for p in self.net.parameters() if p.requires_grad]
        self.optimizer = optimizer.of_torch(self.weights, lr=rate, foreach=True)

    def step(self, step: int) -> list[float]:
        """Make this step, from 1; the loss before it.  No step is made where that is not finite."""
        _, value = self.task.outcome(self.net, self.task.batches[step - 1], step)
        loss = value.item()
        if value.requires_grad and np.isfinite(loss):
            gradients = torch.autograd.grad(value, self.weights, allow_unused=True)
            for weight, gradient in zip(self.weights, gradients, strict=True):
                weight.grad = gradient
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * warm_up_factor(step, self.task.warm_up)
            self.optimizer.step()
        return [loss]

    def evaluate(self) -> tuple[list[float], list[float]]:
        """Loss and accuracy as it trains: in its mode, with each batch's own statistics; a copy makes the passes.

        No weight asks for a gradient, but gradients are on: a model may take some in its forward.
        """
        net, pairs = own_copy(CALL, self.net).requires_grad_(False), []
        for place, index in enumerate(self.task.looked_at):
            output, value = self.task.outcome(net, index, -1 - place)
            pairs.append((value.view(1), self.task.share_right(output, index).view(1)))
        return averages(pairs)

    def keep(self, rows: Collection[int]) -> None:
        self.rows = [row for row in self.rows if row in rows]


class Stacked:
    """The model at several learning rates at once: vmap over its trainable weights; the rest they share.

    Only for models whose passes change nothing and draw nothing; see `can_stack`.
    """

    def __init__(self, model: nn.Module, task: TrialTask, optimizer: Optimizer, rates: Sequence[float]):
        self.template, self.task, self.optimizer = own_copy(CALL, model), task, optimizer
        self.rows = list(range(len(rates)))
        trainable = {name: p for name, p in self.template.named_parameters() if p.requires_grad}
        self.state = {name: torch.stack([p.detach()] * len(rates)).requires_grad_() for name, p in trainable.items()}
        self.moments = [[torch.zeros_like(w) for w in self.weights] for _ in range(optimizer.moments)]
        self.rates = per_net(torch.tensor(rates, dtype=torch.float64), self.weights)

    @property
    def weights(self) -> list[Tensor]:
        return list(self.state.values())

    def step(self, step: int) -> list[float]:
        """Make this step, from 1; the losses before it.  A net's nan stays its own."""
        losses, gradients = self.gradients(self.task.batches[step - 1])
        factor = warm_up_factor(step, self.task.warm_up)
        with torch.no_grad():
            rates = self.rates if factor == 1 else [rate * factor for rate in self.rates]
            self.optimizer.update(self.weights, self.moments, gradients, rates, step)
        return losses.tolist()

    def gradients(self, index: Int[Tensor, " sample"]) -> tuple[Float[Tensor, " net"], tuple[Tensor, ...]]:
        """The losses (net,) and their gradients by weight, (net, ...) each."""
        losses = self.of_each(lambda output, value: value, index)
        return losses.detach(), torch.autograd.grad(losses.sum(), self.weights, materialize_grads=True)

    def of_each(self, result: Callable[[Tensor, Tensor], object], index: Int[Tensor, " sample"]) -> object:
        """A result of every net's output and loss."""
        def one(state: dict[str, Tensor]) -> object:
            return result(*self.task.outcome(
                lambda *args, **kwargs: torch.func.functional_call(self.template, state, args, kwargs), index, 0))

        return torch.func.vmap(one)(self.state)

    @torch.no_grad()
    def evaluate(self) -> tuple[list[float], list[float]]:
        return averages([self.of_each(lambda output, value, index=index: (value, self.task.share_right(output, index)),
                                      index) for index in self.task.looked_at])

    def keep(self, rows: Collection[int]) -> None:
        places = [place for place, row in enumerate(self.rows) if row in rows]
        self.rows = [self.rows[place] for place in places]
        self.state = {name: w.detach()[places].requires_grad_() for name, w in self.state.items()}
        self.moments = [[moment[places] for moment in moments] for moments in self.moments]
        self.rates = [rate[places] for rate in self.rates]


def can_stack(probe: nn.Module, stacked: Stacked) -> bool:
    """Whether the copies can be stacked: the stack's first gradients equal those of a single copy, to rounding.

    Convolutions stay apart on a CPU, where stacking makes them slower, and so do large nets.
    """
    task, weights = stacked.task, stacked.weights
    if task.draws.drew_outside:  # vmap sees what torch draws, and refuses it
        return False
    if any(w.is_complex() for w in weights) or sum(w.nbytes for w in weights) > STACK_BYTES:
        return False
    if task.x.device.type == "cpu" and any(isinstance(module, CONVOLUTIONS) for module in probe.modules()):
        return False
    try:
        with rules_only():
            _, gradients = stacked.gradients(task.batches[0])
    except Exception:  # whatever vmap cannot do, in a model and a loss of any kind; the net by itself has done it
        return False
    _, value = task.outcome(probe, task.batches[0], 0)
    own = torch.autograd.grad(value, [p for p in probe.parameters() if p.requires_grad], materialize_grads=True,
                              allow_unused=True)
    error = sum((each - one).double().square().flatten(1).sum(1) for each, one in zip(gradients, own, strict=True))
    size = sum(one.double().square().sum() for one in own)
    return bool((error <= SAME**2 * size).all())
