"""Will it train: the tangent kernel at the start, and a short trial if one is asked for."""

import time
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor, nn

from flowstudy.arguments import FLAG, a_real, check_one_of, check_whole, several
from flowstudy.measure.gradients.flow import GradientFlow, gradient_flow
from flowstudy.measure.gradients.losses import Loss, Objective
from flowstudy.measure.models.context import RandomState, devices_of, in_own_context
from flowstudy.measure.models.copies import check_module, float64_copy
from flowstudy.measure.models.inputs import Inputs, Shown, check_input, check_samples_apart
from flowstudy.measure.models.precision.attempts import in_float64, measured_targets
from flowstudy.names import LossName, OptimizerName
from flowstudy.refusal import RefusalError

from .causes import Cause, causes_of, underflow
from .constant import constant_loss
from .half import HALVES, survival
from .kernel.first_steps import largest_rate
from .kernel.linearised import Linearised, linearise
from .kernel.tangent import Kernel, tangent_kernel
from .reading import HALF, HORIZON, NOTHING, TrainabilityVerdict, kind_by_trial, read_off
from .result import Trainability
from .trials.trial import Trial, check_targets_given, run_trial
from .warm_up import no_warm_up, normalises_sums

OPTIMIZERS = ("sgd", "momentum", "adam", "adamw")
MOMENTUM = 0.9
CALIBRATED = {"samples": 48, "classes": 10}
PATIENCE = 45.0   # seconds of differentiation in float64; if it would take longer it is done in float32
PASSES = 64       # number of passes of the batch in the longer route, for the estimate of its time


def trainability(model: nn.Module, x: Shown, y: Tensor | None, *, loss: LossName | Loss = "cross_entropy",
                 output: str | int | None = None, optimizer: OptimizerName = "sgd",
                 steps: Sequence[int] = (100, 1_000, 10_000), samples: int = 48, trial: int = 0,
                 rates: Sequence[float] | None = None, batch_size: int = 64, seconds: float | int | None = None,
                 seed: int = 0, dtype: str | None = None, progress: bool = False) -> Trainability:
    """Will this net learn this task, in how many steps, and if not, why?

    Two readings.  The tangent kernel at the start tells which part of the task's residual gradient descent reaches, and
    how fast at the best stable rate: it costs some hundred backward passes, and says why.  The trial trains copies for
    `trial` steps at the usual eight rates: it decides.  Both leave the model, its buffers and the global random states
    as they are; a model in evaluation mode is read in it, and tried in training mode.  Where a trial learns at no rate
    and the net normalises its sums (post-norm), a second one whose rate grows over half of its steps tells whether a
    warm-up helps.

    Args:
        model: any module that `gradient_flow` takes.  Nets with batch statistics are to be passed in training mode, as
            they train; the kernel is then that of the batch.
        x, y: inputs (sample, ...), a tensor, a tuple or a mapping, and targets; the kernel takes `samples` of them,
            drawn at random since data are often sorted by class; the trial takes all.
        loss: "cross_entropy", "mse", or a function (output, y) -> scalar, the mean over samples.
        output: which entry of a tuple, a mapping or a dataclass it is of, as in `gradient_flow`.
        optimizer: "sgd", "momentum" (0.9), "adam" or "adamw".
        steps: for which `remaining` is told.
        samples: of the kernel; the verdict's thresholds were set with 48.
        trial: steps of a trial; 0 is none.
        rates: learning rates of the trial; None is the usual grid of the optimizer.
        batch_size: of its steps, and of the gradient noise that Adam sees.
        seconds: of wall time at most for the trial; what was left out is said.
        seed: of the trial's batches, and of the samples drawn.
        dtype: "float16" or "bfloat16": also tell what of each layer's gradient survives in it, and the loss scale that
            saves the rest (`.survival`).
        progress: say on stderr what is being done.

    Returns:
        A Trainability: `.verdict`, `.remaining`, `.steps_to(share)`, `.learning_rate`, `.by_layer`, `.trial` and more.

    Raises:
        ValueError, TypeError: no targets, an unknown optimizer or loss, labels that do not fit, nothing to train, a
            model spread over several devices.

    What it cannot know: other data, other schedules and other rates than the usual ones.  The kernel is that of the
    start, and says nothing of nets whose outputs are far too large, which `loss` shows.

    How often it is right: with a trial for 92 % and 91 % of 102 small nets trained on digits, by SGD with momentum
    and by Adam; by the kernel alone for 90 % and 90 % (study `will_it_train`).

    Source: Jacot et al. 2018; Xiao, Pennington & Schoenholz 2020 (trainability by the kernel's spectrum); the
        thresholds are ours (`benchmarks/trainability.py`).

    >>> x = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    >>> net = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 10))
    >>> trainability(net, x, x.argmax(1), trial=50).verdict.kind
    'trains'
    """
    return look_at("trainability", model, x, y, loss, output, optimizer, steps, samples, trial, batch_size, seconds,
                   seed, rates, dtype, progress)


