"""A short trial: copies of the model really learn for some steps, each at a learning rate of the usual grid."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor, nn

from flowstudy.arguments import a_real, check_real, check_whole, several
from flowstudy.measure.gradients.losses import OWN, Loss, Objective, check_label_range
from flowstudy.measure.models.context import RandomState, in_own_context
from flowstudy.measure.models.copies import check_module, own_copy
from flowstudy.measure.models.inputs import Inputs, Shown, check_batch, check_samples_apart
from flowstudy.measure.models.precision.attempts import measured_targets, own_dtype
from flowstudy.refusal import RefusalError, RefusalTypeError

from .learners import Alone, Stacked, TrialTask, can_stack
from .optimizers import OPTIMIZERS, Optimizer
from .race import Clock, Race
from .rates import USUAL_RATES

LOOKED_AT = 2_000  # the most samples on which loss and accuracy are evaluated
LOOKING = 0.25     # largest share of the time limit for evaluation; large nets are evaluated on fewer samples


@dataclass(frozen=True)
class Trial:
    """What `run_trial` saw.

    Attributes:
        frame: a row per learning rate: `learning_rate`, `steps` (made), `loss` (mean over the samples looked at, after
            the last of these steps; nan where it diverged), `accuracy` (share of them that is right; nan where the loss
            has no classes, or where it diverged), `diverged` (its loss was not finite), `left_out` (the time was over
            before its last step).
        loss_at_start, accuracy_at_start: the same before the first step.
        steps: asked for.
        seconds: taken.
        optimizer: its name.
        stacked: all rates learnt at once, not one after the other.
        looked_at: the samples of which loss and accuracy are the means.
    """

    frame: pd.DataFrame
    loss_at_start: float
    accuracy_at_start: float
    steps: int
    seconds: float
    optimizer: str
    stacked: bool
    looked_at: Int[Tensor, " sample"]

    @property
    def best(self) -> pd.Series | None:
        """The row of the lowest loss; None where every rate diverged."""
        finite = self.frame.loss.dropna()
        return None if finite.empty else self.frame.loc[finite.idxmin()]

    @property
    def complete(self) -> bool:
        """Nothing was left out for want of time."""
        return not self.frame.left_out.any()


@in_own_context
def run_trial(call: str, model: nn.Module, x: Shown, y: Tensor | None, loss: str | Loss, *, optimizer: str,
              output: str | int | None = None, steps: int = 100, batch_size: int = 64, seconds: float | None = None,
              seed: int = 0, warm_up: int = 0, rates: Sequence[float] | None = None, progress: bool = False) -> Trial:
    """Train copies of the model from its weights, one at each learning rate, on the same batches.

    By successive halving: all rates make the first quarter of the steps, the better half of them (by loss) makes the
    second quarter, and the best quarter the rest; rates that are level with the best one, to 5 % of its loss, go on
    too, so that none is dropped before there is something to choose by.  A rate whose loss is not finite is dropped at
    once.

    The copies have the model's dtype and train in its mode; a model in evaluation mode trains in training mode.  Loss
    and accuracy are taken as it trains: on whole batches drawn once, of up to 2,000 samples in all (one batch at
    least; fewer where they would take a quarter of `seconds`), with the batch's own statistics and with dropout, on a
    copy, so that looking changes nothing.  Frozen parameters stay, and the model, its gradients and the global random
    states are left as they are.  Numbers below the smallest normal one count as 0 on a CPU.

    Args:
        call: the public function that asks, for error messages.
        model: any module that `gradient_flow` takes.
        x, y: samples and their targets, (sample, ...); batches are cut from orders of all samples, one after the other.
        loss: "cross_entropy", "mse", or a function (output, y) -> scalar, the mean over samples.
        output: the entry of the model's output that it is of.
        optimizer: "sgd", "momentum" (SGD with momentum 0.9), "adam" or "adamw", in PyTorch's conventions and defaults.
        seconds: of wall time; when they are over, the trial stops between two steps. None is no limit.
        seed: of the batches, and of what the model draws.
        warm_up: the learning rate grows linearly over so many steps.
        rates: learning rates; None is the usual grid of the optimizer.
        progress: say on stderr how many seconds are expected, and show a bar.

    Returns:
        The Trial.  On a CPU its numbers are the same for a seed, whatever the model drew before.

    Raises:
        ValueError, TypeError: no targets, nothing to train, an unknown optimizer, a batch or labels that do not fit.

    What it cannot try: models that checkpoint with use_reentrant=True. Hooks on parameters are not copied, and what
    Python cannot copy (a lock, an open file) the copies share. The copies, one for each rate with its optimizer's
    moments, must fit in memory side by side.

    Source: Jamieson & Talwalkar 2016 (successive halving; the rule for level rates is our own).
    """
    clock = Clock(seconds)
    check_module(call, model)
    inputs, objective = check_batch(call, model, x), Objective(call, loss, output)
    check_targets_given(call, inputs, y, loss)
    check_samples_apart(call, inputs)
    check_settings(call, optimizer, steps, batch_size, seconds, warm_up)
    if not any(p.requires_grad for p in model.parameters()):
        raise RefusalError(f"{call}: `model` must have a parameter that requires a gradient, got "
                           f"{type(model).__name__} without any. Call model.requires_grad_(True).")
    rates = check_rates(call, USUAL_RATES[optimizer] if rates is None else rates)
    task = task_of(model, inputs, y, objective, steps, min(batch_size, len(inputs)), seed, warm_up)
    try:
        with flushed_denormals():
            race = race_of(model, task, OPTIMIZERS[optimizer], rates, clock)
            race.run(steps, progress)
    finally:
        task.draws.restore()
    return Trial(race.frame(), *race.at_start, steps, clock.taken(), optimizer, race.stacked, race.looked_at)


def race_of(model: nn.Module, task: TrialTask, optimizer: Optimizer, rates: Sequence[float], clock: Clock) -> Race:
    """All rates before their first step, the model looked at."""
    call = task.objective.call
    net = own_copy(call, model)
    if not net.training:
        net.train()
    probe, before = own_copy(call, net), clock.taken()
    changed = changed_by_a_pass(probe, task)
    task = looking_in_time(task, clock, clock.taken() - before, len(rates))
    learners = learners_of(net, probe, changed, task, optimizer, rates)
    before = clock.taken()
    (at_start,), (share_at_start,) = Alone(net, task, optimizer, rates[0], 0).evaluate()
    return Race(learners, rates, (at_start, share_at_start), clock.taken() - before, clock)


def task_of(model: nn.Module, x: Inputs, y: Tensor, objective: Objective, steps: int, batch_size: int, seed: int,
            warm_up: int) -> TrialTask:
    with own_dtype():
        x, y = x.measured(model), measured_targets(model, y)
    batches, looked_at = (index.to(x.device) for index in orders(len(x), batch_size, steps, seed))
    has_classes = objective.loss == "cross_entropy" and not y.is_floating_point()
    return TrialTask(x, y, objective, has_classes, batches, looked_at, RandomState(x.device), seed, warm_up)


def orders(samples: int, batch_size: int, steps: int, seed: int) -> tuple[Int[Tensor, "step sample"],
                                                                         Int[Tensor, "batch sample"]]:
    """The samples of every step, epoch after epoch in a new order each, and those that are looked at."""
    generator = torch.Generator().manual_seed(seed)
    looked_at = torch.randperm(samples, generator=generator)
    batches = max(1, min(LOOKED_AT, samples) // batch_size)
    epochs = -(-steps * batch_size // samples)
    order = torch.cat([torch.randperm(samples, generator=generator) for _ in range(epochs)])
    return order[:steps * batch_size].view(steps, batch_size), looked_at[:batches * batch_size].view(batches, -1)


def changed_by_a_pass(probe: nn.Module, task: TrialTask) -> bool:
    """Whether a pass changes the model's buffers; its output and loss are checked, and its random draws noticed."""
    index, objective = task.batches[0], task.objective
    before = {name: buffer.clone() for name, buffer in probe.named_buffers()}
    with task.draws.replayed():
        output = task.x[index].call_model(probe)
        taken = objective.taken(output, task.y[index])
        objective.check(taken, task.y[index])
        if objective.loss == "cross_entropy":
            check_label_range(objective.call, task.y, taken.shape[1])
        objective.value(taken, task.y[index])
    after = dict(probe.named_buffers())
    return before.keys() != after.keys() or not all(torch.equal(before[name], after[name]) for name in before)


