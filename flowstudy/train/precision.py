"""How exact CUDA's products of float32 numbers are, matrix products and convolutions."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.backends import cuda, cudnn, mkldnn

from flowstudy.refusal import RefusalError

PRECISIONS = {"float32": "ieee", "tf32": "tf32"}  # in the words of torch's newer switches
OLDER = {"float32": "highest", "tf32": "high"}


@contextmanager
def matrix_precision(precision: str, device: torch.device) -> Iterator[None]:
    """Within the block float32 products are as said, whatever the process had set; afterwards that holds again.

    torch has older switches and, since 2.9, newer ones that tell matrix products from convolutions.  It refuses to read
    an older one that a newer one contradicts, so both are set alike here, and both are put back.
    """
    if precision not in PRECISIONS:
        raise RefusalError(f"train: `precision` must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
    if precision == "tf32" and device.type != "cuda":
        raise RefusalError(f"train: `precision` must be 'float32' on {device.type}, got 'tf32', which only CUDA has.")
    parts = cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul
    newer = [part.fp32_precision for part in parts]
    set_newer(parts, ["ieee"] * len(parts))
    older = torch.get_float32_matmul_precision(), convolutions_allow_tf32()
    torch.set_float32_matmul_precision(OLDER[precision])
    cudnn.allow_tf32 = precision == "tf32"
    set_newer(parts[:-1], [PRECISIONS[precision]] * 3)
    try:
        yield
    finally:
        set_newer(parts, ["ieee"] * len(parts))
        torch.set_float32_matmul_precision(older[0])
        cudnn.allow_tf32 = older[1]
        set_newer(parts, newer)


def set_newer(parts: tuple, values: list[str]) -> None:
    for part, value in zip(parts, values, strict=True):
        part.fp32_precision = "none"  # it has its backend's
        if part.fp32_precision != value:
            part.fp32_precision = value


def convolutions_allow_tf32() -> bool:
    """The older switch, while the newer ones say no."""
    try:
        return cudnn.allow_tf32
    except RuntimeError:  # they contradict each other
        return True
