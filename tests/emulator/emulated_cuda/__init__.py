"""CUDA without CUDA: tensors that say `cuda:i` over host memory, for tests of what code does with devices.

Real are shapes and the CPU's numbers; on which device every operand is, refused where CUDA refuses it; what makes the
host wait, and what travels (`LOG`); streams, and graphs that record and replay.  Not real are time, asynchrony, the
allocator and the rounding of cuBLAS.  Importing this changes torch for the whole process; EMULATED_DEVICES says how
many devices there are, 2 by default.
"""

import ctypes
import os
import sys
from pathlib import Path

if "torch" in sys.modules:
    raise ImportError("emulated_cuda must be imported before torch.")

sys.path.insert(0, str(Path(__file__).parents[1]))
import build

for _name in ("libtorch_global_deps.so", "libc10.so", "libtorch_cpu.so", "libtorch.so", "libtorch_python.so"):
    ctypes.CDLL(str(build.torch_folder() / "lib" / _name), mode=ctypes.RTLD_GLOBAL)
ctypes.CDLL(str(build.library()), mode=ctypes.RTLD_GLOBAL)  # before torch first asks for its CUDA hooks
sys.path.insert(0, str(build.library().parent))

import emulated_device  # noqa: E402
import torch  # noqa: E402, F401

DEVICES = int(os.environ.get("EMULATED_DEVICES", "2"))
emulated_device.set_device_count(DEVICES)

from . import operations, torch_cuda  # noqa: E402
from .log import LOG  # noqa: E402

operations.register()
torch_cuda.install(DEVICES)

__all__ = ["DEVICES", "LOG"]
