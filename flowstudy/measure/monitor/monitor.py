"""GradientMonitor: gradient, update, error-signal and activation norms by layer, in the user's own training loop."""

import os
import sys
import weakref
from collections.abc import Iterable, Sequence
from types import CodeType

import pandas as pd
import torch
from torch import nn
from torch.optim import Optimizer

from flowstudy.arguments import NAME, several
from flowstudy.measure.drawn import Drawn
from flowstudy.refusal import RefusalError, RefusalTypeError, did_you_mean

from .delivery import Delivery, ScalarWriter
from .hooks import ModelHooks
from .kept import load_records
from .optimizers import STEPS, Listener
from .step_record import StepRecord
from .watched import QUANTITIES, Groups, watch

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

            log10_weight_gradient_norm: of dL/dW after the last backward pass before the step: summed over
                micro-batches, averaged over processes, unscaled, not yet clipped; biases left out.
            log10_clipped_gradient_norm: of the gradient that the optimizer was given.
            update_to_weight: ||W after - W before|| / ||W before|| of the step.
            log10_error_signal_norm: of dL/dh, h the layer's output, unscaled; micro-batches and uses of a shared layer
                are parts of one vector. Under DistributedDataParallel: of this process's loss and samples.
            activation_mean_square: over all entries of the layer's outputs.

            Norms are `gradient_flow`'s, |h|^2 = h conj(h) where numbers are complex; of an output that is a tuple, dict
            or dataclass, those of its first real or complex tensor. Layers are in the order in which the model holds
            them, one row for a layer that runs several times. Weights in an nn.ParameterList or behind a
            parametrization belong to the module around it that computes with them. -inf is an exact 0 (in a float64
            model also a norm below 1e-154). nan is a diverged net, or a number that the step did not have: the gradient
            of a frozen layer or of one that the loss does not see, the output of a layer that is not called.

        records: number of records. The latest may be counted only when the next step is made, or on leaving.

    A step that a GradScaler skips is not recorded; the next one is recorded in its place.  If a fused optimizer skips
    it, `step` counts it all the same.  A loss scale that the loop multiplies in by hand is not divided out.

    Compiled code does not call hooks: where error signals or activations are wanted, compiled models run eagerly in
    recorded steps, so keep `every` large there.

    A `store` or `writer` that fails while the training runs (a full disk, a folder that is gone) is told once; records
    stay in memory, and the store gets them when it takes them again.

    Raises:
        ValueError, TypeError: a model without trainable weights, an optimizer that holds none of them, an unknown
            quantity, `every` below 1, a store that holds something.
    """

    drawn_by = "training_heat_map"

    def __init__(self, model: nn.Module, *, every: int = 1, optimizer: Optimizer | None = None,
                 scaler: torch.amp.GradScaler | None = None, quantities: Sequence[str] = QUANTITIES,
                 store: str | os.PathLike[str] | None = None, writer: ScalarWriter | None = None):
        self.every: int = check_every(every)
        layers, self._watched = watch(CALL, model, check_quantities(quantities))
        self._position = {id(weight): i for i, weight in enumerate(self._watched.weights)}
        self._holders: weakref.WeakKeyDictionary[Optimizer, tuple[int, Groups]] = weakref.WeakKeyDictionary()
        self._every_weight = self._watched.groups(range(len(self._watched.weights)))
        self._optimizer = self._check_optimizer(CALL, optimizer)
        self._scaler = check_scaler(scaler)
        self._delivery = Delivery(CALL, self._watched, store, writer)
        wanted = self._watched.quantities
        self._hooks = ModelHooks(list(layers.values()), self._watched.weights, self._every_weight,
                                gradients=QUANTITIES[0] in wanted, errors=QUANTITIES[3] in wanted,
                                activations=QUANTITIES[4] in wanted, follow=self._follow)
        self._listener: Listener | None = None     # while attached
        self._current = 0                          # the step in progress
        self._stepped: set = set()                 # who has stepped in it
        self._team: set | None = None              # who makes a step together, once that is known
        self._record: StepRecord | None = None     # of the step in progress

    # --- for users ---------------------------------------------------------------------------------------------------

    def attach(self) -> "GradientMonitor":
        """Start to watch, as `with` does; a second call does nothing.

        Returns:
            The monitor itself.
        """
        if self._listener is None:
            self._listener = Listener(self._before_step, self._after_step)
            STEPS.tell(self._listener)
            self._prepare()
        return self

    def detach(self) -> None:
        """Stop to watch: the model is without hooks again, every record is in the frame."""
        if self._listener is not None:
            STEPS.tell_no_more(self._listener)
        self._listener = None
        self._complete()
        self._delivery.finish()
        self._hooks.disarm()

    def __enter__(self) -> "GradientMonitor":
        return self.attach()

    def __exit__(self, *_exception: object) -> None:
        self.detach()

    def step(self, optimizer: Optimizer | None = None) -> None:
        """Say that the weights are about to change, after backward and clipping, where no torch optimizer steps.

        The update is then what changed until the next call.  Beside a torch optimizer the call changes nothing.
        """
        call = f"{CALL}.step"
        if self._listener is None:
            raise RuntimeError(f"{call}: the monitor must be attached. Use `with monitor:` or monitor.attach().")
        held = self._every_weight if optimizer is None else self._held_by(self._check_optimizer(call, optimizer))
        self._begin(self)
        if self._record is not None:
            self._record.before_step(held, self._hooks, None, self._scaler)
            self._record.taken = True

    @property
    def records(self) -> int:
        self._delivery.deliver()
        return len(self._delivery.numbers)

    @property
    def frame(self) -> pd.DataFrame:
        return self._delivery.frame

    @staticmethod
    def load(folder: str | os.PathLike[str]) -> pd.DataFrame:
        """The frame of a run that was given `store=folder`, finished or killed."""
        return load_records(f"{CALL}.load", folder)

    def __repr__(self) -> str:
        return (f"GradientMonitor, every {self.every}: {self.records} record{'s' * (self.records != 1)} of "
                f"{len(self._watched.names)} layers")

    def __dir__(self) -> list[str]:
        """The public names; the monitor's internal attributes begin with an underscore."""
        return [name for name in super().__dir__() if name.startswith("__") or not name.startswith("_")]

    # --- what the optimizers' hooks call -----------------------------------------------------------------------------

    def _before_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        if self._optimizer is not None and optimizer is not self._optimizer:
            return
        if held := self._held_by(optimizer):
            self._begin(optimizer)
            if self._record is not None:
                closure = (args[1] if len(args) > 1 else kwargs.get("closure")) is not None  # args[0] is the optimizer
                self._record.before_step(held, self._hooks, optimizer, self._scaler or scaler_in_charge(), closure)

    def _after_step(self, optimizer: Optimizer, _args: tuple, _kwargs: dict) -> None:
        if optimizer not in self._stepped:
            return
        if self._record is not None:
            self._record.after_step()
        if self._team is not None and self._team <= self._stepped:
            self._complete()
            self._prepare()

    def _begin(self, who: "Optimizer | GradientMonitor") -> None:
        """An optimizer is about to change weights: the first one in a step opens the step's record, if it has one."""
        self._delivery.deliver_arrived()
        if who in self._stepped:  # for the second time: the step in progress was over
            self._team = self._stepped
            self._next_step()
        elif isinstance(who, Optimizer) and self._team is not None and self._team <= self._stepped:
            self._team = None  # an optimizer of a later phase, after a step that was over: who joins it will be seen
            self._next_step()
        if not self._stepped and self._is_due(self._current):
            self._record = StepRecord(self._current, self._watched)
        self._stepped.add(who)
        if self._team is None and isinstance(who, Optimizer) and self._steps_alone(who):
            self._team = {who}

    def _next_step(self) -> None:
        self._complete()
        self._current, self._stepped = self._current + 1, set()

    def _steps_alone(self, optimizer: Optimizer) -> bool:
        """Whether the optimizer makes steps by itself: it holds all trainable weights, or is the only one counted.

        If another one steps all the same, the next step finds that out.
        """
        held = {i for group in self._held_by(optimizer) for i in group}
        return optimizer is self._optimizer or all(
            i in held for i, weight in enumerate(self._watched.weights) if weight.requires_grad)

    # --- a step ------------------------------------------------------------------------------------------------------

    def _is_due(self, step: int) -> bool:
        return step % self.every == 0

    def _prepare(self) -> None:
        """Switch the hooks on if the next step is to be recorded, else off."""
        if self._is_due(self._current + bool(self._stepped)):
            self._hooks.arm()
        else:
            self._hooks.disarm()

    def _complete(self) -> None:
        """The step in progress is over, and so is its record."""
        record, self._record = self._record, None
        if record is None or not record.taken:
            return
        if record.before:
            record.after_step()
        self._delivery.take(record)

    # --- who holds what ----------------------------------------------------------------------------------------------

    def _held_by(self, optimizer: Optimizer) -> Groups:
        groups = optimizer.param_groups
        known = self._holders.get(optimizer)
        if known is None or known[0] != len(groups):
            self._follow()
            held = [self._position[id(p)] for group in groups for p in group["params"] if id(p) in self._position]
            everything = len(set(held)) == len(self._watched.weights)
            self._holders[optimizer] = known = (len(groups),
                                                self._every_weight if everything else self._watched.groups(held))
        return known[1]

    def _follow(self) -> None:
        """Watch the parameters that the model holds now; load_state_dict(assign=True) replaces them."""
        if self._watched.follow():
            self._position = {id(weight): i for i, weight in enumerate(self._watched.weights)}
            self._holders.clear()
            self._every_weight = self._watched.groups(range(len(self._watched.weights)))
            self._hooks.watch_weights(self._every_weight)

    def _check_optimizer(self, call: str, optimizer: Optimizer | None) -> Optimizer | None:
        if optimizer is None:
            return None
        if not isinstance(optimizer, Optimizer):
            raise RefusalTypeError(f"{call}: `optimizer` must be a torch.optim.Optimizer, got "
                                   f"{type(optimizer).__name__}. For a loop of your own, leave it out and call "
                                   f"{CALL}.step().")
        if not self._held_by(optimizer):
            raise RefusalError(f"{call}: `optimizer` must hold weights of `model`, got one that holds none of them. "
                               "Was the model copied, or wrapped, after the optimizer was made?")
        return optimizer


