"""One backward pass, with an exponent at every cut of the graph, so that an error signal of 1e-400 is 1e-400.

Autograd's own pass comes first.  Where all that it finds lies far inside float64's range, that is the answer.  Where
some of it has underflowed or overflowed, the graph is run through once more, segment by segment: at every cut the error
signal is brought to size one by a power of two that is kept beside it.  Multiplying by a power of two is exact, so
nothing is lost, however far the norm has fallen or grown.  What both passes can represent must agree: where it does
not (a hook that clips gradients is not linear, and a hook at a cut runs twice) autograd's own numbers stand.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import GradientEdge

from .graph import coarsest, edge_of, key_of, reachable, segments_between

# A gradient whose largest entry lies between this bound and its inverse has lost no digits.
SAFE = {torch.float64: 2.0**300, torch.float32: 2.0**40, torch.bfloat16: 2.0**40, torch.float16: 2.0**4}
AGREEMENT = 1e-9     # relative difference between the two passes that rounding explains
VISIBLE = 2.0**-900  # peaks above this have not underflowed in autograd's own pass


@dataclass(frozen=True)
class Scaled:
    """A tensor times 2**exponent, (net,) or a scalar: the exponent is a whole number, exact."""

    tensor: Tensor
    exponent: Float[Tensor, "*net"]

    def plus(self, other: "Scaled") -> "Scaled":
        exponent = torch.maximum(self.exponent, other.exponent)
        return Scaled(sum(times_power(one.tensor, one.exponent - exponent) for one in (self, other)), exponent)

    def normalised(self) -> "Scaled":
        """The same value with the largest entry of each net in [0.5, 1); nets of zeros, nan or inf stay as they are."""
        size = peak(self.tensor, self.exponent.ndim)
        shift = torch.where(size.isfinite() & (size > 0), torch.frexp(size).exponent.to(size), 0.0)
        return Scaled(times_power(self.tensor, -shift), self.exponent + shift)


def peak(tensor: Tensor, lead: int) -> Float[Tensor, "*net"]:
    """The largest absolute value of the entries, of each net of a stack."""
    flat = tensor.abs().reshape(*tensor.shape[:lead], -1)
    return flat.amax(-1).double() if flat.shape[-1] else flat.sum(-1).double()


def times_power(tensor: Tensor, exponent: Float[Tensor, "*net"]) -> Tensor:
    """tensor * 2**exponent, multiplied in two steps, since a power such as 2**1074 overflows float64."""
    exponent = exponent.clamp(-4000.0, 4000.0).view((*exponent.shape, *[1] * (tensor.ndim - exponent.ndim)))
    half = (exponent / 2).floor()
    return tensor * torch.exp2(half).to(tensor.dtype) * torch.exp2(exponent - half).to(tensor.dtype)


@dataclass(frozen=True)
class Found:
    """The gradients found by a backward pass; None where the loss does not depend on a value.

    Attributes:
        errors: d loss / d output of each layer, in the order in which they were asked for.
        gradients: d loss / d weight, by name.
        input_gradient: d loss / d input.
    """

    errors: list[Scaled | None]
    gradients: dict[str, Scaled | None]
    input_gradient: Scaled | None


def backward_pass(loss: Float[Tensor, "*net"], start: GradientEdge | None, layers: Sequence[GradientEdge | None],
                  weights: dict[str, Tensor]) -> Found:
    """The gradients of a loss with respect to an input, to the layers' outputs, and to weights.

    Args:
        loss: a scalar, or one for each net of a stack.
        start: of the input; None where it has no gradient.
        layers: of each layer's output; None where it asks for no gradient.
        weights: leaves, by name.
    """
    zero = torch.zeros_like(loss.detach(), dtype=torch.float64)
    leaves = {name: edge_of(weight) for name, weight in weights.items()}
    wanted = [edge for edge in (start, *layers, *leaves.values()) if edge is not None]
    found: dict = {}
    if loss.requires_grad and wanted:
        found = plain_pass(loss, wanted, zero)
        dtype = coarsest(reachable(edge_of(loss)))
        if not all(is_safe(value, dtype) for value in found.values() if value is not None):
            source = start or next((edge for edge in layers if edge and found[key_of(edge)] is not None), None)
            scaled = scaled_pass(loss, source, wanted, zero)
            if all(agree(found[key], scaled[key]) for key in found):
                found = scaled

    def at(edge: GradientEdge | None) -> Scaled | None:
        return None if edge is None else found.get(key_of(edge))

    return Found([at(edge) for edge in layers], {name: at(edge) for name, edge in leaves.items()}, at(start))


def plain_pass(loss: Tensor, wanted: list[GradientEdge], zero: Tensor) -> dict:
    """The gradients of autograd's own backward pass, by edge."""
    keys = list(dict.fromkeys(map(key_of, wanted)))
    values = torch.autograd.grad(loss.sum(), [GradientEdge(*key) for key in keys], retain_graph=True, allow_unused=True)
    return {key: None if value is None else Scaled(dense(value), zero.to(value.device))
            for key, value in zip(keys, values, strict=True)}


def dense(gradient: Tensor) -> Tensor:
    """The gradient as a dense tensor: an embedding's may be sparse."""
    return gradient if gradient.layout == torch.strided else gradient.to_dense()


def scaled_pass(loss: Tensor, source: GradientEdge | None, wanted: list[GradientEdge], zero: Tensor) -> dict:
    """The gradients of `plain_pass`, computed segment by segment with an exponent at every cut."""
    found: dict = dict.fromkeys(map(key_of, wanted))
    at_node: dict = {}
    for key in found:
        at_node.setdefault(key[0], []).append(key)
    error: Scaled | None = Scaled(torch.ones_like(loss), zero)
    for segment in segments_between(edge_of(loss), source):
        if error is None:
            break
        error = error.normalised()
        ends = [key_of(edge) for edge in (segment.after, segment.before) if edge is not None]
        inside = [key for node in (*segment.nodes, *segment.side) for key in at_node.get(node, ()) if key not in ends]
        targets = [*ends[1:], *inside]
        if not targets:
            continue
        values = torch.autograd.grad(segment.after, [GradientEdge(*key) for key in targets], error.tensor,
                                     retain_graph=True, allow_unused=True)
        here = {key: None if value is None else Scaled(dense(value), error.exponent.to(value.device))
                for key, value in zip(targets, values, strict=True)}
        error = here[ends[1]] if segment.before is not None else None
        for key, value in here.items():
            if key in found and value is not None:
                found[key] = value if found[key] is None else found[key].plus(value)
    return found


def is_safe(value: Scaled, dtype: torch.dtype) -> bool:
    """Whether the value is far from the ends of the dtype's range; true for nan too, which no scaling removes."""
    size, safe = peak(value.tensor, value.exponent.ndim), SAFE[dtype]
    return bool(((size < safe) & (size > 1 / safe) | size.isnan()).all())


def agree(plain: Scaled | None, scaled: Scaled | None) -> bool:
    """Equal to rounding wherever autograd's own pass has digits."""
    if plain is None or scaled is None:
        return plain is scaled
    lead = plain.exponent.ndim
    size = peak(plain.tensor, lead)
    gap = peak(plain.tensor - times_power(scaled.tensor, scaled.exponent), lead)
    unseen = ~(size > VISIBLE) | ~size.isfinite()
    return bool((unseen | (gap <= AGREEMENT * size)).all())
