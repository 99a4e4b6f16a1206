"""A model as a chain of factors x -> h_1 -> ... -> output, each a function of the one before alone.

The factors are stretches of the autograd graph of one untouched forward pass.  A cut is made wherever a single value
carries everything on, so that a residual or highway block is one factor; operations without weights (activations,
pooling, reshaping) join the factor before them, those on the input the first one.
"""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from tqdm import tqdm

from flowstudy import names
from flowstudy.nets.blocks import runs_as

from .dense_jacobian import AGREEMENT, BAR, Stretch, proves, reverse_rows
from .graph import GradientEdge, Key, Segment, edge_of, key_of, leaves_in, place_of, segments_between, shape_of
from .layer_rules import BLOCK_RULES, UNITWISE, affine_rows, jacobians_of_sort, sort_of
from .layers import listed_layers

TOGETHER, GROUP_BYTES = 32, 2**26   # factors computed at once on a GPU, at most, and their size
SAFE = 2.0**300  # cotangents above this size or below its inverse may have lost digits, and are drawn anew


@dataclass(frozen=True)
class Call:
    """One call of a module whose Jacobian is known in closed form."""

    module: nn.Module
    x: Tensor
    version: int
    output: GradientEdge

    @property
    def intact(self) -> bool:
        """The input still holds what it held: nothing has written to it since."""
        return self.x._version == self.version


@contextmanager
def noted_calls(model: nn.Module) -> Iterator[dict[Key, Call]]:
    """While the context lasts, calls of modules with a closed form, by where their input's gradient arrives."""
    calls: dict[Key, Call] = {}
    inputs: dict[nn.Module, tuple[Key, Tensor, int]] = {}

    def before(module: nn.Module, args: tuple) -> None:
        if len(args) == 1 and isinstance(args[0], Tensor) and args[0].requires_grad:
            inputs[module] = key_of(edge_of(args[0])), args[0].detach(), args[0]._version

    def after(module: nn.Module, _args: tuple, output: object) -> None:
        noted = inputs.pop(module, None)
        if noted is not None and isinstance(output, Tensor) and output.requires_grad:
            key, x, version = noted
            calls.setdefault(key, Call(module, x, version, edge_of(output)))

    names.meet_kinds()
    known = [module for module in model.modules() if runs_as(module, type(module))
             and (type(module) is nn.Linear or type(module) in BLOCK_RULES or type(module) in UNITWISE)]
    within = {part for block in known for part in block.children()}  # called at the block's input, whose rule it is not
    known = [module for module in known if module not in within]
    with ExitStack() as stack:
        for module in known:
            stack.callback(module.register_forward_pre_hook(before).remove)
            stack.callback(module.register_forward_hook(after).remove)
        yield calls


@dataclass(frozen=True)
class Factor(Stretch):
    """A factor of a chain.

    Attributes:
        name: of the first module with weights in it, or of the operation.
        rule: the layer whose Jacobian in closed form is the factor's, and its input.
        weights: the leaves that it uses.
    """

    name: str = ""
    rule: tuple[nn.Module, Tensor] | None = None
    weights: tuple[Tensor, ...] = ()

    @cached_property
    def sort(self) -> Hashable | None:
        """What factors must have in common for their Jacobians to be computed together in closed form.

        None where there is none: of no known layer, or of a block that broadcasts its layer's outputs over its input.
        """
        found = None if self.rule is None else sort_of(self.rule)
        return None if found is None or affine_rows(self.rule[0]) < self.outputs else found


