"""Hooks in a model for one optimizer step: they measure activations, error signals and gradients as they appear."""

import sys
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.utils.hooks import RemovableHandle

from flowstudy.measure.models.outputs import is_inside_vmap, numbers_in

from .norms import Norms, as_real, norm, norms
from .watched import Groups

current_task = torch._C._current_graph_task_id  # id of the backward pass that the caller runs in
HELD = 2**24  # the most entries of error signals that are kept on a GPU until one kernel measures them all


class Backward:
    """One backward pass in progress; autograd runs it in one thread for each device."""

    def __init__(self, gradients: list):
        self.gradients_before = gradients
        self.errors: list[tuple[int, float | Tensor]] = []            # by layer
        self.held: dict[torch.device, list[tuple[int, Tensor]]] = {}  # error signals that wait to be measured
        self.entries: Counter[torch.device] = Counter()               # in them

    def hold(self, layer: int, error: Tensor) -> None:
        device = error.device
        self.held.setdefault(device, []).append((layer, as_real(error)))
        self.entries[device] += error.numel()
        if self.entries[device] > HELD:
            self.measure_held(device)

    def measure_held(self, device: torch.device) -> None:
        layers, tensors = zip(*self.held.pop(device), strict=True)
        self.errors += zip(layers, torch._foreach_norm(tensors, 2, dtype=torch.float64), strict=True)
        self.entries[device] = 0


class ModelHooks:
    """Watches a model while armed, and keeps what its passes came to.

    Attributes:
        passes: "error" and "activation" by layer, of the backward passes since `take`: micro-batches, and calls of a
            shared layer, are parts of one vector.
        entries: how many entries each layer's output had in them.
        gradient: "gradient" by weight, as the last backward pass left it: it is a sum over passes already.
    """

    def __init__(self, layers: list[nn.Module], weights: list[Tensor], groups: list[list[int]], *, gradients: bool,
                 errors: bool, activations: bool, follow: Callable[[], None]):
        self.layers, self.weights, self.groups = layers, weights, groups
        self.gradients, self.errors, self.activations = gradients, errors, activations
        self.follow = follow  # before a backward pass: weights may have been replaced by others
        self.watches_layers = errors or activations
        self.switches: list[Switch] = []
        self.armed = False
        self.stance = None
        self.starting = threading.Lock()
        self.reset()

    def reset(self) -> None:
        self.gradient = Norms()
        self.running: dict[int, Backward] = {}
        self.left: list | None = None  # the state of the gradients after the last backward pass
        self.forget_passes()

    def forget_passes(self) -> None:
        self.passes, self.entries = Norms(), Counter()
        self.forward: list[tuple[int, float | Tensor, int]] = []

    def take(self) -> tuple[Norms, Counter[int]]:
        """Hand over the results of the passes so far; later passes belong to the next step."""
        taken = self.passes, self.entries
        self.forget_passes()
        return taken

    def arm(self) -> None:
        if self.armed:
            return
        self.armed = True
        self.reset()
        if self.watches_layers and "torch._dynamo" in sys.modules:
            # Code that was compiled before hooks were registered does not call them.
            self.stance = torch.compiler.set_stance("force_eager")
        self.switches = self.switches or self.make_switches()
        for switch in self.switches:
            switch.on()

    def disarm(self) -> None:
        self.armed = False
        for switch in self.switches:
            switch.off()
        if self.stance is not None:
            self.stance.__exit__(None, None, None)
            self.stance = None

    def watch_weights(self, groups: list[list[int]]) -> None:
        """Watch another list of weights; the gradients measured in the weights before them are dropped."""
        self.groups, self.gradient = groups, Norms()
        if not self.watches_layers:  # the hooks are registered on the weights themselves
            for switch in self.switches:
                switch.off()
            self.switches = self.make_switches() if self.armed else []  # a switch is on when it is made

    def make_switches(self) -> "list[Switch]":
        """A hook for each layer; where no layer is watched, for each weight: a frozen one may be thawed at any time."""
        if self.watches_layers:
            return [Switch(LayerHook(self, i), layer.register_forward_hook) for i, layer in enumerate(self.layers)]
        differentiable = [w for w in self.weights if w.is_floating_point() or w.is_complex()] if self.gradients else []
        return [Switch(self.backward_passes_by, partial(register_on_weight, weight)) for weight in differentiable]

    # --- what the hooks see ------------------------------------------------------------------------------------------

    def error_arrived(self, layer: int, output: int, gradients: tuple[Tensor | None, ...]) -> None:
        if not self.armed:
            return
        backward = self.running.get(current_task()) or self.backward_starts()
        error = gradients[output]
        if not self.errors or error is None:
            return
        if error.is_cpu:
            backward.errors.append((layer, norm(error)))
            return
        backward.hold(layer, error)

    def backward_passes_by(self, _gradient: object) -> None:
        """Hook on a weight, or on a layer's further outputs, that notes that a backward pass has begun."""
        if self.armed and current_task() not in self.running:
            self.backward_starts()

    # --- a backward pass ---------------------------------------------------------------------------------------------

    def backward_starts(self) -> Backward:
        """Start the record of the pass that the hook runs in; a pass inside a pass (checkpointing) has its own."""
        task = current_task()
        with self.starting:   # another device's thread may start it at the same time
            return self.running.get(task) or self.record_of(task)

    def record_of(self, task: int) -> Backward:
        if self.watches_layers:
            self.follow()
        now = self.gradients_now() if self.watches_layers else []
        if not self.running and self.left is not None and self.left != now:
            # The gradients were zeroed since the last pass, so this pass is not one more micro-batch: the step that
            # the earlier passes were for was skipped, as a GradScaler does when it finds an infinity.
            self.passes, self.entries = Norms(), Counter()
        self.running[task] = backward = Backward(now)
        # Autograd runs queued callbacks in order when the pass is over.  DistributedDataParallel may queue its
        # all-reduce after ours; queuing from inside a callback puts ours last, so gradients are averaged by then.
        queue = Variable._execution_engine.queue_callback
        queue(lambda: queue(lambda: self.backward_ended(task)))
        return backward

    @torch.no_grad()
    def backward_ended(self, task: int) -> None:
        backward = self.running.pop(task, None)
        if backward is None or not self.armed:
            return
        if self.watches_layers:
            now = self.gradients_now()
            if backward.gradients_before == now:
                return  # nothing was accumulated: autograd.grad, which is not part of training
            self.left = now
            self.keep(backward)
        if self.gradients:
            self.gradient = Norms()
            measure_gradients(self.gradient, "gradient", self.weights, self.groups)

    def keep(self, backward: Backward) -> None:
        """Add the error signals of a backward pass, and the activations of its forward pass, to the step's record."""
        for device in list(backward.held):
            backward.measure_held(device)
        self.passes.put_each("error", backward.errors)
        self.passes.put_each("activation", [(layer, value) for layer, value, _ in self.forward])
        for layer, _, number in self.forward:
            self.entries[layer] += number
        self.forward = []

    def gradients_now(self) -> list[tuple[int, int] | None]:
        """A fingerprint of the gradients that changes when one is zeroed, replaced or written to; reads no number."""
        return [None if (g := weight.grad) is None else (id(g), g._version) for weight in self.weights]


