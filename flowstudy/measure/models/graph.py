"""The autograd graph of one forward pass, and where it can be cut: at values that alone carry the computation on.

Autograd's own graph is what is cut, not the program: whatever the model does in Python (branches, hooks, blocks without
gradients, functions with derivatives of their own, recomputation), the graph is what its backward pass runs through.

An edge (node, output number) stands for one tensor of the forward pass, the gradient with respect to which flows along
it.  A cut is an edge that every path from the end to the start runs through, and at which no hook changes the gradient:
such a hook would act on what arrives there, and again on what is sent on.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from flowstudy.refusal import RefusalError

ONES_BYTES = 2**26  # of the gradients by which hooks are looked for, at once

Node = Any  # torch.autograd.graph.Node, or what scripted functions have in its place
Key = tuple[Node, int]


def key_of(edge: GradientEdge) -> Key:
    return edge.node, edge.output_nr


def edge_of(value: Tensor) -> GradientEdge | None:
    """The edge at which the gradient with respect to this tensor arrives; None where it requires no gradient."""
    return get_gradient_edge(value) if value.requires_grad else None


@dataclass
class Segment:
    """The part of the graph between one cut and the next, towards the start.

    Attributes:
        after: the cut at its output, where its backward pass begins.
        before: the cut at its input; None where the start is not reached.
        nodes: of the path between the two, in the order in which a backward pass meets them.
        side: nodes that feed into the path from the side: weights, and what is computed from them alone.
    """

    after: GradientEdge
    before: GradientEdge | None
    nodes: list[Node]
    side: set[Node] = field(default_factory=set)


def below(node: Node) -> list[Key]:
    """The values that a node's output was computed from."""
    return [(n, number) for n, number in node.next_functions if n is not None]


def reachable(edge: GradientEdge) -> list[Node]:
    """Every node that a backward pass from this edge meets, each after all that lead to it."""
    waiting: dict[Node, int] = defaultdict(int)
    seen, stack = {edge.node}, [edge.node]
    while stack:
        for n, _ in below(stack.pop()):
            waiting[n] += 1
            if n not in seen:
                seen.add(n)
                stack.append(n)
    order, ready = [], [edge.node]
    while ready:
        node = ready.pop()
        order.append(node)
        for n, _ in below(node):
            waiting[n] -= 1
            if not waiting[n]:
                ready.append(n)
    return order


def check_gradients_can_be_asked_for(call: str, nodes: Sequence[Node]) -> None:
    """Refuse checkpoints with use_reentrant=True: they accumulate into leaves, and support no autograd.grad."""
    if any(node.name() == "CheckpointFunctionBackward" for node in nodes):
        raise RefusalError(f"{call}: `model` must checkpoint with use_reentrant=False, got a checkpoint whose "
                           "gradients come by .backward() alone. Pass use_reentrant=False to "
                           "torch.utils.checkpoint.checkpoint: the gradients are the same.")


def segments_between(end: GradientEdge, start: GradientEdge | None,
                     order: Sequence[Node] | None = None, *, through_hooks: bool = False) -> list[Segment]:
    """The graph from the end to the start, cut wherever it can be; one segment where `start` is not in it.

    Args:
        order: the nodes that are `reachable` from the end, where they are known.
        through_hooks: cut where a hook changes the gradient too, to look at the segments and not to run them.
    """
    order = reachable(end) if order is None else order
    moving: set[Node] = set()
    if start is not None:
        for node in reversed(order):   # the start's own node, and all that its value flows into
            if node is start.node or any(n in moving for n, _ in below(node)):
                moving.add(node)
    if end.node not in moving:
        return [Segment(end, None, [], set(order))]
    met: list[tuple[Node, Key | None]] = []   # nodes in order, each with the edge that alone is open before it
    open_edges = {key_of(end)}
    for node in order:
        if node not in moving:
            continue
        met.append((node, next(iter(open_edges)) if len(open_edges) == 1 else None))
        if node is start.node:
            break
        open_edges = {key for key in open_edges if key[0] is not node}
        open_edges |= {(n, number) for n, number in below(node) if n in moving}
    alone = dict.fromkeys(only for _, only in met if only not in (None, key_of(end)))
    hooked = set() if through_hooks else hooked_among(list(alone))
    segments, inside, after = [], [], end
    for node, only in met:
        if only is not None and only != key_of(after) and only not in hooked:
            segments.append(Segment(after, GradientEdge(*only), inside))
            after, inside = GradientEdge(*only), []
        inside.append(node)
    for segment in segments:
        segment.side.update(side_of(segment.nodes, moving))
    return segments or [Segment(end, start, [], set())]


