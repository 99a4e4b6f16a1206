"""Checks a plan, groups its cells by structure and divides it into shards, before anything runs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

import numpy as np

from flowstudy.arguments import NAME, in_short, is_whole, several
from flowstudy.refusal import did_you_mean
from flowstudy.sweep.looks.checks import check_looks
from flowstudy.sweep.looks.in_training import as_record_at
from flowstudy.sweep.looks.table import AS_THEY_START, MEASUREMENTS, OF_TRAINING, options_of
from flowstudy.sweep.workers.tasks import work

from .cells import Cell, digest, samples_of
from .plan_error import PlanError, PlanTypeError

Shard = str | tuple[int, int] | None


def check_plan(cells: Sequence[Cell]) -> list[Cell]:
    if isinstance(cells, Cell):
        raise PlanTypeError("run: `cells` must be a sequence of Cell, got one Cell. Pass [cell].")
    if not isinstance(cells, Iterable):
        raise PlanTypeError(f"run: `cells` must be a sequence of Cell, got {in_short(cells)}.")
    cells = list(cells)
    if not cells:
        raise PlanError("run: `cells` must hold at least one Cell, got none. Make a plan with flowstudy.grid(...).")
    for i, cell in enumerate(cells):
        if not isinstance(cell, Cell):
            raise PlanTypeError(f"run: `cells` must be a sequence of Cell, got {type(cell).__name__} at {i}.")
    return cells


def check_options(measure: str, options: Mapping[str, object]) -> dict[str, object]:
    """The measurement's options with its defaults filled in, so that a default that is spelt out names the same table.

    The options of `OF_TRAINING` came later.  At their defaults they are left out, so older tables keep their names.
    """
    if not isinstance(measure, str) or measure not in MEASUREMENTS:
        raise PlanError(f"run: `measure` must be one of {', '.join(MEASUREMENTS)}, got {measure!r}."
                        + did_you_mean(measure, MEASUREMENTS))
    known = options_of(measure)
    for name in options:
        if name not in known:
            raise PlanTypeError(f"run: {measure} takes {', '.join(known) or 'no options'}, got `{name}`."
                                + did_you_mean(name, known))
    full = known | dict(options)
    if full.get("at") is not None:
        full["at"] = asdict(as_record_at(full["at"]))  # plain data: it goes into files
    return {name: value for name, value in full.items() if name not in OF_TRAINING
            or not isinstance(value, str | None) or value != OF_TRAINING[name]}


def check_measures(measure: str | Sequence[str], options: Mapping[str, object],
                   cells: Sequence[Cell]) -> dict[str, dict[str, object]]:
    """The options of each measurement, by its name; where there are several, each gets the options that it knows."""
    if isinstance(measure, str):
        wanted = {measure: check_options(measure, options)}
    else:
        several(NAME, least=0)("run", "measure", measure)
        wanted = check_several(list(measure), options)
    trained = [cell.epochs for cell in cells if cell.epochs]
    for name, own in wanted.items():
        if name in AS_THEY_START and trained:
            raise PlanError(f"run: `epochs` must be 0 to measure {AS_THEY_START[name]}, got {trained[0]}. "
                            "Leave it out.")
        check_looks(name, own, cells)
    check_moments(wanted, cells)
    return wanted


def check_moments(wanted: Mapping[str, Mapping[str, object]], cells: Sequence[Cell]) -> None:
    """Refuse epochs and updates to measure at (`at`) that a cell's training does not reach, before any net trains."""
    moments = [as_record_at(options["at"]) for options in wanted.values() if options.get("at") is not None]
    for cell in dict.fromkeys(cells) if moments else ():
        per_epoch = -(-samples_of(cell) // cell.batch_size)
        for moment in moments:
            late = [f"epoch {epoch}" for epoch in moment.epochs if epoch > cell.epochs]
            late += [f"update {step}" for step in moment.steps if step > cell.epochs * per_epoch]
            if late:
                raise PlanError(f"run: `at` must lie within every cell's training, got {late[0]} for one with `epochs` "
                                f"{cell.epochs}{f' of {per_epoch} updates' * bool(cell.epochs)}. Give the cells more "
                                "`epochs`, or look earlier.")


def check_several(names: Sequence[str], options: Mapping[str, object]) -> dict[str, dict[str, object]]:
    together = [name for name in MEASUREMENTS if name not in AS_THEY_START]
    for name in names:
        if name not in together:
            raise PlanError(f"run: several of `measure` must be of nets in training ({', '.join(together)}), got "
                            f"{name!r}.")
    takes = {name: options_of(name) for name in names}
    for option in options:
        if not any(option in known for known in takes.values()):
            raise PlanTypeError(f"run: none of {', '.join(names)} takes `{option}`.")
    if not names:
        raise PlanError("run: `measure` must name at least one measurement, got an empty list.")
    return {name: check_options(name, {key: value for key, value in options.items() if key in known})
            for name, known in takes.items()}


def table_of(measure: str, options: Mapping[str, object]) -> str:
    """The name of the store's table for these results; each choice of options has a table of its own."""
    return f"{measure}-{digest(check_options(measure, options))}"


def groups(cells: Sequence[Cell], size: int) -> list[list[Cell]]:
    """Cells of equal structure, at most `size` together, in the order of the plan, those of one activation together."""
    return [group[i:i + size] for whole in by_structure(cells).values()
            for group in [sorted(whole, key=lambda cell: cell.activation)] for i in range(0, len(group), size)]


def by_structure(cells: Iterable[Cell]) -> dict[tuple, list[Cell]]:
    found: dict[tuple, list[Cell]] = {}
    for cell in dict.fromkeys(cells):
        found.setdefault(cell.structure, []).append(cell)
    return found


# --- shards ----------------------------------------------------------------------------------------------------------


def check_shard(shard: Shard) -> tuple[int, int]:
    """(which, of how many), counted from 1."""
    try:
        which, parts = map(int, shard.split("/")) if isinstance(shard, str) else shard
    except (TypeError, ValueError):
        which, parts = 0, 0
    if not (is_whole(which) and is_whole(parts) and 1 <= which <= parts):
        raise PlanError(f"run: `shard` must be 'i/N' with i from 1 to N, got {shard!r}.")
    return which, parts


def shard_of(cells: Sequence[Cell], which: int, parts: int) -> list[Cell]:
    """Part `which` of `parts`: disjoint, together the whole plan, of about equal cost, stacks kept together.

    It depends on the plan's cells alone: not on their order, on the device, or on what is stored already.
    """
    pieces = []
    total = sum(map(cost, set(cells)))
    for group in by_structure(cells).values():
        group = sorted(group, key=lambda cell: cell.key)
        count = min(len(group), math.ceil(cost(group[0]) * len(group) * parts / total))
        pieces += [[group[i] for i in share] for share in np.array_split(np.arange(len(group)), count)]
    pieces.sort(key=lambda piece: (-cost(piece[0]) * len(piece), piece[0].key))  # the costliest are dealt out first
    load, mine = [0] * parts, set()
    for piece in pieces:
        idlest = load.index(min(load))
        load[idlest] += cost(piece[0]) * len(piece)
        if idlest == which - 1:
            mine |= set(piece)
    return [cell for cell in cells if cell in mine]


def cost(cell: Cell) -> int:
    """Relative computing time of a cell; cells of one structure cost the same."""
    return work(cell) * cell.depth