def looking_in_time(task: TrialTask, clock: Clock, seconds: float, rates: int) -> TrialTask:
    """The task with so many batches to look at as there is time for: once at the start, and once at every rate."""
    affordable = LOOKING * clock.limit / max(seconds * (1 + rates), sys.float_info.min)
    return replace(task, looked_at=task.looked_at[:max(1, int(min(affordable, len(task.looked_at))))])


def learners_of(net: nn.Module, probe: nn.Module, changed: bool, task: TrialTask, optimizer: Optimizer,
                rates: Sequence[float]) -> list[Alone] | list[Stacked]:
    """One stack for all rates if the model can be stacked, else a copy for each; `probe` is a copy after one pass."""
    if len(rates) > 1 and not changed:
        stacked = Stacked(net, task, optimizer, rates)
        if can_stack(probe, stacked):
            return [stacked]
    return [Alone(net, task, optimizer, rate, row) for row, rate in enumerate(rates)]


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Numbers below the smallest normal one count as 0 in this thread: they cost a CPU many times their like."""
    already = sys.float_info.min * 0.5 == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(already)


# --- what is asked for -----------------------------------------------------------------------------------------------


def check_targets_given(call: str, x: Inputs, y: object, loss: object) -> None:
    if isinstance(loss, str) and loss == OWN:
        raise RefusalError(f"{call}: `loss` must be of outputs and targets that can be told apart, got 'output'. Pass "
                           "the labels as `y`, loss='cross_entropy' or a function (output, y), and as `output=` the "
                           "entry of the model's output that it is of.")
    if y is None:
        raise RefusalError(f"{call}: `y` must be given for a trial, got None. Training needs targets.")
    if not isinstance(y, Tensor):
        raise RefusalTypeError(f"{call}: `y` must be a tensor of targets, got {type(y).__name__}. Use torch.as_tensor.")
    if y.ndim == 0 or len(y) != len(x):
        raise RefusalError(f"{call}: `y` must have one target per sample, got {tuple(y.shape)} for {len(x)} samples.")
    if y.device != x.device:
        raise RefusalError(f"{call}: `y` must be on the device of `x`, {x.device}, got {y.device}. "
                           f"Pass y.to({str(x.device)!r}).")


def check_settings(call: str, optimizer: str, steps: int, batch_size: int, seconds: float | None,
                   warm_up: int) -> None:
    if not isinstance(optimizer, str) or optimizer not in OPTIMIZERS:
        raise RefusalError(f"{call}: `optimizer` must be one of {', '.join(OPTIMIZERS)}, got {optimizer!r}. "
                           "A model that another one trains is tried by the nearest of these.")
    for name, value, least in (("steps", steps, 1), ("batch_size", batch_size, 1), ("warm_up", warm_up, 0)):
        check_whole(call, name, value, least)
    if seconds is not None:
        check_real(call, "seconds", seconds, "at least 0", " None is no limit.")


def check_rates(call: str, rates: Sequence[float]) -> list[float]:
    several(a_real("at least 0 and finite"))(call, "rates", rates)
    return [float(rate) for rate in rates]
