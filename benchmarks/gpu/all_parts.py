"""The tables, in the order of their value."""

from collections.abc import Callable, Iterable

import torch

from .conv_steps import conv_steps
from .parts import Sizes, about, beside_cpu, beside_the_loop, device_tests, monitors, spectra, stack_sizes, steps
from .record import Record
from .side_by_side import together

PARTS: dict[str, Callable[[torch.device, Sizes, Record], Iterable[dict]]] = {
    "machine": about,
    "device tests": device_tests,
    "losses beside the CPU's": beside_cpu,
    "a step of a stack": steps,
    "beside a loop over nets": beside_the_loop,
    "smaller and larger stacks": stack_sizes,
    "stacks side by side": together,
    "a convolutional step": conv_steps,
    "spectra": spectra,
    "the monitor": monitors,
}
