"""How many nets a device has room for."""

from collections.abc import Sequence
from pathlib import Path

import torch

from flowstudy.data import Dataset
from flowstudy.sweep.cells import Cell
from flowstudy.sweep.cells_to_nets import stack_of
from flowstudy.train.stacks.group import bytes_per_net

SHARE = 0.5  # of what is free: others are there too, and what a measurement needs is not known


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
