"""`import flowstudy` costs nothing, and nothing depends on what has been imported before."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import flowstudy

ROOT = Path(flowstudy.__file__).parent
ROOMS = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"cli", "figures"}


def in_a_new_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_imports_no_library():
    """Neither torch nor what runs notebooks; a complete dir() and a misspelt name cost nothing either."""
    said = in_a_new_process(
        "import sys; before = set(sys.modules); import flowstudy as fs\n"
        "assert {*fs.__all__, 'theory', 'plots', '__version__'} <= set(dir(fs))\n"
        "try: fs.gradient_flo\n"
        "except AttributeError as error: assert error.name == 'gradient_flo' and error.obj is fs\n"
        "print(*{name.partition('.')[0] for name in sys.modules.keys() - before} - sys.stdlib_module_names)")
    assert said.split() == ["flowstudy"]


@pytest.mark.slow
def test_studies_need_their_extra_and_nothing_else_does():
    """Every module outside `figures` imports where what runs notebooks is missing; Triton's kernels need Triton."""
    in_a_new_process(
        "import importlib, pkgutil, sys\n"
        "sys.modules.update(dict.fromkeys(['papermill', 'ipykernel', 'nbconvert', 'nbformat', 'traitlets']))\n"
        "import flowstudy\n"
        "for module in pkgutil.walk_packages(flowstudy.__path__, 'flowstudy.'):\n"
        "    if not module.name.startswith(('flowstudy.figures', 'flowstudy.integrations.',"
        " 'flowstudy.train.stacks.four_launches.'))"
        " and module.name not in ('flowstudy.__main__', 'flowstudy.sweep.optuna_search'):\n"
        "        importlib.import_module(module.name)")


def test_names_are_those_of_the_rooms_and_of_the_stub():
    """`__init__.pyi` imports, from the same rooms, what `__init__.py` finds there; every name is its room's own."""
    imported, rooms, listed = {}, set(), None
    for node in ast.parse((ROOT / "__init__.pyi").read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module is None:
            rooms |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {alias.name: node.module for alias in node.names}
        elif isinstance(node, ast.Assign):
            listed = ast.literal_eval(node.value)
    assert imported == flowstudy._HOME and rooms | {"trainability"} == set(flowstudy._ROOMS) == ROOMS
    assert sorted(listed) == sorted(flowstudy.__all__) == sorted(set(listed))
    for name, room in imported.items():
        assert getattr(flowstudy, name) is getattr(importlib.import_module(f"flowstudy.{room}"), name)


def test_the_room_named_as_its_function_does_not_hide_it():
    """The import system puts a room that it has imported into the package, under the room's name."""
    flowstudy.trainability = importlib.import_module("flowstudy.trainability")
    assert flowstudy.trainability.__name__ == "trainability"
    everything = {}
    exec("from flowstudy import *", everything)
    assert set(flowstudy.__all__) <= set(everything) and callable(everything["trainability"])


@pytest.mark.parametrize("uses", [
    "from flowstudy.nets import HighwayNet, initialize; initialize(HighwayNet(4, 4, 3, 2), 'he_normal', seed=0)",
    "import torch; from flowstudy.nets import ResidualNet; from flowstudy.measure import jacobian_spectrum;"
    "jacobian_spectrum(ResidualNet(4, 4, 3, 2), torch.randn(2, 4))",
    "from flowstudy.nets import PlainNet; from flowstudy.train.stacks.fully_connected import trains_by_hand;"
    "assert trains_by_hand(PlainNet(4, 4, 3, 2))",
    "from flowstudy.predictions.theories import theory_of; theory_of({'net': 'highway'})",
    "import pandas as pd; from flowstudy.plots.style import with_family; assert with_family(pd.DataFrame({'net': "
    "['plain'], 'gate_bias': [None], 'init': ['orthogonal'], 'gain': [None], 'activation': ['tanh']}))"
    "['panel'][0] == 'plain tanh'",
], ids=["nets", "measure", "train", "predictions", "plots"])
@pytest.mark.slow
def test_rooms_know_the_kinds_of_net_whatever_was_imported(uses):
    """A room that is used by itself asks the kinds above it at its first call."""
    assert in_a_new_process(f"import sys; {uses}; print('flowstudy.kinds' in sys.modules)").strip() == "True"
