"""Compiles device.cpp with g++ against the torch that is installed; run it, or ask `library()` for the result."""

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).parent
SOURCE = HERE / "device.cpp"
NAME = "emulated_device"
COMPILER = os.environ.get("CXX", "g++")


def torch_folder() -> Path:
    """Found without importing torch, which must not be there before the library."""
    return Path(importlib.util.find_spec("torch").submodule_search_locations[0])


def library() -> Path:
    """Where the library for this torch, this Python and this source is, or will be."""
    made_of = SOURCE.read_bytes() + f"{importlib.metadata.version('torch')} {sys.version}".encode()
    return HERE / "build" / hashlib.sha256(made_of).hexdigest()[:16] / f"{NAME}.so"


def build() -> Path:
    target, torch = library(), torch_folder()
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        whole = target.with_suffix(f".{os.getpid()}")
        include = [f"-I{torch / 'include'}", f"-I{torch / 'include/torch/csrc/api/include'}",
                   f"-I{sysconfig.get_paths()['include']}"]
        subprocess.run([COMPILER, "-O0", "-shared", "-fPIC", "-std=c++20", *include, str(SOURCE), "-o", str(whole),
                        f"-L{torch / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10", "-ltorch_python"], check=True)
        whole.replace(target)
    return target


if __name__ == "__main__":
    if shutil.which(COMPILER) is None:
        sys.exit(f"No C++ compiler {COMPILER} was found.")
    build()
