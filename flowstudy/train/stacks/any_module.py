"""A stack of any modules, trained by automatic differentiation: vmap over the nets, foreach updates."""

import copy

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flowstudy.train.batches import Batches, in_batches

from .ensemble import Stack

EVALUATION_BATCH = 2_000  # samples: bounds the memory of an evaluation pass, does not change its result beyond rounding


class StackedModules:
    """Trains a stack of any modules by vmap and autograd, with the interface of StackedFullyConnected.

    It is slower than that class, but not limited to the library's own blocks.
    """

    def __init__(self, template: nn.Module, state: dict[str, Tensor], momentum: Float[Tensor, " net"],
                 x: Float[Tensor, "sample *inputs"], y: Int[Tensor, " sample"], activations: tuple[str, ...] = ()):
        self.x, self.y, self.activations = x, y, activations
        self.template = copy.deepcopy(template)  # a call puts weights into it: a thread's own
        self.state = {name: value.detach().clone().requires_grad_() for name, value in state.items()}
        self.weights = list(self.state.values())
        self.velocity = [torch.zeros_like(w) for w in self.weights]
        self.momentum = per_net(momentum, self.weights)
        self.rate = [torch.zeros_like(m) for m in self.momentum]

    def __len__(self) -> int:
        return len(self.weights[0])

    def set_rate(self, rate: Float[Tensor, " net"]) -> None:
        torch._foreach_copy_(self.rate, per_net(rate, self.weights))

    def run(self, batches: Batches) -> None:
        """A step for each batch."""
        for index, weight in zip(*batches, strict=True):
            self.step(index, weight)

    def step(self, index: Int[Tensor, " sample"], weight: Float[Tensor, " sample"]) -> None:
        loss = (cross_entropies(self.outputs(index), self.y[index]) * weight.to(self.weights[0])).sum()
        # Nets share no weights, so the sum's gradient is each net's own, and one net's nan stays its own.
        gradients = torch.autograd.grad(loss, self.weights)
        with torch.no_grad():
            torch._foreach_mul_(self.velocity, self.momentum)
            torch._foreach_addcmul_(self.velocity, gradients, self.rate, value=-1.0)
            torch._foreach_add_(self.weights, self.velocity)

    @torch.no_grad()
    def loss(self) -> Float[Tensor, " net"]:
        """Mean cross-entropy [nats per sample] over the training set, float64."""
        total = torch.zeros(len(self), dtype=torch.float64, device=self.x.device)
        for index, weight in zip(*in_batches(len(self.x), EVALUATION_BATCH), strict=True):
            index = index[:weight.count_nonzero()].to(self.x.device)
            total += cross_entropies(self.outputs(index), self.y[index]).double().sum(-1)
        return total / len(self.x)

    def bytes(self) -> int:
        """Of weights, their gradients and velocities; a pass's activations come on top."""
        return 3 * sum(w.nbytes for w in self.weights)

    def outputs(self, index: Int[Tensor, " sample"]) -> Float[Tensor, "net sample classes"]:
        return Stack(self.template, self.state, self.activations)(self.x[index])

    def parameters(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self.state.items()}

    def velocities(self) -> dict[str, Tensor]:
        return dict(zip(self.state, self.velocity, strict=True))


def cross_entropies(logits: Float[Tensor, "net sample classes"],
                    y: Int[Tensor, " sample"]) -> Float[Tensor, "net sample"]:
    """[nats] of each net and sample."""
    return -torch.log_softmax(logits, -1).gather(-1, y.expand(len(logits), -1).unsqueeze(-1)).squeeze(-1)


def per_net(values: Float[Tensor, " net"], weights: list[Tensor]) -> list[Tensor]:
    """(net,) values shaped to multiply each (net, ...) weight."""
    return [values.to(w).view(-1, *[1] * (w.ndim - 1)) for w in weights]
