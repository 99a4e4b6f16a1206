"""How many nets a device has room for."""

from pathlib import Path

import torch

from flowstudy.data import Dataset
from flowstudy.sweep.cells import Cell
from flowstudy.sweep.cells_to_nets import stack_of
from flowstudy.train.stacks.group import bytes_per_net

SHARE = 0.5  # of what is free: others are there too, and what a measurement needs is not known


def nets_that_fit(cell: Cell, data: Dataset) -> int:
    """How many nets like this one train at once, at least 1: one is built and its tensors are counted."""
    one = stack_of([cell], data)
    return max(1, int(SHARE * free_bytes(data.x_train.device) / bytes_per_net(one, data, cell.batch_size)))


def free_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return 1024.0 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):  # not Linux: halving after an error is all there is
        return float("inf")
