"""The training loop: a stack of nets, SGD with momentum, each net with its own settings."""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flowstudy.arguments import a_whole, check_function, instance_of, optional, takes
from flowstudy.data import Dataset
from flowstudy.refusal import RefusalError
from flowstudy.train.stacks.compiled.compiler import library
from flowstudy.train.stacks.ensemble import Stack
from flowstudy.train.stacks.four_launches.there import why_not
from flowstudy.train.stacks.group import Group

from .batches import batches, padded_size
from .checkpoint import Checkpoint
from .observing import Moment, Observer, RecordAt
from .precision import matrix_precision

LEARNING_RATE_FLOOR = 1e-5  # Srivastava et al. 2015: a column of the authors' search tables
# Of the backends that a machine may lack, why it has none; "" where it has.
MISSING = {"compiled": lambda device: "" if device.type == "cpu" and library()[0] else library()[1] or f"on {device}",
           "triton": lambda device: why_not(device) if device.type == "cuda" else f"on {device}"}
SEGMENT = 1.0  # seconds of steps between two looks at the clock, where a checkpoint is kept


@dataclass(frozen=True)
class Settings:
    """How the nets of a stack learn: what is per net is a (net,) float64 tensor, the rest they share.

    Attributes:
        learning_rate: step size of a constant gradient, in the authors' convention v = m v - lr (1 - m) g, w += v:
            momentum does not rescale it.  PyTorch's lr is learning_rate * (1 - momentum).
        momentum: m, in [0, 1).
        decay: factor on the learning rate after each epoch, down to a floor of 1e-5.
        epochs: passes over the training set.
        batch_size: samples per update; the last batch of an epoch may be smaller.
        order_seed: of the order of samples.  Nets of a stack share it: common random numbers sharpen comparisons.
        precision: "float32", or "tf32" for CUDA's faster matrix products of 10 bits.
    """

    learning_rate: Float[Tensor, " net"]
    momentum: Float[Tensor, " net"]
    decay: Float[Tensor, " net"]
    epochs: int
    batch_size: int
    order_seed: int = 0
    precision: str = "float32"

    @takes(epoch=a_whole(0))
    def step_size(self, epoch: int) -> Float[Tensor, " net"]:
        """The factor on the gradient in one epoch.

        Args:
            epoch: passes over the training set before it.

        Returns:
            (net,) float64: max(learning_rate * decay^epoch, 1e-5) * (1 - momentum).
        """
        rate = (self.learning_rate * self.decay**epoch).clamp(min=LEARNING_RATE_FLOOR)
        return rate * (1 - self.momentum)


@dataclass(frozen=True)
class History:
    """What training left behind.

    Attributes:
        loss: mean training cross-entropy [nats per sample] over the whole training set, after each epoch; entry 0 is
            before training.  nan from the epoch on in which the net diverged.
        diverged: the first epoch after which the loss was not finite; -1 for nets that stayed finite.
        stack: the nets as trained; one that diverged as it was after that epoch.
        backend: what computed the steps: "compiled" C or "torch" on a CPU, "triton" or a "cuda graph" on a GPU.  The
            numbers of two backends differ by rounding.
    """

    loss: Float[Tensor, "net epochs"]
    diverged: Int[Tensor, " net"]
    stack: Stack
    backend: str = "torch"


@dataclass
class Progress:
    """How far training has come, all of it: what a checkpoint holds beside weights and velocities."""

    alive: Tensor                # (net,) bool
    losses: list[Tensor] = field(default_factory=list)  # (net,) each
    done: int = 0                # updates


@takes(nets=instance_of(Stack, "a Stack"), data=instance_of(Dataset, "a Dataset"),
       settings=instance_of(Settings, "a Settings"), tick=check_function,
       at=optional(instance_of(RecordAt, "a RecordAt")), checkpoint=optional(instance_of(Checkpoint, "a Checkpoint")))
