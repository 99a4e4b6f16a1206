"""Recurrences that no layer carries on: `for u in self.into(x).unbind(1): h = a * h + u`, a loop of operations alone.

What such a loop is given at each time step is a part of one value (an entry or a slice along an axis), or what one
layer puts out at each step.  Every later value of autograd's graph is computed from parts up to some time step, its
moment.  What has the moment t and is read, in the same way at every step, by what has the moment t + 1, carries the
state on; the state itself is the value before that in which the part of step t meets what came from the step before.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch.autograd.graph import GradientEdge

from flowstudy.measure.models.forward import Use
from flowstudy.measure.models.graph import Key, Node, below, key_of, reachable, shape_of

FEWEST = 5        # time steps; fewer parts of one value are gates, heads or features more often than moments of time
PART = ("SelectBackward", "SliceBackward")              # one part of a value
PARTS = ("UnbindBackward", "SplitBackward", "SplitWithSizesBackward")   # all parts of it along one axis

Moments = dict[Key, int]
Place = tuple[int, int]   # of a value in the body of a loop: which of the body's nodes, in order of execution; output


@dataclass(frozen=True)
class BareLoop:
    """One loop.

    Attributes:
        states: the edges of the state after each time step, first step first.
        uses: of each step, index of the last layer whose output it reads; -1 of a loop over the input.
    """

    states: list[list[GradientEdge]]
    uses: list[int]


def bare_loops(order: Sequence[Node], uses: Sequence[Use], loops: Sequence[Sequence[int]]) -> list[BareLoop]:
    """The loops of operations alone in the graph of one forward pass.

    Args:
        order: the graph's nodes, each after all that lead to it, from the loss on.
        loops: indices of the uses of each layer that is called at several steps.
    """
    at = {use.edge.node: i for i, use in enumerate(uses) if use.edge is not None}
    by_layer = [{key_of(uses[i].edge): t for t, i in enumerate(steps, start=1)}
                for steps in loops if len(steps) >= FEWEST]
    found: list[BareLoop] = []
    for entries in [*parts_of_values(order), *by_layer]:
        for moments in (entries, reversed_in_time(entries)):
            states, body = states_of_loop(order, moments)
            if states and at.keys().isdisjoint(body):
                one_part = {t: key for key, t in moments.items()}
                parts = [one_part[t][0] for t in sorted(one_part)]
                found.append(BareLoop(states, last_uses(parts[-len(states):], at)))
    return found


def parts_of_values(order: Sequence[Node]) -> Iterator[Moments]:
    """Of each value that is read part by part along one axis: its parts, by place on the axis from 1."""
    singles: dict[tuple[Key, int], dict[int, list[Key]]] = defaultdict(lambda: defaultdict(list))
    for node in order:
        name = node.name()
        if name.startswith(PART):
            (whole,), sizes = below(node), node._saved_self_sym_sizes
            axis = signed(node._saved_dim) % len(sizes)
            start = node._saved_index if name.startswith(PART[0]) else node._saved_start
            singles[whole, axis][signed(start) % sizes[axis]].append((node, 0))
        elif name.startswith(PARTS) and len(node._input_metadata) >= FEWEST:
            yield {(node, i): i + 1 for i in range(len(node._input_metadata))}
    for by_place in singles.values():
        if len(by_place) >= FEWEST:
            yield {key: t for t, place in enumerate(sorted(by_place), start=1) for key in by_place[place]}


def signed(number: int) -> int:
    """Autograd keeps negative places as unsigned numbers of 64 bits."""
    return number - 2**64 if number >= 2**63 else number


def reversed_in_time(entries: Moments) -> Moments:
    last = max(entries.values()) + 1
    return {key: last - t for key, t in entries.items()}


def states_of_loop(order: Sequence[Node], entries: Moments) -> tuple[list[list[GradientEdge]], set[Node]]:
    """The state after each step, and the nodes that carry it on from one to the next; empty where there is none."""
    moments = moments_in(order, entries)
    last, bodies = max(entries.values()), bodies_of(moments)
    place = {node: i for body in bodies.values() for i, node in enumerate(body)}
    read: dict[int, set[Place]] = defaultdict(set)
    for node, moment in moments.items():
        for key in below(node):
            if moments.get(key[0]) == moment - 1:
                n, number = where_joined(key, moments, entries)
                read[moment - 1].add((place[n], number))
    places = set.intersection(*(read[t] for t in range(2, last)))
    steps = [bodies[t] for t in range(2, last + 1) if t in bodies]
    if not places or len(steps) < FEWEST - 1 or not alike(steps, places):
        return [], set()
    first = [[GradientEdge(bodies[1][i], number) for i, number in sorted(read[1])]] if read[1] else []
    states = first + [[GradientEdge(body[i], number) for i, number in sorted(places)] for body in steps]
    return states, carriers(states[1:], moments)


def where_joined(key: Key, moments: Mapping[Node, int], entries: Moments) -> Key:
    """Towards the input, past what follows from one value of the same moment alone."""
    while True:
        read = [k for k in below(key[0]) if k in entries or k[0] in moments]
        if len(read) != 1 or moments.get(read[0][0]) != moments[key[0]]:
            return key
        key = read[0]


def moments_in(order: Sequence[Node], entries: Moments) -> dict[Node, int]:
    """Of every node that is computed from the parts, the last of them in time; not of the nodes that take the parts."""
    parts, found = {key[0] for key in entries}, {}
    for node in reversed(order):
        moment = max((entries.get(key, found.get(key[0], 0)) for key in below(node)), default=0)
        if moment and node not in parts:
            found[node] = moment
    return found


def bodies_of(moments: Mapping[Node, int]) -> dict[int, list[Node]]:
    """The nodes of each moment in the order in which they were executed."""
    bodies: dict[int, list[Node]] = defaultdict(list)
    for node in sorted(moments, key=lambda node: node._sequence_nr()):
        bodies[moments[node]].append(node)
    return bodies


def alike(bodies: Sequence[Sequence[Node]], places: set[Place]) -> bool:
    """The state is made by the same operation, of the same shape, at every step."""
    def made(body: Sequence[Node]) -> list[tuple[str, tuple[int, ...]]]:
        return [(body[i].name(), tuple(shape_of(GradientEdge(body[i], number)))) for i, number in sorted(places)
                if i < len(body)]

    first = made(bodies[0])
    return len(first) == len(places) and all(made(body) == first for body in bodies)


def carriers(states: Sequence[Sequence[GradientEdge]], moments: Mapping[Node, int]) -> set[Node]:
    """The nodes between the state before and the state after each step."""
    found: set[Node] = set()
    for state in states:
        waiting = [edge.node for edge in state]
        while waiting:
            node = waiting.pop()
            if node not in found:
                found.add(node)
                waiting += [n for n, _ in below(node) if moments.get(n) == moments[node]]
    return found


def last_uses(parts: Iterable[Node], at: Mapping[Node, int]) -> list[int]:
    """Of each part, index of the last layer that it comes from; -1 where it comes from none."""
    of_whole: dict[Key, int] = {}
    found = []
    for part in parts:
        if part in at:
            found.append(at[part])
            continue
        (whole,) = below(part)
        if whole not in of_whole:
            of_whole[whole] = max((at[node] for node in reachable(GradientEdge(*whole)) if node in at), default=-1)
        found.append(of_whole[whole])
    return found
