"""The error signal on its way back over the steps of a recurrence: torch's recurrent modules, and loops over a layer.

Where an input enters at every time step, no single value carries everything on, so the main path has no steps there.
The past is reached only through the state: all outputs of a cell at one step, (h, c) for an LSTM.  So the signal is
followed from the last step that the loss depends on to the first, as the joint norm of d loss / d state.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from flowstudy.measure.models.backward import Scaled, dense, peak, times_power
from flowstudy.measure.models.forward import Use
from flowstudy.measure.models.graph import Key, key_of, shape_of
from flowstudy.measure.models.path import Point

from .bare_loops import BareLoop

SHORTEST = 3   # the fewest steps of a recurrence; a layer that is used only twice has tied weights
LARGE = 2.0**900   # gradients with a largest entry between this and its inverse have lost no digits

Errors = list[Scaled | None]   # of each part of a state; None where nothing arrives
StateErrors = Mapping[Key, Scaled | None]   # d loss / d state, by the edges of its parts


@dataclass(frozen=True)
class Step:
    """One step of a recurrence.

    Attributes:
        use: index of the last use of a layer in it, or before it in a loop of operations alone; -1 of none.
        errors: d loss / d state, a tensor for each part of the state, for the samples that the loss sees at the last
            step.
        carried: the error signals of the last step pulled back to this step through the recurrence alone.
    """

    use: int
    errors: list[Scaled]
    carried: list[Scaled]


def recurrences(uses: Sequence[Use], path: Sequence[Point]) -> list[list[int]]:
    """The uses of each layer that is used three times or more, unless the main path leads from one use to the next."""
    by_layer: dict[object, list[int]] = {}
    for i, use in enumerate(uses):
        if use.state:
            by_layer.setdefault((use.name, use.place and use.place.cell), []).append(i)

    def is_read(steps: list[int]) -> bool:
        return 2 * sum(steps[0] <= point.use < steps[-1] for point in path) >= len(steps) - 1

    return [steps for steps in by_layer.values() if len(steps) >= SHORTEST and not is_read(steps)]


def states_in(uses: Sequence[Use], loops: Sequence[Sequence[int]], bare: Sequence[BareLoop]) -> list[GradientEdge]:
    of_layers = [edge for steps in loops for i in steps for edge in uses[i].state]
    return of_layers + [edge for loop in bare for edge in loop.edges]


def time_paths(uses: Sequence[Use], loops: Sequence[Sequence[int]], found: StateErrors,
               samples: int) -> list[list[Step]]:
    """The recurrences among the layers that are run in loops, first step first.

    Args:
        loops: indices of the uses of each layer.
    """
    chains = [chain for steps in loops for chain in chains_in(uses, steps, found)]
    return [path_of_layers(uses, list(zip(*together, strict=True)), found, samples)
            for together in side_by_side(chains)]


def bare_path(loop: BareLoop, found: StateErrors, samples: int) -> list[Step]:
    """The steps of a loop without layers, up to the last that the loss sees; empty if the loop carries no signal."""
    seen = [t for t, state in enumerate(loop.states, start=1) if is_seen([found[key_of(edge)] for edge in state])]
    states = loop.states[:seen[-1]] if seen else []
    by_sample = bool(states) and all(shape_of(edge)[:1] == (samples,) for edge in states[-1])
    path = path_over(states, loop.uses, by_sample, found) if len(states) >= SHORTEST else []
    return path if all(step.carried for step in path) else []


def chains_in(uses: Sequence[Use], steps: Sequence[int], found: StateErrors) -> list[list[int]]:
    """The uses of one layer, grouped into chains in which each use is computed from the one before.

    A layer that runs several sequences has a chain for each.  Uses that do not depend on each other, as of a read-out
    at every time step, form no chain.
    """
    chains, left = [], list(steps)
    while len(left := without_unseen_end(uses, left, found)) >= SHORTEST:
        carried = carried_back([uses[i].state for i in left], errors_at(uses, left[-1:], found))
        reached = [any(part is not None for part in parts) for parts in carried]
        if sum(reached) < 2:
            break
        if sum(reached) >= SHORTEST:
            chains.append([i for i, is_reached in zip(left, reached, strict=True) if is_reached])
        left = [i for i, is_reached in zip(left, reached, strict=True) if not is_reached]
    return chains


def side_by_side(chains: list[list[int]]) -> list[list[list[int]]]:
    """Group chains whose uses alternate: they are the layers of one loop's body, whose outputs make up its state."""
    groups: list[list[list[int]]] = []
    for chain in chains:
        group = next((group for group in groups if take_turns([*group, chain])), None)
        if group is None:
            groups.append([chain])
        else:
            group.append(chain)
    return groups


def take_turns(chains: list[list[int]]) -> bool:
    if len({len(chain) for chain in chains}) > 1:
        return False
    return all(max(now) < min(after) for now, after in itertools.pairwise(zip(*chains, strict=True)))


