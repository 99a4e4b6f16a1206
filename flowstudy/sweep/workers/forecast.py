"""About how long a plan takes, from the first updates of its largest stack."""

from collections.abc import Sequence
from datetime import timedelta

import torch

from flowstudy.sweep.cells import Cell, samples_of
from flowstudy.sweep.cells_to_nets import stack_of
from flowstudy.sweep.looks.in_training import settings_of
from flowstudy.train.loop import seconds_per_update

from .tasks import Load, Task, found_device, pieces

LONG = 3e7     # updates x layers x nets from which a forecast is made; less takes about a minute on two cores
WORTH = 60.0   # seconds; a shorter forecast is not shown
SHARE = 0.75   # of their time one after the other that groups take side by side (benchmarks/results/gpu.md: .72 to .80)


def forecast(tasks: Sequence[Task], load: Load, *, side_by_side: bool = False) -> str:
    """A forecast such as "about 1:20:00 expected"; empty for plans that are short, untrained, or cannot be timed."""
    costs = [layers_updated(task.cells[0]) * len(task.cells) for task in tasks]
    if sum(costs) < LONG:
        return ""
    largest = tasks[costs.index(max(costs))]
    try:
        share = SHARE if side_by_side else 1.0
        seconds = seconds_of(largest, load) * max(1.0, share * sum(costs) / max(costs))
        return f"about {timedelta(seconds=round(seconds))} expected" if seconds >= WORTH else ""
    except Exception:  # whatever is wrong with this group, it fails alone when its turn comes
        return ""


def layers_updated(cell: Cell) -> int:
    """Updates of all its epochs, times layers: what training a net costs, beside others of its width and batches."""
    return cell.epochs * -(-samples_of(cell) // cell.batch_size) * cell.depth


def seconds_of(task: Task, load: Load) -> float:
    """Expected seconds of a task, from the first updates of its first stack that fits into memory."""
    first = task.cells[0]
    data = load(first.dataset, first.train_samples, torch.device(found_device(task.device)))
    cells = pieces(task, data)[0]
    settings = settings_of(cells, data, task.measurements[0][2].get("precision", "float32"))
    an_update = seconds_per_update(stack_of(cells, data), data, settings)
    updates = layers_updated(first) // first.depth
    return an_update * updates * len(task.cells) / len(cells)