def scaler_in_charge() -> torch.amp.GradScaler | None:
    """The GradScaler whose `step` the optimizer step runs in; the optimizer does not know it, so the call stack is
    searched for it."""
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
        raise RefusalTypeError(f"{CALL}: `every` must be a whole number of steps, got {every!r}.")
    if every < 1:
        raise RefusalError(f"{CALL}: `every` must be at least 1, got {every}. every=10 records each tenth step.")
    return every


def check_quantities(quantities: Iterable[str]) -> tuple[str, ...]:
    if isinstance(quantities, str):
        raise RefusalTypeError(f"{CALL}: `quantities` must be a list of names, got the string {quantities!r}. "
                               f"Pass [{quantities!r}].")
    several(NAME, least=0)(CALL, "quantities", quantities)
    chosen = tuple(dict.fromkeys(quantities))
    for name in chosen:
        if name not in QUANTITIES:
            raise RefusalError(f"{CALL}: `quantities` must be among {', '.join(QUANTITIES)}, got {name!r}."
                               + did_you_mean(name, QUANTITIES))
    if not chosen:
        raise RefusalError(f"{CALL}: `quantities` must name at least one, got none. Leave it out for all of them.")
    return tuple(name for name in QUANTITIES if name in chosen)


def check_scaler(scaler: torch.amp.GradScaler | None) -> torch.amp.GradScaler | None:
    if scaler is not None and not isinstance(scaler, torch.amp.GradScaler):
        raise RefusalTypeError(f"{CALL}: `scaler` must be a torch.amp.GradScaler, got {type(scaler).__name__}.")
    return scaler