def groups_of(chain: list[Factor]) -> Iterator[slice]:
    """Neighbours that are alike: on a GPU as many as are computed at once, on a CPU one, which fits its cache."""
    begin = 0
    while begin < len(chain):
        first = chain[begin]
        size = 8 * first.samples * first.outputs * first.inputs
        most = 1 if first.device.type == "cpu" else max(1, min(TOGETHER, GROUP_BYTES // max(1, size)))
        end = begin + 1
        while end < min(len(chain), begin + most) and alike(first, chain[end]):
            end += 1
        yield slice(begin, end)
        begin = end


def alike(one: Factor, other: Factor) -> bool:
    return (one.sort == other.sort and shape_of(one.start) == shape_of(other.start)
            and shape_of(one.end) == shape_of(other.end))


def jacobians_of(group: list[Factor]) -> Float[Tensor, "factor sample outputs inputs"]:
    """The Jacobians of factors that are alike."""
    if group[0].sort is not None:
        return jacobians_of_sort([factor.rule for factor in group]).to(group[0].device, torch.float64)
    found = [reverse_rows(factor, factor.at_once()) for factor in group]
    return found[0].unsqueeze(0) if len(found) == 1 else torch.stack(found)


def chain_of(model: nn.Module, whole: Stretch, calls: dict[Key, Call]) -> list[Factor]:
    """The factors of the stretch from the model's input to its output, in order; one where it cannot be cut."""
    segments = segments_between(whole.end, whole.start, whole.nodes)
    names = owner_names(model)
    factors: list[Factor] = []
    for segment in segments_with_weights(segments, whole.samples):
        factors.append(Factor(segment.before, segment.after, whole.device, tuple(segment.nodes),
                              name=name_of(segment, names), rule=rule_of(segment, calls),
                              weights=tuple(leaves_in(segment.side).values())))
    return factors


def segments_with_weights(segments: list[Segment], samples: int) -> list[Segment]:
    """The segments in forward order, without cuts at values that have no sample axis; segments without weights are
    joined to the one before, the first ones to the one after."""
    result: list[Segment] = []
    for segment in reversed(segments):
        if result and (not is_batch(result[-1].after, samples) or not leaves_in(segment.side)
                       or not leaves_in(result[0].side)):
            last = result.pop()
            segment = Segment(segment.after, last.before, segment.nodes + last.nodes, segment.side | last.side)
        result.append(segment)
    return result


def is_batch(edge: GradientEdge, samples: int) -> bool:
    value, shape = edge.node._input_metadata[edge.output_nr], shape_of(edge)
    return value.dtype.is_floating_point and len(shape) >= 2 and shape[0] == samples


def owner_names(model: nn.Module) -> dict[int, str]:
    """The name shown for each parameter, by its id: of the listed layer around it, or of the module that holds it."""
    listed = listed_layers(model)
    names = {}
    for path, p in model.named_parameters():
        owner = path.rpartition(".")[0]
        names[id(p)] = next((name for name in listed if f"{owner}.".startswith(f"{name}.")), owner)
    return names


def name_of(segment: Segment, names: dict[int, str]) -> str:
    """The segment's name, after the first node of the forward pass in it that uses a weight."""
    for node in reversed(segment.nodes):
        waiting, seen = [n for n, _ in node.next_functions if n in segment.side], set()
        while waiting:
            n = waiting.pop()
            if hasattr(n, "variable") and id(n.variable) in names:
                return names[id(n.variable)]
            if n not in seen:
                seen.add(n)
                waiting += [b for b, _ in n.next_functions if b is not None]
    return segment.nodes[-1].name().removesuffix("Backward0") if segment.nodes else "Identity"


def rule_of(segment: Segment, calls: dict[Key, Call]) -> tuple[nn.Module, Tensor] | None:
    """The block, or the linear layer with the unit-wise modules after it, that leads from one cut to the other."""
    first = calls.get(key_of(segment.before))
    if first is None or not first.intact:
        return None
    modules, at, end = [first.module], key_of(first.output), key_of(segment.after)
    while at != end and len(modules) <= len(segment.nodes):
        following = calls.get(at)
        if following is None:
            return None
        modules.append(following.module)
        at = key_of(following.output)
    return (nn.Sequential(*modules) if len(modules) > 1 else first.module, first.x) if at == end else None


@dataclass(frozen=True)
class Pulled:
    """A random row at the output, and where one backward pass through the uncut graph takes it.

    Attributes:
        images: at the start of the first factor of a chain, and of the others if there is room for that; None where
            nothing arrives.
    """

    row: Float[Tensor, "sample *outputs"]
    images: tuple[Tensor | None, ...]

    @property
    def ends(self) -> tuple[Float[Tensor, "sample *outputs"], Float[Tensor, "sample *inputs"]]:
        """The row, and where it arrives, of an output that depends on the input."""
        return self.row, self.images[0].double()


def pulled_through(chain: Sequence[Stretch]) -> Pulled:
    last = chain[-1]
    row = last.random_row()
    images = torch.autograd.grad(last.end, [factor.start for factor in chain], row.to(place_of(last.end)),
                                 retain_graph=True, allow_unused=True)
    return Pulled(row, tuple(None if image is None else image.to(last.device) for image in images))


class NotProvedError(Exception):
    """A factor's Jacobian disagrees with autograd's backward pass, so that the chain must not be used."""


def proved_jacobians(chain: list[Factor], agreement: float = AGREEMENT,
                     pulled: Pulled | None = None) -> Iterator[Float[Tensor, "sample out in"]]:
    """The Jacobian of every factor, each held against the backward pass of the uncut graph.

    A random cotangent at the output is pulled back once through the whole graph; at every cut it must be what the
    factor makes of it.  Samples in which it has left float64's safe range are held against another one, pulled back
    through the factor alone, and through it and the one before it.

    Args:
        pulled: a row that was pulled back before; where it was not to every cut, another one is.
    Raises:
        NotProvedError: they differ.
    """
    if pulled is None or len(pulled.images) < len(chain):
        pulled = pulled_through(chain)
    cotangents = [whole(image, factor.start, pulled.row) for factor, image in zip(chain, pulled.images, strict=True)]
    cotangents.append(pulled.row)
    safe = safe_samples(cotangents[1:])
    before: tuple[Factor, Tensor] | None = None
    with tqdm(desc="factors", total=len(chain), **BAR) as bar:
        for group in groups_of(chain):
            factors, jacobians = chain[group], jacobians_of(chain[group])
            rows, images = cotangents[group.start + 1:group.stop + 1], cotangents[group]
            if not (safe[group].all() and proves(jacobians, torch.stack(rows), torch.stack(images), agreement)):
                for each in zip(factors, jacobians, rows, images, safe[group], strict=True):
                    check_jacobian(*each, before, agreement)
                    before = each[:2]
            before = factors[-1], jacobians[-1]
            yield from jacobians
            bar.update(len(factors))


def check_jacobian(factor: Factor, jacobians: Tensor, row: Tensor, image: Tensor, safe: Tensor,
                 before: tuple[Factor, Tensor] | None, agreement: float) -> None:
    """Raise NotProvedError if the factor's Jacobian does not take its row where autograd takes it.

    Args:
        safe: samples in which row and image may be held against each other; the others get another row.
        before: the factor before it, and its Jacobian.
    """
    if not proves(jacobians[safe], row[safe], image[safe], agreement):
        raise NotProvedError(factor.name)
    if not safe.all() and not proves_alone(factor, jacobians, before, ~safe, agreement):
        raise NotProvedError(factor.name)


def proves_alone(factor: Factor, jacobians: Tensor, before: tuple[Factor, Tensor] | None, samples: Tensor,
                 agreement: float) -> bool:
    """Whether the Jacobians of a factor, and of it with the factor before, agree with autograd in these samples."""
    row = factor.random_row()
    if not proves(jacobians[samples], row[samples], factor.back(row)[samples], agreement):
        return False
    if before is None:
        return True
    through = Stretch(before[0].start, factor.end, factor.device).back(row)
    middle = (row.reshape(len(row), 1, -1) @ jacobians).squeeze(1)
    return proves(before[1][samples], middle[samples], through[samples], agreement)


def whole(value: Tensor | None, edge: GradientEdge, like: Tensor) -> Tensor:
    return like.new_zeros(shape_of(edge)) if value is None else value


def safe_samples(values: list[Tensor]) -> Bool[Tensor, "value sample"]:
    """For each sample of each value, whether its numbers are all far enough from the ends of float64's range to be
    exact; on the CPU."""
    sizes = torch.stack([torch.linalg.vector_norm(value.reshape(len(value), -1), torch.inf, -1).double()
                         for value in values]).cpu()
    return (sizes < SAFE) & (sizes > 1 / SAFE)
