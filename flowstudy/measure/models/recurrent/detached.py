"""States that a loop hands on without their gradient, as truncated backpropagation through time does (`h.detach()`)."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from flowstudy.measure.models.forward import has_place_in_graph
from flowstudy.measure.models.graph import Key, Node, below, edge_of, key_of
from flowstudy.measure.models.outputs import tensors_in

Sources = dict[Key, GradientEdge]
JOINS = {"cat", "concat", "concatenate", "stack", "hstack", "vstack"}   # their results hold their arguments whole


class Detachments(TorchFunctionMode):
    """While a forward pass runs, sees what is computed without a gradient from what has one.

    Attributes:
        cut: such tensors, and where the gradients of what they were computed from would have arrived.
        met: of each layer that is given one of them as an input: those places, call by call.
        put_out: the nodes that make layers' outputs, and the layers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cut = WeakIdKeyDictionary()
        self.met: list[tuple[str, Sources]] = []
        self.put_out: dict[Node, set[str]] = defaultdict(set)

    def __torch_function__(self, operation, types, args=(), kwargs=None):
        given = list(tensors_in([args, kwargs or {}]))
        sources = self.sources_of(given)
        for t in given:
            if has_place_in_graph(t) and t.grad_fn is not None:
                edge = edge_of(t)
                sources[key_of(edge)] = edge
        result = operation(*args, **(kwargs or {}))
        if sources and not takes_shapes_alone(operation):
            whole = self.sources_of(given) if getattr(operation, "__name__", "") in JOINS else {}
            for t in tensors_in(result):
                if found := whole if t.requires_grad else sources:
                    self.cut[t] = found
        return result

    def sources_of(self, tensors: Iterable[Tensor]) -> Sources:
        return {key: edge for t in tensors for key, edge in self.cut.get(t, {}).items()}

    def enters(self, name: str, _module: nn.Module, args: tuple, kwargs: dict) -> None:
        if sources := self.sources_of(t for t in tensors_in([args, kwargs]) if t.is_floating_point()):
            self.met.append((name, sources))

    def leaves(self, name: str, _module: nn.Module, _args: tuple, output: object) -> None:
        for t in tensors_in(output):
            if has_place_in_graph(t):
                self.put_out[edge_of(t).node].add(name)

    def cuts(self) -> dict[str, int]:
        """Number of calls of each layer whose input came, without gradient, from an earlier output of that layer."""
        behind = layers_behind([edge.node for _, sources in self.met for edge in sources.values()], self.put_out)
        return dict(Counter(name for name, sources in self.met
                            if any(name in behind[edge.node] for edge in sources.values())))


def takes_shapes_alone(operation: Callable) -> bool:
    """`zeros_like`, `new_zeros` and the like make tensors of another one's shape, and nothing of its values."""
    name = getattr(operation, "__name__", "")
    return name.endswith("_like") or name.startswith("new_")


def layers_behind(ends: Iterable[Node], put_out: Mapping[Node, set[str]]) -> dict[Node, frozenset[str]]:
    """For these nodes and all nodes before them, the layers whose outputs they were computed from."""
    found: dict[Node, frozenset[str]] = {}
    waiting = list(ends)
    while waiting:
        node = waiting[-1]
        before = [n for n, _ in below(node)]
        if node not in found and (left := [n for n in before if n not in found]):
            waiting += left
            continue
        found.setdefault(node, frozenset(put_out.get(node, ())).union(*(found[n] for n in before)))
        waiting.pop()
    return found


def detached_states(layers: Mapping[str, nn.Module], run: Callable[[], object]) -> tuple[object, dict[str, int]]:
    """The result of `run`, a forward pass, and for each layer the number of calls that are given a detached state."""
    if not layers:
        return run(), {}
    seen = Detachments()
    with ExitStack() as stack:
        for name, layer in layers.items():
            before = layer.register_forward_pre_hook(partial(seen.enters, name), with_kwargs=True)
            stack.callback(before.remove)
            stack.callback(layer.register_forward_hook(partial(seen.leaves, name)).remove)
        with seen:
            output = run()
    return output, seen.cuts()