def path_of_layers(uses: Sequence[Use], steps: list[tuple[int, ...]], found: StateErrors, samples: int) -> list[Step]:
    by_sample = all(uses[i].place is not None or uses[i].shape[:1] == (samples,) for i in steps[-1])
    states = [[edge for i in step for edge in uses[i].state] for step in steps]
    return path_over(states, [max(step) for step in steps], by_sample, found)


def path_over(states: Sequence[Sequence[GradientEdge]], uses: Sequence[int], by_sample: bool,
              found: StateErrors) -> list[Step]:
    errors = [[found[key_of(edge)] for edge in state] for state in states]
    carried = carried_back(states, errors[-1])
    own = of_last_samples([present(here) for here in errors]) if by_sample else [present(here) for here in errors]
    return [Step(use, here, present(back)) for use, here, back in zip(uses, own, carried, strict=False)]


def of_last_samples(errors: list[list[Scaled]]) -> list[list[Scaled]]:
    """The error signals restricted to the samples whose state the loss sees at the last step.

    A shorter sequence has a large signal at its own last step, which would hide that the signals of the longer ones
    fade.  In a packed sequence the longest samples come first.  In its backward direction samples join on the way;
    there all of them count.
    """
    rows = [error.tensor.shape[0] if error.tensor.ndim else 0 for here in errors for error in here]
    if len(set(rows[-len(errors[-1]):])) > 1 or min(rows) < rows[-1]:
        return errors
    seen = torch.stack([error.tensor.reshape(rows[-1], -1).any(1) for error in errors[-1]]).any(0)
    return [[replace(error, tensor=error.tensor[:len(seen)][seen]) for error in here] for here in errors]


def errors_at(uses: Sequence[Use], step: Sequence[int], found: StateErrors) -> Errors:
    return [found[key_of(edge)] for i in step for edge in uses[i].state]


def without_unseen_end(uses: Sequence[Use], steps: list[int], found: StateErrors) -> list[int]:
    """The steps up to the last that the loss sees; an exact 0 at an earlier step is a signal that was lost."""
    seen = [n for n, i in enumerate(steps) if is_seen(errors_at(uses, [i], found))]
    return steps[:seen[-1] + 1] if seen else []


def is_seen(errors: Errors) -> bool:
    """Whether the loss sees this step or a later one: an error is not None, and not exactly 0.

    A step that a slice of the output drops has an error signal of exactly 0.
    """
    return any(bool(error.tensor.any()) for error in present(errors))


def present(errors: Errors) -> list[Scaled]:
    return [error for error in errors if error is not None]


def carried_back(states: Sequence[Sequence[GradientEdge]], errors: Errors) -> list[Errors]:
    """The error signals of the last state, pulled back to every state before it; None where they do not arrive.

    It takes one backward pass.  Where its results leave float64's range, a new pass starts at that state.
    """
    found = [list(errors)]
    while len(found) < len(states):
        at, before = states[-len(found)], states[:-len(found)]
        values, exponent = pulled(at, direct(at, found[-1]), [edge for state in before for edge in state])
        for i, state in enumerate(reversed(before)):
            here = [None if (value := values.get(key_of(edge))) is None else Scaled(value, exponent) for edge in state]
            if i and not in_range(here) and is_seen(found[-1]):
                break
            found.append(here)
    return found[::-1]


def direct(state: Sequence[GradientEdge], errors: Errors) -> Errors:
    """The error signals of a state's parts without the share that comes by way of the state's other parts.

    An LSTM's h is computed from its c, so the total signal at c contains the signal at h already.
    """
    sent = {i: pulled([state[i]], [errors[i]], [edge for edge in state if edge is not state[i]])[0]
            for i in range(len(state))} if len(state) > 1 else {}
    reached_by = [[j for j in sent if key_of(edge) in sent[j]] for edge in state]
    result: Errors = list(errors)
    for i in sorted(range(len(state)), key=lambda i: len(reached_by[i])):   # parts that others depend on come last
        for j in reached_by[i]:
            values, exponent = pulled([state[j]], [result[j]], [state[i]])
            back = values.get(key_of(state[i]))
            if back is not None and result[i] is not None:
                result[i] = result[i].plus(Scaled(-back, exponent))
    return result


def pulled(roots: Sequence[GradientEdge], errors: Errors, targets: Sequence[GradientEdge],
           ) -> tuple[dict[Key, Tensor], Tensor | None]:
    """Pull the errors back from the roots: the gradient at each target that they reach, and a common exponent of 2."""
    present_at = [(edge, error.normalised()) for edge, error in zip(roots, errors, strict=True) if error is not None]
    if not present_at or not targets:
        return {}, None
    exponent = torch.stack([error.exponent for _, error in present_at]).amax(0)
    values = torch.autograd.grad(
        [edge for edge, _ in present_at], targets,
        [times_power(error.tensor, error.exponent - exponent) for _, error in present_at],
        retain_graph=True, allow_unused=True)
    return {key_of(edge): dense(value) for edge, value in zip(targets, values, strict=True)
            if value is not None}, exponent


def in_range(errors: Errors) -> bool:
    """Whether all errors are far from the sizes at which float64 loses digits."""
    return all(1 / LARGE < peak(error.tensor, 0) < LARGE for error in present(errors))
