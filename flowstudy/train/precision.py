"""How exact CUDA's matrix products of float32 numbers are."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

PRECISIONS = {"float32": "highest", "tf32": "high"}


@contextmanager
def matrix_precision(precision: str, device: torch.device) -> Iterator[None]:
    """Within the block float32 products are as said, whatever the process had set; afterwards that holds again."""
    if precision not in PRECISIONS:
        raise ValueError(f"train: `precision` must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
    if precision == "tf32" and device.type != "cuda":
        raise ValueError(f"train: `precision` must be 'float32' on {device.type}, got 'tf32', which only CUDA has.")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(PRECISIONS[precision])
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
