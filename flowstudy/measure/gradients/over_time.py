"""The parts of `gradient_flow` about recurrent nets: the columns that name time steps, and the path back over them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from torch import Tensor

from flowstudy.measure.models.backward import Scaled
from flowstudy.measure.models.forward import Use
from flowstudy.measure.models.graph import Key, key_of
from flowstudy.measure.models.recurrent.bare_loops import BareLoop
from flowstudy.measure.models.recurrent.parts import Part
from flowstudy.measure.models.recurrent.time_path import StateErrors, Step, bare_path, time_paths

from .signal import change_of
from .statistics import log10_norm


def places_in_time(uses: list[Use]) -> dict[str, object]:
    """Columns that give each row's place in its recurrent module; none for a net without recurrent modules."""
    places = [use.place for use in uses]
    if not any(places):
        return {}
    return {
        "time": pd.array([pd.NA if place is None else place.time for place in places], dtype="Int64"),
        "direction": ["" if place is None else place.direction for place in places],
        "stack_layer": pd.array([pd.NA if place is None else place.stack_layer for place in places], dtype="Int64"),
    }


def time_columns(uses: list[Use], loops: list[list[int]], found: StateErrors, samples: int) -> list[dict[str, list]]:
    """The columns of `GradientFlow.path` for each recurrence, a row per step, named by the step's last layer.

    Args:
        loops: indices of the uses of each layer that is run in a loop.
        found: d loss / d state at each of them.
    """
    return [steps_as_columns(path, [uses[step.use].statistics[1] for step in path])
            for path in time_paths(uses, loops, found, samples)]


def bare_columns(loops: list[BareLoop], sizes: Mapping[Key, Tensor], found: StateErrors,
                 samples: int) -> list[dict[str, list]]:
    """The columns of `GradientFlow.path` for loops without layers, and the error signals at the parts that steps read.

    The mean square of a state is known only where a module takes or returns it.
    """
    paths = [(bare_path(loop, found, samples), loop) for loop in loops]
    return [steps_as_columns(path, [sizes.get(key_of(state[0])) for state in loop.states])
            | {"log10_part_norm": [norm_at(part, found[key_of(part.whole)]) for part in loop.parts[:len(path)]]}
            for path, loop in paths if path]


def norm_at(part: Part, error: Scaled | None) -> float:
    return math.nan if error is None else log10_norm([replace(error, tensor=part.of(error.tensor))], 0).item()


def steps_as_columns(path: list[Step], sizes: Sequence[Tensor | None]) -> dict[str, list]:
    return {
        "layer": [step.use + 1 for step in path],
        "step": list(range(1, len(path) + 1)),
        "log10_error_signal_norm": [log10_norm(step.errors, 0).item() for step in path],
        "log10_carried_norm": [log10_norm(step.carried, 0).item() for step in path],
        "activation_mean_square": [math.nan if size is None else size.item()
                                   for _, size in zip(path, sizes, strict=False)],
    }


def time_frame(columns: dict[str, list]) -> pd.DataFrame:
    """`GradientFlow.path` of a recurrence.

    A loss that sees the states of many steps adds to the signal at each of them, and what comes together on the way
    back is growth that no weights make: above the last step's norm, the signal is what the last state's alone becomes,
    or that norm.  Beyond float64's range, where d loss / d state is 0 or infinite, it is that too.
    """
    path = pd.DataFrame(columns)
    total, carried = (path[name].to_numpy(float) for name in ("log10_error_signal_norm", "log10_carried_norm"))
    total = np.where(np.isfinite(total), total, carried)
    grown = np.maximum(np.minimum(total, carried), total[-1])
    return path.assign(log10_error_signal_norm=total, averaged_positions=1.0,
                       log10_signal=np.where(total > total[-1], grown, total))


def decisive(path: pd.DataFrame, over_time: list[pd.DataFrame], bare: list[pd.DataFrame],
             threshold: float) -> pd.DataFrame:
    """The path that the verdict reads: of several, the one along which the signal changes most.

    In a recurrent net a path over time is preferred, unless its change is within the threshold and the main path's is
    not.  A loop of tensor operations without layers (`bare`) may be a sum over features instead of a recurrence.  It
    counts only if the signal changes along it, and the values that its steps read get no signal by another way.
    """
    over_time = over_time + [one for one in bare if is_only_way(one, threshold)]
    if not over_time:
        return path
    longest = max(over_time, key=lambda one: abs(change_of(one)))
    return path if abs(change_of(path)) > max(threshold, abs(change_of(longest))) else longest


def is_only_way(path: pd.DataFrame, threshold: float) -> bool:
    """Whether the signal changes along the loop by more than the threshold (ln of squared norms), and by at least
    half as much, in the same direction, at the values that the steps read."""
    change = change_of(path)
    parts = change_of(path[["log10_part_norm"]].rename(columns={"log10_part_norm": "log10_signal"}))
    return bool(abs(change) > threshold and 2 * parts * np.sign(change) > threshold)
