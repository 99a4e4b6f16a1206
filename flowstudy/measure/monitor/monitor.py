"""GradientMonitor: gradient, update, error-signal and activation norms by layer, in the user's own training loop."""

import os
import sys
import weakref
from collections.abc import Iterable, Sequence
from types import CodeType
from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from flowstudy.measure.drawn import Drawn
from flowstudy.refusal import did_you_mean

from .delivery import Delivery, ScalarWriter
from .hooks import ModelHooks
from .kept import load_records
from .step_record import StepRecord
from .watched import QUANTITIES, Groups, Watched, watch

CALL = "GradientMonitor"


class GradientMonitor(Drawn):
    """Records, layer by layer, what training steps do to a model; the loop stays as it is.

        with fs.GradientMonitor(model, every=10) as monitor:
            train(model)
        monitor.plot()

    A step is one step of an optimizer that holds weights of the model; the optimizer's hooks tell when it comes, and
    the micro-batches before it belong to it.  Several optimizers that take turns make one step together; one that has
    all that is to be trained makes steps by itself.  Steps that are not recorded cost nothing.  Norms are taken on the
    model's device, in float64 (on a CPU in float32 where that is as good to 1e-5), and copied to the host once a
    record, without waiting for the device.

    Args:
        model: any module; its DistributedDataParallel or torch.compile wrapper will do as well.
        every: record steps 0, every, 2 every, ....
        optimizer: count this optimizer's steps alone; None counts all that hold weights of the model.
        scaler: the GradScaler, for loops that call `step`; else it is found.
        quantities: all, or some of the columns below. Nothing is hooked into the forward pass for the first three.
        store: a new or empty folder. Each record is written to it when it is complete, so a killed run keeps all but
            the last; `GradientMonitor.load(folder)` and `pandas.read_parquet(folder)` read it; milliseconds each.
        writer: a TensorBoard SummaryWriter; three curves per quantity: first, median and last layer.

    What it cannot see: error signals and activations of layers that run inside compiled graphs which were made before
    the monitor was attached, of scripted modules, of calls inside torch.func.vmap, and of weights that are used without
    their module's call (their gradients belong to the module around them that runs).

    Under DistributedDataParallel only the first process writes to `store` and `writer`.

    Attributes:
        frame: a row per record and layer: `step` (updates before it), `layer` (1 is the first), `module`, `type`, and

            log10_weight_gradient_norm: of dL/dW as the last backward pass before the step left it: summed over
                micro-batches, averaged over processes, unscaled, not yet clipped; biases left out.
            log10_clipped_gradient_norm: of the gradient that the optimizer was given.
            update_to_weight: ||W after - W before|| / ||W before|| of the step.
            log10_error_signal_norm: of dL/dh, h the layer's output, unscaled; micro-batches and uses of a shared layer
                are parts of one vector. Under DistributedDataParallel: of this process's loss and samples.
            activation_mean_square: over all entries of the layer's outputs.

            Norms are `gradient_flow`'s, |h|^2 = h conj(h) where numbers are complex; of an output that is a tuple, dict
            or dataclass, those of its first real or complex tensor. Layers are in the order in which the model holds
            them, a row for a layer that runs several times. Weights in an nn.ParameterList or behind a parametrization
            are those of the module around it that computes with them. -inf is an exact 0 (in a float64 model also what
            is below 1e-154), nan a diverged net, or what the step did not have: a gradient of a frozen layer, or of one
            that the loss does not see; an output of a layer that is not called.

        records: how many there are. The latest may be there only when the next step is made, or on leaving.

    A step that a GradScaler leaves out is not recorded; in its place comes the next one.  Where a fused optimizer
    leaves it out, `step` counts it all the same.  A scale that is multiplied in by hand is not known.

    Compiled code does not call hooks: where error signals or activations are wanted, compiled models run eagerly in
    recorded steps, so keep `every` large there.

    Raises:
        ValueError, TypeError: a model without trainable weights, an optimizer that holds none of them, an unknown
            quantity, `every` below 1, a store that holds something.
    """

    drawn_by = "training_heat_map"

    def __init__(self, model: nn.Module, *, every: int = 1, optimizer: Optimizer | None = None,
                 scaler: torch.amp.GradScaler | None = None, quantities: Sequence[str] = QUANTITIES,
                 store: str | os.PathLike[str] | None = None, writer: ScalarWriter | None = None):
        self.every: int = check_every(every)
        layers, watched = watch(CALL, model, check_quantities(quantities))
        self.watched: Watched = watched
        self.position: dict[int, int] = {id(weight): i for i, weight in enumerate(self.watched.weights)}
        self.holders: weakref.WeakKeyDictionary[Optimizer, tuple[int, Groups]] = weakref.WeakKeyDictionary()
        self.every_weight: Groups = self.watched.groups(range(len(self.watched.weights)))
        self.optimizer: Optimizer | None = self.check_optimizer(CALL, optimizer)
        self.scaler: torch.amp.GradScaler | None = check_scaler(scaler)
        self.delivery: Delivery = Delivery(CALL, self.watched, store, writer)
        wanted = self.watched.quantities
        self.hooks: ModelHooks = ModelHooks(
            list(layers.values()), watched.weights, self.every_weight, gradients=QUANTITIES[0] in wanted,
            errors=QUANTITIES[3] in wanted, activations=QUANTITIES[4] in wanted)
        self.handles: list[RemovableHandle] = []
        self.current: int = 0                          # the step in progress
        self.stepped: set[object] = set()                 # who has stepped in it
        self.team: set[object] | None = None              # who makes a step together, once that is known
        self.record: StepRecord | None = None     # of the step in progress

    # --- for users ---------------------------------------------------------------------------------------------------

    def attach(self) -> "GradientMonitor":
        """Start to watch, as `with` does; once attached, nothing more."""
        if not self.handles:
            self.handles = [register_optimizer_step_pre_hook(self.before_step),
                            register_optimizer_step_post_hook(self.after_step)]
            self.prepare()
        return self

    def detach(self) -> None:
        """Stop to watch: model and optimizers are without hooks again, every record is in the frame."""
        for handle in self.handles:
            handle.remove()
        self.handles = []
        self.complete()
        self.delivery.deliver()
        self.hooks.disarm()

    def __enter__(self) -> "GradientMonitor":
        return self.attach()

    def __exit__(self, *_exception: object) -> None:
        self.detach()

    def step(self, optimizer: Optimizer | None = None) -> None:
        """Say that the weights are about to change, after backward and clipping, where no torch optimizer steps.

        The update is then what changed until the next call.  Beside a torch optimizer the call changes nothing.
        """
        call = f"{CALL}.step"
        if not self.handles:
            raise RuntimeError(f"{call}: the monitor must be attached. Use `with monitor:` or monitor.attach().")
        held = self.every_weight if optimizer is None else self.held_by(self.check_optimizer(call, optimizer))
        self.begin(self)
        if self.record is not None:
            self.record.before_step(held, self.hooks, None, self.scaler)
            self.record.taken = True

    @property
    def records(self) -> int:
        self.delivery.deliver()
        return len(self.delivery.numbers)

    @property
    def frame(self) -> pd.DataFrame:
        return self.delivery.frame

    @staticmethod
    def load(folder: str | os.PathLike[str]) -> pd.DataFrame:
        """The frame of a run that was given `store=folder`, finished or killed."""
        return load_records(f"{CALL}.load", folder)

    # --- what the optimizers' hooks call -----------------------------------------------------------------------------

    def before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.optimizer is not None and optimizer is not self.optimizer:
            return
        if held := self.held_by(optimizer):
            self.begin(optimizer)
            if self.record is not None:
                closure = (args[1] if len(args) > 1 else kwargs.get("closure")) is not None  # args[0] is the optimizer
                self.record.before_step(held, self.hooks, optimizer, self.scaler or scaler_in_charge(), closure)

    def after_step(self, optimizer: Optimizer, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        if optimizer not in self.stepped:
            return
        if self.record is not None:
            self.record.after_step()
        if self.team is not None and self.team <= self.stepped:
            self.complete()
            self.prepare()

    def begin(self, who: "Optimizer | GradientMonitor") -> None:
        """Somebody is about to change weights: the first to do so opens the step's record, if it has one."""
        self.delivery.deliver_arrived()
        if who in self.stepped:  # for the second time: the step in progress was over
            self.team = self.stepped
            self.complete()
            self.current, self.stepped = self.current + 1, set()
        if not self.stepped and self.is_due(self.current):
            self.record = StepRecord(self.current, self.watched)
        self.stepped.add(who)
        if self.team is None and isinstance(who, Optimizer) and self.steps_alone(who):
            self.team = {who}

    def steps_alone(self, optimizer: Optimizer) -> bool:
        """Whether nothing is left for others to step; should they all the same, the next step will tell."""
        held = {i for group in self.held_by(optimizer) for i in group}
        return optimizer is self.optimizer or all(
            i in held for i, weight in enumerate(self.watched.weights) if weight.requires_grad)

    # --- a step ------------------------------------------------------------------------------------------------------

    def is_due(self, step: int) -> bool:
        return step % self.every == 0

    def prepare(self) -> None:
        """Hooks on for the next step if it is to be recorded, off if not."""
        if self.is_due(self.current + bool(self.stepped)):
            self.hooks.arm()
        else:
            self.hooks.disarm()

    def complete(self) -> None:
        """The step in progress is over, and so is its record."""
        record, self.record = self.record, None
        if record is None or not record.taken:
            return
        if record.before:
            record.after_step()
        self.delivery.take(record)

    # --- who holds what ----------------------------------------------------------------------------------------------

    def held_by(self, optimizer: Optimizer) -> Groups:
        groups = optimizer.param_groups
        known = self.holders.get(optimizer)
        if known is None or known[0] != len(groups):
            held = [self.position[id(p)] for group in groups for p in group["params"] if id(p) in self.position]
            everything = len(set(held)) == len(self.watched.weights)
            self.holders[optimizer] = known = (len(groups),
                                               self.every_weight if everything else self.watched.groups(held))
        return known[1]

    def check_optimizer(self, call: str, optimizer: Optimizer | None) -> Optimizer | None:
        if optimizer is None:
            return None
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{call}: `optimizer` must be a torch.optim.Optimizer, got {type(optimizer).__name__}. "
                            f"For a loop of your own, leave it out and call {CALL}.step().")
        if not self.held_by(optimizer):
            raise ValueError(f"{call}: `optimizer` must hold weights of `model`, got one that holds none of them. "
                             "Was the model copied, or wrapped, after the optimizer was made?")
        return optimizer