def train(nets: Stack, data: Dataset, settings: Settings, tick: Callable[[float], object] = lambda _nets: None, *,
          at: RecordAt | None = None, observer: Observer | None = None,
          checkpoint: Checkpoint | None = None) -> History:
    """Train every net of the stack on the same batches; nets do not interact, whatever becomes of one of them.

    A net whose loss is not finite after an epoch is dropped: it costs nothing from then on.  What a net becomes does
    not depend on its stack, nor on the activations of others in it: on a CPU to the last bit, on a GPU to float32's
    rounding.  On a CPU numbers below the smallest normal one count as 0; CUDA's products keep them.

    Args:
        nets: of one structure; fully connected ones may differ in their activation.
        data: inputs on the stack's device, flat ones for fully connected nets.
        settings: on any device.
        tick: called with a number of nets for each epoch, or part of one, that is over for them, for a progress bar.
        at: when `observer` is called.
        checkpoint: a run that was killed goes on from it, to the same numbers; removed by the caller.

    Returns:
        A History: `loss` (net, epochs + 1) [nats per sample], `diverged` (net,), and the trained stack.

    Raises:
        ValueError: nets with backward hooks, which would not be called, or with frozen weights, which would be trained;
            data on another device than the nets.
    """
    check_nets(nets.template)
    check_device_of(nets, data)
    run = Run(nets, data, settings, tick, observer, checkpoint)
    marks = at.updates(settings.epochs, run.per_epoch) if at is not None and observer is not None else []
    with matrix_precision(settings.precision, data.x_train.device):
        run.start(0 in marks)
        for epoch in range(run.progress.done // run.per_epoch, settings.epochs):
            run.epoch(epoch, marks)
    return run.history()


def seconds_per_update(nets: Stack, data: Dataset, settings: Settings) -> float:
    """Of the stack's first updates, made on copies: a forecast of what training takes."""
    run = Run(nets, data, settings, lambda _nets: None, None, None)
    plan = batches(run.samples, settings.batch_size, settings.order_seed, 0)
    run.group.set_rate(settings.step_size(0))
    with matrix_precision(settings.precision, data.x_train.device):
        for timed in range(3):  # the first, which also compiles, is not counted
            if timed == 1:
                run.group.wait()
                started = time.monotonic()
            run.group.run(plan.part(0, 1))
        run.group.wait()
    return (time.monotonic() - started) / 2


def check_nets(template: nn.Module) -> None:
    if any(module._backward_hooks or module._backward_pre_hooks for module in template.modules()):
        raise RefusalError(f"train: `nets` must have no backward hooks, got {type(template).__name__} with some, which "
                           "torch.func.vmap does not call. Remove them, or train it in a loop of your own.")
    frozen = [name for name, weight in template.named_parameters() if not weight.requires_grad]
    if frozen:
        raise RefusalError(f"train: `nets` must have no frozen weights, got {frozen[0]!r}, which does not require a "
                           "gradient. Train it in a loop of your own.")


def check_device_of(nets: Stack, data: Dataset) -> None:
    there = next(iter(nets.state.values())).device
    if data.x_train.device != there:
        raise RefusalError(f"train: `data` must be on the nets' device {there}, got {data.x_train.device}. Move "
                           f"it there: data.to({str(there)!r}).")


def mean_loss(nets: Stack, data: Dataset) -> Float[Tensor, " net"]:
    """Mean cross-entropy [nats per sample] over the training set, float64, on the CPU."""
    rest = torch.zeros(len(nets), dtype=torch.float64, device=data.x_train.device)
    return Group(nets, rest, data.x_train, data.y_train, padded_size(1)).loss().cpu()


def usable(saved: dict[str, Any] | None, device: torch.device) -> dict[str, Any] | None:
    """The state of a checkpoint, unless its steps cannot be had here: compiled ones, or those of a GPU."""
    backend = saved.get("backend", "torch") if saved is not None else "torch"  # once there was no other
    if backend not in MISSING or not (reason := MISSING[backend](device)):
        return saved
    warnings.warn(f"train: the checkpoint was trained by {backend} steps, which this machine has not ({reason}): the "
                  "run starts again, so that all of it has one backend.", stacklevel=2)
    return None


class Run:
    """The state of `train`."""

    first_segment = 16  # steps

    def __init__(self, nets: Stack, data: Dataset, settings: Settings, tick: Callable[[float], object],
                 observer: Observer | None, checkpoint: Checkpoint | None):
        self.settings, self.tick = settings, tick
        self.observer, self.checkpoint = observer, checkpoint
        self.samples = len(data.x_train)
        self.per_epoch = -(-self.samples // settings.batch_size)
        self.state = {name: value.detach().clone() for name, value in nets.state.items()}  # of dropped nets: their last
        self.nets = replace(nets, state=self.state)
        self.saved = usable(checkpoint.load(), data.x_train.device) if checkpoint is not None else None
        backend = self.saved.get("backend", "torch") if self.saved is not None else None  # once there was no other
        self.group = Group(self.nets, settings.momentum, data.x_train, data.y_train,
                           padded_size(min(settings.batch_size, self.samples)), backend)
        self.progress = Progress(torch.ones(len(nets), dtype=torch.bool))
        self.segment = self.first_segment

    def start(self, look: bool) -> None:
        if self.saved is not None:
            self.restore(self.saved)
            self.saved = None
            return
        self.epoch_is_over()
        if look:
            self.look()

    def epoch(self, epoch: int, marks: Sequence[int]) -> None:
        """From wherever in the epoch it was to its end."""
        plan = batches(self.samples, self.settings.batch_size, self.settings.order_seed, epoch)
        self.group.set_rate(self.settings.step_size(epoch)[self.progress.alive])
        begin = epoch * self.per_epoch
        while (at := self.progress.done - begin) < self.per_epoch:
            stop = min([m - begin for m in marks if m - begin > at] + [self.per_epoch])
            if self.checkpoint is not None:
                stop = min(stop, at + self.segment)
            started = time.monotonic()
            self.group.run(plan.part(at, stop))
            self.progress.done = begin + stop
            if stop == self.per_epoch:
                self.epoch_is_over()
            if self.progress.done in marks:
                self.look()
            if self.checkpoint is not None:
                self.keep(stop - at, started)
            self.tick(len(self.progress.alive) * (stop - at) / self.per_epoch)

    def epoch_is_over(self) -> None:
        """Losses of all nets; those that are not finite leave."""
        loss = torch.full((len(self.progress.alive),), torch.nan, dtype=torch.float64)
        if len(self.group):
            loss[self.progress.alive] = self.group.loss().cpu()
        self.progress.losses.append(loss)
        still = loss.isfinite()
        if (self.progress.alive & ~still).any():
            self.gather()
            self.group.keep(still[self.progress.alive])
            self.progress.alive = still

    def gather(self) -> None:
        """Bring `state` up to date."""
        for name, value in self.group.state().items():
            self.state[name][self.progress.alive] = value

    def look(self) -> None:
        self.gather()
        self.observer(Moment(self.progress.done, self.progress.done / self.per_epoch, self.nets,
                             torch.stack(self.progress.losses, 1)))

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def keep(self, steps: int, started: float) -> None:
        self.group.wait()
        seconds = time.monotonic() - started
        self.segment = max(1, round(steps * min(2.0, SEGMENT / max(seconds, 1e-9))))
        if self.checkpoint.due():
            self.gather()
            self.checkpoint.save({
                "done": self.progress.done, "alive": self.progress.alive, "losses": self.progress.losses,
                "state": self.state, "velocity": self.group.velocity(), "backend": self.group.backend,
                "observed": self.observer.state() if self.observer is not None else {},
            })

    def restore(self, saved: dict) -> None:
        self.progress = Progress(saved["alive"], saved["losses"], saved["done"])
        for name, value in saved["state"].items():
            self.state[name].copy_(value)
        self.group.fill(self.nets.only(saved["alive"]), self.settings.momentum[saved["alive"]], saved["velocity"])
        if self.observer is not None:
            self.observer.restore(saved["observed"])
        self.tick(len(saved["alive"]) * self.progress.done / self.per_epoch)

    def history(self) -> History:
        self.gather()
        loss = torch.stack(self.progress.losses, 1)
        failed = ~loss.isfinite()
        diverged = torch.where(failed.any(1), failed.int().argmax(1), -1)
        return History(loss.masked_fill(failed, torch.nan), diverged, self.nets, self.group.backend)