class UntrainableError(AssertionError):
    """The error of `assert_trainable`.

    Attributes: found, the Trainability, and its `verdict`.
    """

    def __init__(self, found: Trainability):
        super().__init__(f"assert_trainable: {found.verdict}")
        self.found: Trainability = found
        self.verdict: TrainabilityVerdict = found.verdict


def assert_trainable(model: nn.Module, x: Shown, y: Tensor | None = None, *, loss: LossName | Loss = "cross_entropy",
                     output: str | int | None = None, optimizer: OptimizerName = "sgd", steps: int = 1_000,
                     trial: int = 100, samples: int = 48, batch_size: int = 64,
                     seconds: float | int | None = 30.0) -> Trainability:
    """For a test suite of one's own: raises unless the net trains, and returns what `trainability` found.

    Args:
        steps: a net that is slow passes if the kernel expects half of the task within so many steps and the trial saw
            it learn.
        loss, output, trial, samples, batch_size, seconds: as `trainability`.

    Returns:
        The Trainability of a net that trains.

    Raises:
        UntrainableError, an AssertionError: the message is the verdict.  A net passes only if a trial saw it learn at
            some rate, and no trainable layer is cut off.
    """
    found = look_at("assert_trainable", model, x, y, loss, output, optimizer, (steps,), samples, trial, batch_size,
                    seconds)
    soon = found.verdict.kind == "slow" and found.verdict.steps <= steps and learnt_something(found)
    if found.verdict.kind != "trains" and not soon:
        raise UntrainableError(found)
    return found


# --- the parts -------------------------------------------------------------------------------------------------------


