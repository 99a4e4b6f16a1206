"""A model as a chain of factors x -> h_1 -> ... -> output, each a function of the one before alone."""

from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, fx, nn

from flowstudy.nets.fully_connected import FullyConnected

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Chain:
    """The factors of a model at given inputs.

    Attributes:
        names: of each factor: its first module's, or the operation's.
        functions: of a batch, (sample, ...) to (sample, ...).
        values: values[l] is what factor l is applied to, values[-1] the output; one more than functions.
        self_contained: no factor takes a value that is computed outside the chain, such as a scaled parameter: the
            gradient of that parameter would miss a part.
    """

    names: list[str]
    functions: list[Function]
    values: list[Tensor]
    self_contained: bool = True

    def __len__(self) -> int:
        return len(self.functions)

    def part(self, start: int, stop: int) -> "Chain":
        return replace(self, names=self.names[start:stop], functions=self.functions[start:stop],
                       values=self.values[start:stop + 1])


def chain_of(model: nn.Module, x: Tensor, leaves: Container[nn.Module] = ()) -> Chain | None:
    """The model's chain at `x`, or None where it is not one that torch.fx can trace.

    A cut is made wherever a single value carries everything on, so that a residual or highway block is one factor;
    operations without weights (activations, pooling, reshaping) join the factor before them.

    Args:
        leaves: modules to call as they are, not to look into.
    """
    if (parts := chain_parts(model)) is not None:
        return chain_of_layers(parts, model, x)
    if not leaves and (steps := steps_of(model)) is not None and (chain := chain_of_steps(steps, x)) is not None:
        return chain
    return chain_of_graph(model, x, leaves)


def depth_of(model: nn.Module) -> int:
    """Factors of the model's chain where it is known without tracing, else 1."""
    if (parts := chain_parts(model)) is not None:
        return len(parts)
    names = [name for name, _ in steps_of(model) or []]
    return max(1, sum(map(bool, names)) + (names[:1] == [""] and any(names)))


def chain_parts(model: nn.Module) -> list[nn.Module] | None:
    """The submodules that flowstudy's own fully connected nets apply one after the other; None for other models."""
    if isinstance(model, FullyConnected) and type(model).forward is FullyConnected.forward:
        return [*model.hidden_layers, model.readout]
    return None


def chain_of_layers(layers: list[nn.Module], model: nn.Module, x: Tensor) -> Chain:
    names = {module: name for name, module in model.named_modules()}
    values = [x]
    with torch.no_grad():
        for layer in layers:
            values.append(layer(values[-1]))
    return Chain([names[layer] for layer in layers], layers, values)


def steps_of(model: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]] | None:
    """The members of an nn.Sequential by name, nested ones in their place; None where a member may be several factors.

    With weights in one module at most, it cannot be. So the commonest chain is known without tracing.
    """
    if type(model) is not nn.Sequential or model._forward_hooks or model._forward_pre_hooks:
        weighted = [name for name, module in model.named_modules(prefix=prefix) if module._parameters]
        return [(weighted[0] if weighted else "", model)] if prefix and len(weighted) < 2 else None
    steps = []
    for name, member in model._modules.items():   # named_children leaves out the second call of a shared one
        inner = steps_of(member, f"{prefix}.{name}" if prefix else name)
        if inner is None:
            return None
        steps += inner
    return steps


def chain_of_steps(steps: list[tuple[str, nn.Module]], x: Tensor) -> Chain | None:
    """The steps, those without weights joined to the one before; None where they do not hand on batches."""
    names, groups, values = [], [], [x]
    with torch.no_grad():
        for name, step in steps:
            value = step(values[-1].clone())   # it may begin with an in-place operation
            if not is_batch(value, len(x)):
                return None
            if name or not groups:
                names.append(name or type(step).__name__)
                groups.append([step])
                values.append(value)
            else:
                groups[-1].append(step)
                values[-1] = value
    return Chain(names, [nn.Sequential(*group) if len(group) > 1 else group[0] for group in groups], values)


class Tracer(fx.Tracer):
    def __init__(self, leaves: Container[nn.Module]):
        super().__init__()
        self.leaves = leaves

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return module in self.leaves or super().is_leaf_module(module, name)


