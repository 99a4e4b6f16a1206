"""Models whose computation cannot be seen from their layers: they call functions on parts, or define gradients."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Of(nn.Module):
    """function(*parts, x)"""

    def __init__(self, function: Callable[..., Tensor], *parts: nn.Module):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(*self.parts, x)


class Called(Of):
    """Does something beside `forward`."""

    def __call__(self, x: Tensor) -> Tensor:
        return 1.5 * super().__call__(x)


class StraightThrough(torch.autograd.Function):
    """sign(h), whose gradient is let through."""

    @staticmethod
    def forward(ctx, h: Tensor) -> Tensor:
        return h.sign()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient


class Reversal(torch.autograd.Function):
    """h, whose gradient changes its sign: domain-adversarial training."""

    @staticmethod
    def forward(ctx, h: Tensor) -> Tensor:
        return h.view_as(h)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return -0.7 * gradient


class Surrogate(torch.autograd.Function):
    """A spike with a smooth gradient that looks at its numbers, so that no batching rule can be made of it."""

    @staticmethod
    def forward(ctx, h: Tensor) -> Tensor:
        ctx.save_for_backward(h)
        return (h > 0).to(h.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient / (1 + ctx.saved_tensors[0].abs()) ** 2 if gradient.any() else gradient


def without_gradient(hidden: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return hidden(x)


def half_detached(h: Tensor) -> Tensor:
    half = h.shape[1] // 2
    return torch.cat([h[:, :half].detach(), h[:, half:]], 1)


def hook_on_tensor(h: Tensor) -> Tensor:
    """tanh, whose gradient a hook makes smaller."""
    h = torch.tanh(h)
    if h.requires_grad:
        h.register_hook(lambda gradient: 0.3 * gradient)
    return h


def rms_in_float32(h: Tensor) -> Tensor:
    low = h.float()
    return (low * torch.rsqrt(low.square().mean(-1, keepdim=True) + 1e-6)).to(h.dtype)