class LayerHook:
    """A layer's forward hook, on the first real or complex tensor of its output.

    A copy of the model, in memory or in a file, has one that does nothing.
    """

    def __init__(self, hooks: ModelHooks, layer: int):
        self.hooks, self.layer = hooks, layer
        self.first_output = partial(hooks.error_arrived, layer, 0)

    def __call__(self, _module: nn.Module, _inputs: object, output: object) -> None:
        numbers = list(numbers_in(output))
        if not numbers or not torch.is_grad_enabled():
            return  # an evaluation in between is not part of the step
        h, *others = numbers
        if is_inside_vmap(h):
            return  # inside torch.func.vmap the values cannot be read
        hooks, node = self.hooks, h.grad_fn
        if hooks.activations:  # at once: what follows may write into the layer's output
            hooks.forward.append((self.layer, norm(h.detach()), h.numel()))
        if node is not None:  # the node stays when h is changed in place; a hook on h itself would move to the new h
            at = h.output_nr
            node.register_prehook(partial(hooks.error_arrived, self.layer, at) if at else self.first_output)
        for other in others:  # the loss may see one of these alone, such as the last state of a recurrent net
            if other.grad_fn is not None:
                other.grad_fn.register_prehook(hooks.backward_passes_by)

    def __reduce__(self) -> tuple:
        return Unwatched, ()


def register_on_weight(weight: Tensor, hook: Callable) -> RemovableHandle:
    """Register a hook that runs after the weight's gradient is accumulated, even if the weight is frozen now.

    torch accepts such a hook only on a tensor that requires a gradient.
    """
    required = weight.requires_grad
    handle = weight.requires_grad_(True).register_post_accumulate_grad_hook(hook)
    weight.requires_grad_(required)
    return handle


class Switch:
    """A registered hook that can be switched on and off, since registering it anew takes ten times as long."""

    def __init__(self, hook: Callable, register: Callable[[Callable], RemovableHandle]):
        handle = register(hook)
        self.hook, self.hooks, self.key = hook, handle.hooks_dict_ref(), handle.id

    def on(self) -> None:
        self.hooks[self.key] = self.hook

    def off(self) -> None:
        self.hooks.pop(self.key, None)


class Unwatched:
    def __call__(self, *_args: object) -> None:
        return None


def measure_gradients(into: Norms, kind: str, weights: list[Tensor], groups: Groups) -> None:
    for group in in_one_call(weights, groups):
        present = [(i, g) for i in group if (g := weights[i].grad) is not None]
        if present:
            positions, gradients = zip(*present, strict=True)
            into.put(kind, positions, norms(gradients))


def in_one_call(weights: list[Tensor], groups: Groups) -> Groups:
    """Groups of weights whose norms `norms` takes together: on a CPU those of one shape, else of any shapes."""
    if all(weights[group[0]].is_cpu for group in groups):
        return groups
    merged: dict[tuple, list[int]] = {}
    for group in groups:
        first = weights[group[0]]
        merged.setdefault((first.dtype, first.device, first.shape if first.is_cpu else ()), []).extend(group)
    return list(merged.values())
