"""Checks of a measurement's options, and of the nets that it is for, before anything trains."""

from collections.abc import Callable, Mapping, Sequence

from flowstudy.arguments import check_one_of, check_real, check_whole, is_whole
from flowstudy.kinds import KINDS
from flowstudy.measure.body_moments import two_inputs
from flowstudy.nets import HighwayNet
from flowstudy.sweep.cells import Cell, samples_of
from flowstudy.sweep.plan_error import PlanError
from flowstudy.train.precision import PRECISIONS

OF_HIGHWAY_NETS = ("gate_routing", "gate_routing_by_class", "lesions")
RULES: dict[str, Callable[[object], object]] = {  # by option, whatever the cell
    "part": lambda value: check_one_of("run", "part", value, ("all", "body")),
    "precision": lambda value: check_one_of("run", "precision", value, PRECISIONS),
    "points": lambda value: check_whole("run", "points", value, least=4),
    "every": lambda value: check_whole("run", "every", value, least=1),
    "probes": lambda value: check_whole("run", "probes", value, least=1),
    "q0": lambda value: check_real("run", "q0", value, "positive and finite"),
    "m0": lambda value: check_real("run", "m0", value),
    "c0": lambda value: check_real("run", "c0", value),
}


def check_looks(measure: str, options: Mapping[str, object], cells: Sequence[Cell]) -> None:
    """Refuse the options of one measurement, defaults filled in, that cannot work for one of these cells.

    Raises:
        RefusalError: the first that cannot.
    """
    for name, value in options.items():
        if name in RULES:
            RULES[name](value)
    if measure == "body_moments":
        two_inputs(3, options["q0"], options["m0"], options["c0"])  # it refuses numbers that no two vectors have
    for cell in dict.fromkeys(cells):
        if measure in OF_HIGHWAY_NETS:
            check_highway(measure, cell)
        if "samples" in options:
            check_samples(cell, options["samples"])
        if "sample" in options:
            check_whole("run", "sample", options["sample"], 0, samples_of(cell) - 1)


def check_samples(cell: Cell, samples: object) -> None:
    there = samples_of(cell)
    if not is_whole(samples) or not 1 <= samples <= there:
        raise PlanError(f"run: `samples` must be between 1 and the training set's size, {there}, got {samples!r}.")


def check_highway(measure: str, cell: Cell) -> None:
    if not issubclass(KINDS[cell.net].net, HighwayNet) or cell.depth < 2:
        raise PlanError(f"run: `net` must be 'highway' with depth of at least 2 to measure {measure}, got {cell.net!r} "
                        f"of depth {cell.depth}.")
