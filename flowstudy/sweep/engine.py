"""Run a plan: skip what is stored, group, train and measure, append."""

import functools
import inspect
import os
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version

import pandas as pd
import torch
from tqdm import tqdm

from flowstudy.train import Dataset, load_dataset

from .cells import Cell, digest
from .measurements import MEASUREMENTS
from .store import Store

NETS_AT_ONCE = 20  # on the CPU, larger stacks fall out of the cache; memory grows with nets x depth


def run(cells: Sequence[Cell], *, measure: str = "training_loss", store: str | os.PathLike = "results",
        device: str = "auto", progress: bool = True, nets_at_once: int = NETS_AT_ONCE,
        **options: object) -> pd.DataFrame:
    """Train and measure every cell that the store does not hold yet, then return the rows of all of them.

    Safe to kill at any moment: a later call goes on where this one stopped, and computes nothing twice.

    Args:
        cells: the plan, from `grid` and `random_search`.
        measure: "training_loss" (a row per epoch), "gradient_flow" (per layer), "jacobian_spectrum" (per singular
            value); the last two are measured after the cell's epochs, so at initialisation where epochs is 0.
        store: folder of the results.
        device: "auto" is the GPU where there is one, else the CPU; or any name that torch knows.
        progress: show a progress bar with rate and time left.
        nets_at_once: the largest number of nets trained as one stack.
        options: what the measurement takes: `samples`, and for spectra `part`.

    Returns:
        A tidy frame: every field of the cell, its key `cell`, and what was measured, in the order of the plan.

    Raises:
        ValueError, TypeError: a plan, measurement, option or device that cannot be run; nothing is computed then.
    """
    cells = check_plan(cells)
    options = check_options(measure, options)
    place = check_device(device)
    table = f"{measure}-{digest(options)}"
    results = Store(store)
    missing = set(results.missing(cells, table))
    load_once = functools.lru_cache(maxsize=1)(load)  # groups of one data set follow each other
    with tqdm(total=sum(map(work, missing)), desc=measure, unit="net", disable=not progress or not missing) as bar:
        for group in groups(cells, nets_at_once):
            todo = [cell for cell in group if cell in missing]
            if todo:
                started = time.perf_counter()
                data = load_once(todo[0].dataset, todo[0].train_samples, place)
                rows = MEASUREMENTS[measure](todo, data, bar.update, **options)
                bar.update(sum(cell.epochs == 0 for cell in todo))
                results.append(table, todo, rows, provenance(place, time.perf_counter() - started))
    return results.load(cells, table)


def groups(cells: Sequence[Cell], size: int) -> list[list[Cell]]:
    """Cells of equal structure, at most `size` together, in the order of the plan."""
    by_structure: dict[tuple, list[Cell]] = {}
    for cell in dict.fromkeys(cells):
        by_structure.setdefault(cell.structure, []).append(cell)
    return [group[i:i + size] for group in by_structure.values() for i in range(0, len(group), size)]


def work(cell: Cell) -> int:
    """Units of the progress bar: net-epochs, or 1 for a net that is measured as it starts."""
    return max(cell.epochs, 1)


def load(name: str, train_samples: int | None, device: torch.device) -> Dataset:
    data = load_dataset(name).flat().to(device)
    return data if train_samples is None else data.subset(train_samples)


def provenance(device: torch.device, seconds: float) -> dict:
    """Where numbers come from; stored beside them."""
    return {
        "flowstudy": version("flowstudy"), "torch": torch.__version__, "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "seconds": round(seconds, 3), "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def check_plan(cells: Sequence[Cell]) -> list[Cell]:
    if isinstance(cells, Cell):
        raise TypeError("run: `cells` must be a sequence of Cell, got one Cell. Pass [cell].")
    cells = list(cells)
    if not cells:
        raise ValueError("run: `cells` must hold at least one Cell, got none. Make a plan with flowstudy.grid(...).")
    for i, cell in enumerate(cells):
        if not isinstance(cell, Cell):
            raise TypeError(f"run: `cells` must be a sequence of Cell, got {type(cell).__name__} at {i}.")
    return cells


def check_options(measure: str, options: dict) -> dict:
    """The measurement's options with its defaults filled in, so that a default spelt out is the same table."""
    if measure not in MEASUREMENTS:
        raise ValueError(f"run: `measure` must be one of {', '.join(MEASUREMENTS)}, got {measure!r}.")
    known = {name: p.default for name, p in inspect.signature(MEASUREMENTS[measure]).parameters.items()
             if p.default is not p.empty}
    for name in options:
        if name not in known:
            raise TypeError(f"run: {measure} takes {', '.join(known) or 'no options'}, got `{name}`.")
    return known | options


def check_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"run: `device` must be 'auto' or a device that torch sees, got {device!r}: "
                         f"{str(error).splitlines()[0]}") from None
    return place
