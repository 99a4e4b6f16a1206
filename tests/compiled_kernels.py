"""Triton's kernels compiled for a GPU that need not be there: what they need of it, as JSON.

    python tests/compiled_kernels.py highway 50 90 232448

The arguments are a kind of net, its width, a compute capability and the bytes of shared memory that a program can have.
It is a process of its own: Triton reads the kernels' source, which the tests' type checks rewrite.
"""

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from flowstudy.train.stacks.four_launches import kernels, nets

KERNELS = ("step_forward", "step_backward", "update_blocks", "update_ends", "losses")
FLOATS, OTHERS = "*fp32", {"index": "*i64", "weight": "*fp64", "kinds": "*i32", "y_all": "*i32", "layers": "i32",
                           "samples": "i32"}


def needs(name: str, kind: str, width: int, capability: int, shared: int) -> tuple[int, int, int]:
    """Registers and spilled bytes of a thread, and a program's shared memory, compiled for MNIST, batch 20."""
    units, rest = nets.two_tiles(width, 2 if kind == "highway" else 1)
    forward, backward, updates = nets.launches(units, shared)
    launch = updates if name.startswith("update") else backward if name == "step_backward" else forward
    function = getattr(kernels, name)
    known = {"FEATURES": 784, "INPUT_ROW": 784, "F": nets.FEATURES, "WIDTH": width, "ROW": nets.filled(width, nets.ROW),
             "CLASSES": 10, "C": 16, "BATCH": 20, "U": units, "V": rest, "COLUMNS": nets.tiled(width), "PRESENT": 3,
             "SLOTS": 3 if kind == "highway" else 2, "JOIN": kernels.JOINS.index(kind), "KEEPS_INPUT": False,
             "S": launch.samples, "STAGES": launch.stages, "PRECISION": "tf32x3"}
    types = {arg: "constexpr" if arg.isupper() else OTHERS.get(arg, FLOATS) for arg in function.arg_names}
    source = ASTSource(function, types, {arg: known[arg] for arg, type in types.items() if type == "constexpr"},
                       {(place,): [["tt.divisibility", 16]] for place, type in enumerate(types.values())
                        if type.startswith("*")})
    made = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": launch.warps})
    tool = Path(importlib.util.find_spec("triton").submodule_search_locations[0], "backends/nvidia/bin/cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as program:
        program.write(made.asm["cubin"])
        program.flush()
        said = subprocess.run([tool, "-res-usage", program.name], capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", said).groups()
    return int(registers), int(stack), made.metadata.shared


if __name__ == "__main__":
    kind, *numbers = sys.argv[1:]
    print(json.dumps({name: needs(name, kind, *map(int, numbers)) for name in KERNELS}))
