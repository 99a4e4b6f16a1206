"""States that a loop hands on without their gradient, as truncated backpropagation through time does (`h.detach()`)."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from flowstudy.measure.models.forward import has_place_in_graph
from flowstudy.measure.models.graph import Node, edge_of, reachable
from flowstudy.measure.models.outputs import tensors_in

Sources = list[GradientEdge]


class Detachments(TorchFunctionMode):
    """While a forward pass runs, sees what is computed without a gradient from what has one.

    Attributes:
        cut: such tensors, and where the gradients of what they were computed from would have arrived.
        met: of each layer that is given one of them as an input: those places, call by call.
        put_out: of each layer the nodes that make its outputs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cut = WeakIdKeyDictionary()
        self.met: dict[str, list[Sources]] = defaultdict(list)
        self.put_out: dict[str, set[Node]] = defaultdict(set)

    def __torch_function__(self, operation, types, args=(), kwargs=None):
        given = list(tensors_in([args, kwargs or {}]))
        sources = [edge_of(t) for t in given if has_place_in_graph(t) and t.grad_fn is not None]
        sources += [edge for t in given for edge in self.cut.get(t, ())]
        result = operation(*args, **(kwargs or {}))
        if sources:
            for t in tensors_in(result):
                if not t.requires_grad:
                    self.cut[t] = sources
        return result

    def enters(self, name: str, _module: nn.Module, args: tuple, kwargs: dict) -> None:
        given = (t for t in tensors_in([args, kwargs]) if t.is_floating_point() and not t.requires_grad)
        if sources := [edge for t in given for edge in self.cut.get(t, ())]:
            self.met[name].append(sources)

    def leaves(self, name: str, _module: nn.Module, _args: tuple, output: object) -> None:
        self.put_out[name] |= {edge_of(t).node for t in tensors_in(output) if has_place_in_graph(t)}

    def cuts(self) -> dict[str, int]:
        """Of each layer, in how many calls it is given without a gradient what came from its own earlier output."""
        return dict(Counter(name for name, calls in self.met.items() for sources in calls
                            if any(not self.put_out[name].isdisjoint(reachable(edge)) for edge in sources)))


def detached_states(layers: Mapping[str, nn.Module], run: Callable[[], Tensor]) -> tuple[object, dict[str, int]]:
    """What `run`, a forward pass, returns; and of layers, in how many calls they are given a detached state."""
    seen = Detachments()
    with ExitStack() as stack:
        for name, layer in layers.items():
            before = layer.register_forward_pre_hook(partial(seen.enters, name), with_kwargs=True)
            stack.callback(before.remove)
            stack.callback(layer.register_forward_hook(partial(seen.leaves, name)).remove)
        with seen:
            output = run()
    return output, seen.cuts()
