"""Recurrences without a layer in the loop, called bare loops: `for u in self.into(x).unbind(1): h = a * h + u`.

They are found in autograd's graph.  A loop reads one part of a tensor at each step (here u).  Every value computed from
such parts has a moment: the last step whose part it depends on.  A value of moment t that a value of moment t + 1
reads, in the same way at every step, carries the state on.  The state of step t is the value, at or before that one, in
which the part of step t is combined with the state of the step before.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch.autograd.graph import GradientEdge

from flowstudy.measure.models.forward import Use
from flowstudy.measure.models.graph import Key, Node, below, key_of, reachable, shape_of

from .parts import Part, series_in


@dataclass(frozen=True)
class BareLoop:
    """One loop without layers, its steps in the order in which they ran.

    Attributes:
        states: the edges of the state after each step.
        parts: the part of a value that each step reads.
        uses: index of the last layer's use that each step's part was computed from; -1 for a loop over the input.
    """

    states: list[list[GradientEdge]]
    parts: list[Part]
    uses: list[int]

    @property
    def edges(self) -> list[GradientEdge]:
        return [*itertools.chain(*self.states), *(part.whole for part in self.parts)]


@dataclass(frozen=True)
class InBody:
    """Where in the body of a loop its state, or a part of it, is made.

    Attributes:
        offset: number of nodes, in order of execution, after the first one that reads the step before.
        number: which output of the node it is.
        behind: number of operations on the state alone, such as a product with a factor, before the next step reads it.
        read: name of the operation that made the value that the next step reads.
    """

    offset: int
    number: int
    behind: int
    read: str


def bare_loops(order: Sequence[Node], uses: Sequence[Use], loops: Sequence[Sequence[int]]) -> list[BareLoop]:
    """The loops of operations alone in the graph of one forward pass; the arguments are those of `series_in`."""
    at = {use.edge.node: i for i, use in enumerate(uses) if use.edge is not None}
    found: list[BareLoop] = []
    for series in series_in(order, uses, loops):
        body = Bodies(order, series.steps)
        states = body.states()
        if states and at.keys().isdisjoint(body.carriers(states)):
            parts = [series.parts[t] for t in sorted(series.parts)][-len(states):]
            found.append(BareLoop(states, parts, last_uses(parts, at)))
    return found


class Bodies:
    """The nodes of a graph by moment, in the order in which they were executed."""

    def __init__(self, order: Sequence[Node], parts: Mapping[Key, int]):
        self.parts, self.last = parts, max(parts.values())
        self.moments = moments_in(order, parts)
        self.chosen: list[InBody] = []   # where the state is made, once `states` has found it
        self.nodes: dict[int, list[Node]] = defaultdict(list)
        for node in sorted(self.moments, key=lambda node: node._sequence_nr()):
            self.nodes[self.moments[node]].append(node)
        self.index = {node: i for body in self.nodes.values() for i, node in enumerate(body)}
        self.carried: dict[int, list[Key]] = defaultdict(list)   # by moment: what the next one reads
        self.origin: dict[int, int] = {}                         # index of the first node that reads the one before
        for node, moment in self.moments.items():
            for key in below(node):
                if self.moments.get(key[0]) == moment - 1:
                    self.carried[moment - 1].append(key)
                    self.origin[moment] = min(self.origin.get(moment, self.index[node]), self.index[node])

    def states(self) -> list[list[GradientEdge]]:
        """The state after each step; empty where the steps do not carry the state on by the same operations."""
        inner = range(2, self.last)
        if any(t not in self.origin for t in (*inner, self.last)):
            return []
        places = set.intersection(*({self.place(t, key) for key in self.carried[t]} for t in inner))
        self.chosen = chosen = sorted(places, key=lambda place: (place.offset, place.number))
        found = [[self.made_at(t, place) for place in chosen] for t in (*inner, self.last)]
        made = {tuple(edge and operation(edge) for edge in state) for state in found}
        if not places or len(made) > 1 or None in next(iter(made)):
            return []
        return [*self.first_state(chosen, found[0]), *found]

    def place(self, moment: int, key: Key) -> InBody:
        """The place in the loop's body at which the carried value was combined with the part of its step."""
        behind, read = 0, key[0].name()
        while (before := self.before(key)) is not None:
            key, behind = before, behind + 1
        return InBody(self.index[key[0]] - self.origin[moment], key[1], behind, read)

    def before(self, key: Key) -> Key | None:
        """The only value that this one was computed from, if it has the same moment; None where there are several."""
        read = [k for k in below(key[0]) if k in self.parts or k[0] in self.moments]
        return read[0] if len(read) == 1 and self.moments.get(read[0][0]) == self.moments[key[0]] else None

    def made_at(self, moment: int, place: InBody) -> GradientEdge | None:
        i = self.origin[moment] + place.offset
        return GradientEdge(self.nodes[moment][i], place.number) if 0 <= i < len(self.nodes[moment]) else None

    def first_state(self, places: Sequence[InBody], like: Sequence[GradientEdge]) -> list[list[GradientEdge]]:
        """The state after the first step, which has no earlier state to combine with.

    It is looked for as many operations before the value that is carried on as at the other steps.  Empty where no value
    of the same operation and shape is there.
    """
        found = []
        for place, edge in zip(places, like, strict=True):
            ways = [self.past(key, place.behind) for key in dict.fromkeys(self.carried[1])]
            edges = [GradientEdge(*key) for key in ways if key is not None]
            found += [one for one in edges if operation(one) == operation(edge)][:1]
        return [found] if len(set(found)) == len(places) else []

    def past(self, key: Key, behind: int) -> Key | None:
        for _ in range(behind):
            key = key and self.before(key)
        return key

    def carriers(self, states: Sequence[Sequence[GradientEdge]]) -> set[Node]:
        """The nodes that a state runs through from where it is made to where the next one is, first step aside."""
        found: set[Node] = set()
        made = {edge.node for state in states[1:] for edge in state}
        waiting = [key[0] for t in range(2, self.last) for key in self.carried[t] if self.place(t, key) in self.chosen]
        waiting += made
        while waiting:
            node = waiting.pop()
            if node not in found:
                found.add(node)
                waiting += [n for n, _ in below(node) if self.moments.get(n) == self.moments[node]]
        return found


def moments_in(order: Sequence[Node], parts: Mapping[Key, int]) -> dict[Node, int]:
    """The moment of every node that is computed from the parts; the nodes that cut the parts out have none."""
    takes, found = {node for node, _ in parts}, {}
    for node in reversed(order):
        moment = max((parts.get(key, found.get(key[0], 0)) for key in below(node)), default=0)
        if moment and node not in takes:
            found[node] = moment
    return found


def operation(edge: GradientEdge) -> tuple[str, tuple[int, ...]]:
    """The name of the operation that made a value, and the value's shape."""
    return edge.node.name(), tuple(shape_of(edge))


def last_uses(parts: Iterable[Part], at: Mapping[Node, int]) -> list[int]:
    """For each part, the index of the last layer's use that it was computed from; -1 where there is none."""
    found: dict[Key, int] = {}
    for whole in (part.whole for part in parts):
        if key_of(whole) not in found:
            found[key_of(whole)] = max((at[node] for node in reachable(whole) if node in at), default=-1)
    return [found[key_of(part.whole)] for part in parts]