def scaler_in_charge() -> torch.amp.GradScaler | None:
    """The GradScaler whose `step` the calling optimizer step runs in: the optimizer is not told, the stack knows."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is SCALER_STEP:
            return frame.f_locals["self"]
        frame = frame.f_back
    return None


SCALER_STEP: CodeType = torch.amp.GradScaler.step.__code__


# --- checks ----------------------------------------------------------------------------------------------------------


def check_every(every: int) -> int:
    if isinstance(every, bool) or not isinstance(every, int):
        raise TypeError(f"{CALL}: `every` must be a whole number of steps, got {every!r}.")
    if every < 1:
        raise ValueError(f"{CALL}: `every` must be at least 1, got {every}. every=10 records each tenth step.")
    return every


def check_quantities(quantities: Iterable[str]) -> tuple[str, ...]:
    if isinstance(quantities, str):
        raise TypeError(f"{CALL}: `quantities` must be a list of names, got the string {quantities!r}. "
                        f"Pass [{quantities!r}].")
    chosen = tuple(dict.fromkeys(quantities))
    for name in chosen:
        if name not in QUANTITIES:
            raise ValueError(f"{CALL}: `quantities` must be among {', '.join(QUANTITIES)}, got {name!r}."
                             + did_you_mean(name, QUANTITIES))
    if not chosen:
        raise ValueError(f"{CALL}: `quantities` must name at least one, got none. Leave it out for all of them.")
    return tuple(name for name in QUANTITIES if name in chosen)


def check_scaler(scaler: torch.amp.GradScaler | None) -> torch.amp.GradScaler | None:
    if scaler is not None and not isinstance(scaler, torch.amp.GradScaler):
        raise TypeError(f"{CALL}: `scaler` must be a torch.amp.GradScaler, got {type(scaler).__name__}.")
    return scaler