def hooked_among(keys: list[Key]) -> set[Key]:
    """The edges where a hook on the tensor changes the gradient that arrives: ones are sent to each."""
    alike: dict[tuple[torch.Size, torch.dtype, torch.device], list[GradientEdge]] = {}
    for node, number in keys:
        edge = GradientEdge(node, number)
        alike.setdefault((shape_of(edge), dtype_of(edge), place_of(edge)), []).append(edge)
    hooked: set[Key] = set()
    for (shape, dtype, device), edges in alike.items():
        most = max(1, ONES_BYTES // max(1, 8 * shape.numel()))   # at once: a GPU is waited for each time
        for some in (edges[i:i + most] for i in range(0, len(edges), most)):
            arrived = torch.empty(len(some), shape.numel(), dtype=dtype, device=device)
            for kept, edge in zip(arrived, some, strict=True):   # copied before another hook can write in it
                ones = torch.ones(shape, dtype=dtype, device=device)
                kept.copy_(torch.autograd.grad(edge, edge, ones, retain_graph=True)[0].reshape(-1))
            same = (arrived == 1).all(-1)
            hooked |= {key_of(edge) for edge, is_same in zip(some, same.tolist(), strict=True) if not is_same}
    return hooked


def side_of(nodes: list[Node], moving: set[Node]) -> set[Node]:
    found: set[Node] = set()
    waiting = [n for node in nodes for n, _ in below(node) if n not in moving]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [n for n, _ in below(node)]
    return found


def leaves_in(nodes: set[Node] | list[Node]) -> dict[int, Tensor]:
    """The leaves whose gradients these nodes accumulate, by identity."""
    return {id(node.variable): node.variable for node in nodes if hasattr(node, "variable")}


def shape_of(edge: GradientEdge) -> torch.Size:
    return torch.Size(edge.node._input_metadata[edge.output_nr].shape)


def dtype_of(edge: GradientEdge) -> torch.dtype:
    return edge.node._input_metadata[edge.output_nr].dtype


def place_of(edge: GradientEdge) -> torch.device:
    """The device of the value, and of the gradients that arrive there."""
    return edge.node._input_metadata[edge.output_nr].device


def places_in(nodes: Sequence[Node]) -> set[torch.device]:
    """The devices of the values that these nodes' own values were computed from."""
    return {place_of(GradientEdge(*key)) for node in nodes for key in below(node)}


COARSE = {torch.float32: "float32", torch.complex64: "float32", torch.float16: "float16",
          torch.bfloat16: "bfloat16"}


def coarsest(nodes: list[Node]) -> torch.dtype:
    """The real dtype of fewest digits in which a backward pass through these nodes computes."""
    found = {value.dtype for node in nodes for value in node._input_metadata}
    present = [dtype for dtype in COARSE if dtype in found]
    return getattr(torch, COARSE[max(present, key=lambda d: torch.finfo(d).eps)]) if present else torch.float64


def largest_value(nodes: list[Node]) -> int:
    """Numbers in the largest gradient that passes through these nodes: what each row in flight costs."""
    return max((math.prod(value.shape) for node in nodes for value in node._input_metadata), default=0)
