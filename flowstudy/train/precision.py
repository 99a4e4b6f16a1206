"""How exact CUDA's products of float32 numbers are, matrix products and convolutions."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.backends import cuda, cudnn, mkldnn

from flowstudy.refusal import RefusalError

PRECISIONS = {"float32": "ieee", "tf32": "tf32"}  # in the words of torch's newer switches
OLDER = {"float32": "highest", "tf32": "high"}
PARTS = cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul
Stood = tuple[list[str], tuple[str, bool]]   # torch's newer and older switches


@dataclass(frozen=True, eq=False)
class Asked:
    """A block that is running, of a thread by its number."""

    thread: int
    precision: str


# Threads that train side by side share torch's switches: the blocks, the latest last, and how the switches stood before
# the first.
SWITCHES = threading.Lock()
ASKED_FOR: list[Asked] = []
BEFORE: list[Stood] = []


@contextmanager
def matrix_precision(precision: str, device: torch.device) -> Iterator[None]:
    """Within the block float32 products are as said, whatever the process had set; afterwards that holds again.

    Blocks may be nested.  Threads may be in such blocks at once, all of one precision, since torch has one switch for
    the process: the last to leave puts it back.
    """
    if precision not in PRECISIONS:
        raise RefusalError(f"train: `precision` must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
    if precision == "tf32" and device.type != "cuda":
        raise RefusalError(f"train: `precision` must be 'float32' on {device.type}, got 'tf32', which only CUDA has.")
    asked = Asked(threading.get_ident(), precision)
    with SWITCHES:
        other = next((one.precision for one in ASKED_FOR
                      if one.thread != asked.thread and one.precision != precision), None)
        if other is not None:
            raise RefusalError(f"train: `precision` must be {other!r} while another thread of this process trains with "
                               f"that, got {precision!r}. Train one after the other, or in another process.")
        if not ASKED_FOR:
            BEFORE.append(switched_to(precision))
        elif ASKED_FOR[-1].precision != precision:
            switched_to(precision)
        ASKED_FOR.append(asked)
    try:
        yield
    finally:
        with SWITCHES:
            in_force = ASKED_FOR[-1].precision
            ASKED_FOR.remove(asked)
            if not ASKED_FOR:
                put_back(*BEFORE.pop())
            elif ASKED_FOR[-1].precision != in_force:
                switched_to(ASKED_FOR[-1].precision)


def switched_to(precision: str) -> Stood:
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