@in_own_context
@in_float64
def look_at(call: str, model: nn.Module, x: Shown, y: Tensor | None, loss: str | Loss, output: str | int | None,
            optimizer: str, steps: Sequence[int], samples: int, trial: int, batch_size: int,
            seconds: float | int | None, seed: int = 0, rates: Sequence[float] | None = None, half: str | None = None,
            progress: bool = False) -> Trainability:
    """The computation of `trainability`; `call` is the public function that error messages name."""
    started = time.perf_counter()
    check_module(call, model)
    check_choices(call, optimizer, steps, samples, trial, batch_size, seed, progress, half)
    check_can_be_trained(call, model, optimizer)
    inputs = check_input(call, model, x)
    check_targets_given(call, inputs, y, loss)
    check_samples_apart(call, inputs)
    chosen, targets = chosen_samples(inputs, samples, seed), measured_targets(model, y)
    objective = Objective.measured(call, loss, output)
    net, dtype = differentiable(model, inputs[chosen], targets[chosen], objective)
    check_differ(call, y, loss)
    kernel = tangent_kernel(net, adam=optimizer.startswith("adam"), batch_size=batch_size)
    flow = gradient_flow(model, Inputs.of(x)[chosen], y[chosen], loss=loss, output=output)
    survived = None if half is None else survival(call, model, net, half)

    def try_out(**more: int | float | None) -> Trial:
        options = {"steps": trial, "batch_size": batch_size, "seconds": seconds, "seed": seed, "rates": rates,
                   "progress": progress}
        return run_trial(call, model, x, y, loss, output=output, optimizer=optimizer, **(options | more))

    tried = try_out() if trial else None
    at_start, _ = net.loss_and_residual()
    constant = constant_loss(objective.loss, net.outputs, targets if tried is None else targets[tried.looked_at])
    remaining = (kernel.adams or kernel.decay).remaining(HORIZON)
    causes = causes_of(model, flow, net.outputs, at_start, constant, loss)
    if tried is not None and normalises_sums(flow) and not learns(tried, remaining, constant):
        left = None if seconds is None else max(0.0, seconds - tried.seconds)
        warmed = try_out(warm_up=max(1, trial // 2), seconds=left)
        causes[:0] = [no_warm_up(warmed, max(1, trial // 2))] if learns(warmed, remaining, constant) else []
    causes += [] if survived is None else underflow(survived)
    return Trainability(
        **told_by(kernel, net, optimizer, steps), loss=at_start, constant_loss=constant,
        trial=None if tried is None else tried.frame,
        verdict=verdict_of_readings(kernel, net, flow, at_start, constant, tried, causes),
        flow=flow, dtype=dtype, optimizer=optimizer, seconds=time.perf_counter() - started, survival=survived,
        kernel=kernel, tried=tried)


def learns(tried: Trial, remaining: float, constant: float) -> bool:
    return tried.best is not None and kind_by_trial(remaining, float(tried.best.loss), constant) == "trains"


def chosen_samples(x: Inputs, samples: int, seed: int) -> Int[Tensor, " sample"]:
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:samples]
    return order.sort().values.to(x.device)


def differentiable(model: nn.Module, x: Inputs, y: Tensor, objective: Objective) -> tuple[Linearised, str]:
    """The model around its start, in float64; in float32 where a pass takes so long that all would take minutes."""
    call, state = objective.call, RandomState(x.device)
    copied = float64_copy(call, model, frozen=False)
    dtype = next((p.dtype for p in copied.parameters() if p.is_floating_point()), torch.float64)
    if not any(p.requires_grad for p in copied.parameters()):
        raise RefusalError(f"{call}: `model` must have a parameter that requires a gradient, got "
                           f"{type(model).__name__} without any. Call model.requires_grad_(True).")
    few = max(2, len(x) // 8)
    for _ in range(2):   # the first pass may have to wait for what torch loads
        started = time.perf_counter()
        net = linearise(call, copied, x[:few], y[:few], objective, state)
        net.pull(torch.ones_like(net.outputs))
        if (time.perf_counter() - started) * len(x) / few * PASSES < PATIENCE:
            return linearise(call, copied, x, y, objective, state), str(dtype).removeprefix("torch.")
    single, y = float64_copy(call, model, frozen=False).float(), y.float() if y.is_floating_point() else y
    return linearise(call, single, x.to(torch.float32), y, objective.to(torch.float32), state), "float32"


def told_by(kernel: Kernel, net: Linearised, optimizer: str, steps: Sequence[int]) -> dict[str, object]:
    index = pd.Index([int(t) for t in steps], name="steps")
    rate, stepped = float("nan"), False
    if not optimizer.startswith("adam"):
        rate, stepped = largest_rate(net, kernel.sharpness, MOMENTUM if optimizer == "momentum" else 0.0)
    by_layer: dict[str, float] = {}
    for name, _ in net.probe.named_parameters():
        layer = name.rpartition(".")[0]
        by_layer[layer] = by_layer.get(layer, 0.0) + kernel.shares.get(name, 0.0)   # frozen ones have none
    return {
        "remaining": pd.Series([kernel.decay.remaining(t) for t in index], index, name="remaining"),
        "remaining_error": pd.Series([kernel.decay.error(t) for t in index], index, name="remaining_error"),
        "learning_rate": rate,
        "rate_by": "steps" if stepped else "curvature",
        "condition": kernel.condition,
        "by_layer": pd.Series(by_layer, name="share_of_learning"),
        "spectrum": np.asarray(kernel.eigenvalues),
        "route": kernel.route,
    }


def verdict_of_readings(kernel: Kernel, net: Linearised, flow: GradientFlow, at_start: float, constant: float,
                        tried: Trial | None, causes: list[Cause]) -> TrainabilityVerdict:
    decay = kernel.adams or kernel.decay
    calibrated = len(net.x) == CALIBRATED["samples"] and net.outputs[0].numel() == CALIBRATED["classes"]
    lowest = None if tried is None else float("inf") if tried.best is None else float(tried.best.loss)
    return read_off(
                remaining=decay.remaining(HORIZON), uncertain=decay.error(HORIZON), steps=kernel.decay.steps_to(HALF),
                metric="own" if kernel.adams is None else "adam", loss_at_start=at_start, constant=constant,
                seen="" if tried is None else seen_in_words(tried), lowest=lowest, calibrated=calibrated,
                causes=causes, note=other_net(flow.running_statistics))


def other_net(running_statistics: int) -> str:
    if not running_statistics:
        return ""
    return (f"Read in evaluation mode, where {running_statistics} batch norm layer{'s' * (running_statistics > 1)} "
            "divide by running statistics, which before training is another net than the one that trains: pass it "
            "after model.train().")


def seen_in_words(tried: Trial) -> str:
    if tried.best is None:
        return f"In a trial of {tried.steps} steps every learning rate diverged."
    best = tried.best
    share = "" if best.accuracy != best.accuracy else f", {best.accuracy:.0%} right"
    left_out = "" if tried.complete else " Some rates were left out for want of time."
    return (f"In a trial of {int(best.steps)} steps the loss went from {tried.loss_at_start:.3g} to {best.loss:.3g} at "
            f"learning rate {best.learning_rate:g}{share}.{left_out}")


def learnt_something(found: Trainability) -> bool:
    return found.tried is not None and found.tried.best is not None and bool(
        found.tried.best.loss <= NOTHING * found.constant_loss)


def check_choices(call: str, optimizer: str, steps: Sequence[int], samples: int, trial: int, batch_size: int, seed: int,
                  progress: bool, half: str | None) -> None:
    if half is not None:
        check_one_of(call, "dtype", half, HALVES)
    check_one_of(call, "optimizer", optimizer, OPTIMIZERS)
    check_whole(call, "samples", samples, least=2)
    check_whole(call, "trial", trial)
    check_whole(call, "batch_size", batch_size, least=1)
    check_whole(call, "seed", seed)
    FLAG(call, "progress", progress)
    several(a_real("positive and finite"))(call, "steps", steps)


def check_can_be_trained(call: str, model: nn.Module, optimizer: str) -> None:
    """Refuse sparse gradients where the optimizer takes dense ones alone, and a model on several devices."""
    sparse = next((name for name, module in model.named_modules() if getattr(module, "sparse", False) is True), None)
    if sparse is not None and optimizer.startswith("adam"):
        raise RefusalError(f"{call}: `optimizer` must be 'sgd' or 'momentum' for a model with sparse gradients, got "
                           f"{optimizer!r} and the embedding {sparse!r}. Or make that with sparse=False.")
    if len(devices := devices_of(model)) > 1:
        raise RefusalError(f"{call}: `model` must have its parameters on one device, got "
                           f"{' and '.join(map(str, devices))}. Ask a smaller one of its kind; gradient_flow and "
                           "jacobian_spectrum measure this one as it is.")


def check_differ(call: str, y: Tensor, loss: str | Loss) -> None:
    if not callable(loss) and bool((y == y[:1]).all()):
        raise RefusalError(f"{call}: `y` must differ between samples, got {len(y)} times the same. "
                           "Constant outputs learn that.")
