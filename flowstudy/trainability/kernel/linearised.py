"""A model linearised at its start: how a batch's outputs change with the parameters, and the loss with the outputs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from flowstudy.measure.gradients.losses import Objective
from flowstudy.measure.models.backward import dense
from flowstudy.measure.models.context import RandomState
from flowstudy.measure.models.dense_jacobian import BAR
from flowstudy.measure.models.graph import check_gradients_can_be_asked_for, edge_of, reachable
from flowstudy.measure.models.inputs import Inputs
from flowstudy.measure.models.outputs import way_to_one
from flowstudy.refusal import RefusalError
from flowstudy.torch_settings import quiet_fallback

SAME = 1e-9  # largest relative difference between a sample's outputs alone and in the batch taken for rounding
Parts = list[Tensor]  # one tensor for each trainable parameter


@dataclass
class Linearised:
    """Outputs z of a batch as a function of the parameters w: J = dz / dw at the start.

    Attributes:
        probe: a copy of the model that is made for this, in float64 unless said otherwise.
        x, y: the batch.
        state: the random state that every pass draws from.
        objective: the loss; of outputs, what it takes of what the model returns.
    """

    probe: nn.Module
    x: Inputs
    y: object
    state: RandomState
    objective: Objective

    def __post_init__(self):
        self.parameters = {name: p for name, p in self.probe.named_parameters() if p.requires_grad}
        self.outputs = self.run(self.x)

    @property
    def samples(self) -> int:
        return len(self.x)

    @property
    def weights(self) -> Parts:
        """The trainable parameters; of complex ones real and imaginary parts, which are what is learnt."""
        return [real_view(w) for w in self.parameters.values()]

    def run(self, x: Inputs, parameters: dict[str, Tensor] | None = None) -> object:
        """The outputs of a batch: every pass begins with the buffers of the start, and changes copies of them."""
        buffers = {name: b.detach().clone() for name, b in self.probe.named_buffers()}
        # Of attention's kernels, the mathematical one alone can be differentiated forwards.
        with self.state.replayed(), sdpa_kernel(SDPBackend.MATH):
            output = x.call_model(lambda *args, **kwargs: torch.func.functional_call(
                self.probe, buffers | (parameters or {}), args, kwargs))
            return self.objective.taken(output, self.y)

    def pull(self, cotangent: Tensor) -> Parts:
        """J^T v, v of the outputs' shape; zeros where a parameter has no part in them."""
        return self.pull_from(self.outputs, cotangent)

    def pull_from(self, outputs: Tensor, cotangent: Tensor, batched: bool = False) -> Parts:
        found = torch.autograd.grad(outputs, list(self.parameters.values()), cotangent, retain_graph=True,
                                    allow_unused=True, is_grads_batched=batched)
        lead = cotangent.shape[:1] if batched else ()
        return [w.new_zeros(*lead, *w.shape) if g is None else real_view(dense(g))
                for g, w in zip(found, self.weights, strict=True)]

    def push(self, direction: Parts) -> Tensor:
        """J u, of the outputs' shape, by forward mode; by differentiating the backward pass where that has no rule."""
        try:
            return self.push_forwards(direction)
        except (RuntimeError, NotImplementedError):
            return self.push_through_backward(direction)

    def push_forwards(self, direction: Parts) -> Tensor:
        with forward_ad.dual_level():
            duals = {name: forward_ad.make_dual(w.detach(), torch.view_as_complex(u) if w.is_complex() else u)
                     for (name, w), u in zip(self.parameters.items(), direction, strict=True)}
            with torch.no_grad():
                moved = self.run(self.x, duals)
            tangent = forward_ad.unpack_dual(moved).tangent
        return torch.zeros_like(self.outputs) if tangent is None else tangent.detach()

    def push_through_backward(self, direction: Parts) -> Tensor:
        """J^T v is linear in v, so its derivative along u is J u."""
        cotangent = torch.zeros_like(self.outputs).requires_grad_()
        pulled = torch.autograd.grad(self.outputs, list(self.parameters.values()), cotangent, create_graph=True,
                                     allow_unused=True)
        along = sum((real_view(g) * u).sum() for g, u in zip(pulled, direction, strict=True) if g is not None)
        return torch.autograd.grad(along, cotangent, retain_graph=True)[0].detach()

    def samples_are_apart(self) -> bool:
        """Whether samples have the same outputs alone as in the batch; the first, the middle and the last are tried."""
        whole = self.outputs.detach()
        for i in {0, self.samples // 2, self.samples - 1}:
            try:
                alone = self.run(self.x[i:i + 1]).detach()
            except (RuntimeError, ValueError):   # such as batch norm, which has no variance of one sample
                return False
            if alone.shape != whole[i:i + 1].shape or not torch.allclose(
                    alone, whole[i:i + 1], rtol=SAME, atol=SAME * float(whole.abs().amax()), equal_nan=True):
                return False
        return True

    # --- the loss as a function of the outputs -----------------------------------------------------------------------

    def loss_and_residual(self) -> tuple[float, Tensor]:
        """L(z) and dL/dz, of the outputs' shape."""
        z = self.outputs.detach().requires_grad_()
        loss = self.objective.value(z, self.y)
        return loss.item(), torch.autograd.grad(loss, z)[0]

    def curvature(self) -> Callable[[Tensor], Tensor]:
        """v -> (d^2 L / dz^2) v."""
        z = self.outputs.detach().requires_grad_()
        slope = torch.autograd.grad(self.objective.value(z, self.y), z, create_graph=True)[0]
        if not slope.requires_grad:   # a loss that is linear in the outputs
            return torch.zeros_like
        return lambda v: torch.autograd.grad(slope, z, v.view_as(z), retain_graph=True)[0].detach()


def jacobian_rows(net: Linearised, apart: bool) -> Iterator[Parts]:
    """J row by row, in blocks of one sample's outputs: (output, *parameter) for each parameter.

    If `apart`, each sample goes through the model alone, so that its rows cost a pass of one sample, not of the batch.
    """
    size = net.outputs[0].numel()
    unit = torch.eye(size, dtype=net.outputs.dtype, device=net.outputs.device)
    for i in tqdm(range(net.samples), desc="rows of the kernel", unit="sample", **BAR):
        if apart:
            outputs = net.run(net.x[i:i + 1])
            yield pull_rows(net, outputs, unit.view(size, *outputs.shape))
        else:
            cotangents = unit.new_zeros(size, *net.outputs.shape)
            cotangents[:, i] = unit.view(size, *net.outputs.shape[1:])
            yield pull_rows(net, net.outputs, cotangents)


def pull_rows(net: Linearised, outputs: Tensor, cotangents: Float[Tensor, "row *outputs"]) -> Parts:
    try:
        with quiet_fallback():
            return net.pull_from(outputs, cotangents, batched=True)
    except RuntimeError:   # an operation of the backward pass that vmap cannot run
        rows = [net.pull_from(outputs, one) for one in cotangents]
        return [torch.stack(parts) for parts in zip(*rows, strict=True)]


def centred(residual: Tensor) -> Tensor:
    """The residual less its mean over samples and positions, the part that a bias of the read-out learns by itself.

    Outputs are (sample, class, *position), or (sample, value).
    """
    over = [0, *range(2, residual.ndim)]
    return residual - residual.mean(over, keepdim=True)


def linearise(call: str, probe: nn.Module, x: Inputs, y: object, objective: Objective,
              state: RandomState) -> Linearised:
    net = Linearised(probe, x, y, state, objective)
    if not isinstance(net.outputs, Tensor):
        raise RefusalError(f"{call}: `model` must return one tensor, got {type(net.outputs).__name__}. "
                           f"{way_to_one(net.outputs)}")
    if not net.outputs.ndim or len(net.outputs) != len(x):
        raise RefusalError(f"{call}: `model` must keep the sample axis first, got output {tuple(net.outputs.shape)} "
                           f"for {len(x)} samples.")
    if net.outputs.requires_grad:
        check_gradients_can_be_asked_for(call, reachable(edge_of(net.outputs)))
    objective.check(net.outputs, y)
    objective.value(net.outputs.detach(), y)
    return net


def real_view(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def flat(parts: Parts) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


def split_like(vector: Tensor, parts: Parts) -> Parts:
    return [piece.view_as(part) for piece, part in
            zip(vector.split([part.numel() for part in parts]), parts, strict=True)]
