"""Whether type checkers see what users use: every public name has its type, and the README's Python passes mypy.

    python .ci/public_types.py

Public is what a room lists in `__all__`, with the methods and attributes of its classes.  pyright's own score counts
every name of every module, those that only flowstudy uses too.
"""

import importlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import flowstudy

ROOT = Path(__file__).resolve().parents[1]
# pyright looks where another Python than this one may look, and cannot follow an editable installation.
SEEN = [str(ROOT), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
# What the README's blocks take for granted: a user's own model and data.  tests/test_docs.py runs them with it.
GIVEN = """
import torch
from torch import nn
import flowstudy as fs
torch.manual_seed(0)
model: nn.Module = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
a, b = nn.Linear(2, 2), nn.Linear(2, 2)
x = torch.randn(64, 2)
y = (x[:, 0] > 0).long()
highway_net = fs.HighwayNet(2, 2, 2, 2)
def train(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
"""


def main() -> None:
    untyped = untyped_names()
    print(*untyped, sep="\n", end="\n" if untyped else "")
    passed = readme_passes()
    sys.exit(bool(untyped) or not passed)


def untyped_names() -> list[str]:
    """Public names whose type pyright does not know, with what it says."""
    done = subprocess.run([sys.executable, "-m", "pyright", "--verifytypes", "flowstudy", "--ignoreexternal",
                           "--outputjson"], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(SEEN)})
    symbols = json.loads(done.stdout)["typeCompleteness"]["symbols"]
    public = public_names()
    mine = [symbol for symbol in symbols if any(symbol["name"] == name or symbol["name"].startswith(f"{name}.")
                                                for name in public)]
    if len(mine) < len(public):
        sys.exit(f"pyright found {len(mine)} of {len(public)} public names. It said:\n{done.stdout[:2000]}")
    known = sum(symbol["isTypeKnown"] for symbol in mine)
    print(f"pyright: {known} of {len(mine)} public names, attributes and methods have a known type")
    return [f"{symbol['name']}: {note['message'].splitlines()[0]}" for symbol in mine if not symbol["isTypeKnown"]
            for note in symbol["diagnostics"] or [{"message": "something in it has no known type"}]]


def public_names() -> set[str]:
    """Where each name is defined: pyright calls it so."""
    rooms = [flowstudy, *(importlib.import_module(f"flowstudy.{room}") for room in flowstudy._ROOMS)]
    things = [getattr(room, name) for room in rooms for name in getattr(room, "__all__", ())]
    return {f"{thing.__module__}.{thing.__qualname__}" for thing in things if hasattr(thing, "__qualname__")}


def readme_passes() -> bool:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "readme.py"
        program.write_text("\n".join([GIVEN, *blocks]), encoding="utf-8")
        done = subprocess.run([sys.executable, "-m", "mypy", "--follow-imports=silent", "--ignore-missing-imports",
                               "--check-untyped-defs", "--no-incremental", str(program)], cwd=ROOT, text=True,
                              capture_output=True)
    print(f"mypy on the README's {len(blocks)} blocks: {done.stdout.strip()}{done.stderr.strip()}")
    return done.returncode == 0


if __name__ == "__main__":
    main()