def chain_of_graph(model: nn.Module, x: Tensor, leaves: Container[nn.Module]) -> Chain | None:
    try:
        graph = fx.GraphModule(model, Tracer(leaves).trace(model))
    except Exception:  # tracing runs the user's code with stand-ins for tensors: anything may be raised
        return None
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    result = next(node for node in graph.graph.nodes if node.op == "output").args[0]
    if not isinstance(result, fx.Node) or any(node.args == () and node.users for node in inputs[1:]):
        return None
    moving = depends_on(inputs[0])
    if result not in moving:
        return None
    with torch.no_grad():
        values = Recorder(graph).run_all(x)
    cuts = [inputs[0], *(node for node in carriers(graph, moving, result) if is_batch(values[node], len(x)))]
    if cuts[-1] is not result:
        return None
    cuts = join_weightless(graph, cuts)
    run = fx.Interpreter(graph, garbage_collect_values=False)   # one for all: making it walks the whole model
    functions = [Segment(run, values, moving, a, b) for a, b in pairwise(cuts)]
    plain = all(node.op == "get_attr" for segment in functions for node in segment.constants)
    return Chain([segment.name for segment in functions], functions, [values[node] for node in cuts], plain)


class Recorder(fx.Interpreter):
    """Runs the whole graph and keeps every value."""

    def run_all(self, x: Tensor) -> dict[fx.Node, object]:
        self.garbage_collect_values = False
        self.run(x)
        return self.env


class Segment:
    """The nodes between two cuts, as a function of the first cut's value."""

    def __init__(self, run: fx.Interpreter, values: dict, moving: set[fx.Node], start: fx.Node, stop: fx.Node):
        graph, nodes = run.module, list(run.graph.nodes)
        inside = nodes[nodes.index(start) + 1:nodes.index(stop) + 1]
        self.nodes = [node for node in inside if node in moving]
        self.constants = {a: values[a] for node in self.nodes for a in node.all_input_nodes if a not in moving}
        self.run, self.start, self.stop = run, start, stop
        named = [node for node in self.nodes if node.op == "call_module" and has_weights(graph, node)]
        self.name = str((named or self.nodes)[0].target)

    def __call__(self, h: Tensor) -> Tensor:
        self.run.env = env = {**self.constants, self.start: h}
        for node in self.nodes:
            env[node] = self.run.run_node(node)
        self.run.env = {}
        return env[self.stop]


def depends_on(source: fx.Node) -> set[fx.Node]:
    found, waiting = {source}, [source]
    while waiting:
        for user in waiting.pop().users:
            if user.op != "output" and user not in found:
                found.add(user)
                waiting.append(user)
    return found


def carriers(graph: fx.GraphModule, moving: set[fx.Node], result: fx.Node) -> list[fx.Node]:
    """Nodes that alone carry the computation on: after them nothing computed before is used again."""
    nodes = [node for node in graph.graph.nodes if node in moving]
    place = {node: i for i, node in enumerate(nodes)}
    last_use = {node: max((place[user] for user in node.users if user in place), default=-1) for node in nodes}
    last_use[result] = len(nodes)
    found, furthest = [], -1  # furthest: where the latest use of what came before this node lies
    for i, node in enumerate(nodes):
        if furthest <= i and last_use[node] > i and i > 0:
            found.append(node)
        furthest = max(furthest, last_use[node])
        if node is result:
            break
    return found


def join_weightless(graph: fx.GraphModule, cuts: list[fx.Node]) -> list[fx.Node]:
    nodes = list(graph.graph.nodes)
    kept = [cuts[0]]
    for a, b in pairwise(cuts):
        inside = nodes[nodes.index(a) + 1:nodes.index(b) + 1]
        weights = any(has_weights(graph, n) or any(i.op == "get_attr" for i in n.all_input_nodes) for n in inside)
        if not weights and len(kept) > 1:
            kept[-1] = b
        else:
            kept.append(b)
    return kept


def has_weights(graph: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and any(True for _ in graph.get_submodule(node.target).parameters())


def is_batch(value: object, samples: int) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= 2 and len(value) == samples
