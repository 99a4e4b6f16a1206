"""The number of nets that fit into a device's memory, and a check that a single one fits."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from flowstudy.data import Dataset
from flowstudy.kinds import KINDS
from flowstudy.sweep.cells import Cell
from flowstudy.sweep.cells_to_nets import stack_of
from flowstudy.train.stacks.group import bytes_per_net

SHARE = 0.5  # share of the free memory to use: other processes need some, and a measurement's need is not known
OBJECTS = 5000  # bytes that Python's objects take for one layer, whatever its width


def check_room(cell: Cell, data: Dataset) -> None:
    """Raise MemoryError for a net larger than the free memory, before the operating system kills the process.

    Its size is extrapolated from nets of two and three layers on the meta device, which take no memory.
    """
    with contextlib.suppress(NotImplementedError, RuntimeError):  # a kind that cannot be built so is tried as it is
        two, three = (bytes_of_weights(cell, data, depth) for depth in (2, 3))
        needed = two + (cell.depth - 2) * (three - two + OBJECTS)
        free = free_bytes(data.x_train.device)
        if 2 * needed > free:  # as it is built, and stacked
            raise MemoryError(f"two copies of a net of depth {cell.depth} and width {cell.width} take "
                              f"{2 * needed / 2**30:.3g} GiB, of which {free / 2**30:.3g} GiB are free")


def bytes_of_weights(cell: Cell, data: Dataset, depth: int) -> int:
    with torch.device("meta"):
        net: nn.Module = KINDS[cell.net].net(data.x_train.shape[1], cell.width, depth, data.classes, cell.activation)
    return sum(p.nbytes for p in net.parameters())


def nets_that_fit(cells: Sequence[Cell], data: Dataset) -> int:
    """How many nets like these train at once, at least 1: one of each activation is built, its tensors are counted."""
    ones = {cell.activation: cell for cell in cells}.values()
    largest = max(bytes_per_net(stack_of([one], data), data, one.batch_size) for one in ones)
    return max(1, int(SHARE * free_bytes(data.x_train.device) / largest))


def free_bytes(device: torch.device) -> float:
    if device.type == "cuda":  # what torch holds and does not use is free as well
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + unused)
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return 1024.0 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):  # not Linux: halving after an error is all there is
        return float("inf")
