"""How exact CUDA's products of float32 numbers are, matrix products and convolutions."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.backends import cuda, cudnn, mkldnn

from flowstudy.refusal import RefusalError

PRECISIONS = {"float32": "ieee", "tf32": "tf32"}  # in the words of torch's newer switches
OLDER = {"float32": "highest", "tf32": "high"}
PARTS = cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul
SWITCHES, ASKED_FOR = threading.Lock(), Counter()  # threads that train side by side share torch's switches
BEFORE: dict[str, tuple[list[str], tuple[str, bool]]] = {}  # how these stood, by what was asked for


@contextmanager
def matrix_precision(precision: str, device: torch.device) -> Iterator[None]:
    """Within the block float32 products are as said, whatever the process had set; afterwards that holds again.

    Threads may be in such blocks at once, all of one precision: the last to leave puts the switches back.
    """
    if precision not in PRECISIONS:
        raise RefusalError(f"train: `precision` must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
    if precision == "tf32" and device.type != "cuda":
        raise RefusalError(f"train: `precision` must be 'float32' on {device.type}, got 'tf32', which only CUDA has.")
    with SWITCHES:
        if ASKED_FOR[precision] == 0:
            BEFORE[precision] = switched_to(precision)
        ASKED_FOR[precision] += 1
    try:
        yield
    finally:
        with SWITCHES:
            ASKED_FOR[precision] -= 1
            if ASKED_FOR[precision] == 0:
                put_back(*BEFORE.pop(precision))


def switched_to(precision: str) -> tuple[list[str], tuple[str, bool]]:
    """Set torch's switches, and return how its newer and older ones stood.

    torch has older switches and, since 2.9, newer ones that tell matrix products from convolutions.  It refuses to read
    an older one that a newer one contradicts, so both are set alike here, and both are put back.
    """
    newer = [part.fp32_precision for part in PARTS]
    set_newer(PARTS, ["ieee"] * len(PARTS))
    older = torch.get_float32_matmul_precision(), convolutions_allow_tf32()
    torch.set_float32_matmul_precision(OLDER[precision])
    cudnn.allow_tf32 = precision == "tf32"
    set_newer(PARTS[:-1], [PRECISIONS[precision]] * 3)
    return newer, older


def put_back(newer: list[str], older: tuple[str, bool]) -> None:
    set_newer(PARTS, ["ieee"] * len(PARTS))
    torch.set_float32_matmul_precision(older[0])
    cudnn.allow_tf32 = older[1]
    set_newer(PARTS, newer)


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
