"""The house stays one to find one's way in: short files and functions, small rooms, one name for one thing."""

import ast
from collections import defaultdict
from pathlib import Path

import flowstudy

HOUSE = Path(flowstudy.__file__).parent
FILES = sorted(HOUSE.rglob("*.py"))
LINES, FUNCTION_LINES, FILES_IN_A_ROOM = 350, 40, 12  # docstrings of functions, and __init__.py, not counted

# A picture and a command bear the name of what they show and run; these rooms are compared with themselves alone.
NAMED_AFTER_OTHERS = ("plots", "cli")
SAME_NAME = {
    "GradientMonitorCallback": "each of two trainers has one",
    "Activation": "theory's has means over Gaussian inputs, training's goes through it and back",
}


def where(path: Path) -> str:
    return str(path.relative_to(HOUSE))


def test_files_are_short():
    long = {where(path): lines for path in FILES if (lines := len(path.read_text().splitlines())) > LINES}
    assert not long


def test_functions_are_short():
    long = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = node.body[0] if ast.get_docstring(node) is not None else None
                lines = node.end_lineno - node.lineno + 1
                lines -= docstring.end_lineno - docstring.lineno + 1 if docstring is not None else 0
                if lines > FUNCTION_LINES:
                    long[f"{where(path)}: {node.name}"] = lines
    assert not long


def test_rooms_are_small():
    rooms = defaultdict(list)
    for path in FILES:
        if path.name != "__init__.py":
            rooms[where(path.parent)].append(path.name)
    assert not {room: files for room, files in rooms.items() if len(files) > FILES_IN_A_ROOM}


def test_a_name_stands_for_one_thing():
    """No public function or class is defined in two modules, but for those listed above with their reason."""
    places = defaultdict(set)
    for path in FILES:
        room = path.relative_to(HOUSE).parts[0]
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                places[node.name, room if room in NAMED_AFTER_OTHERS else "elsewhere"].add(where(path))
    shared = {name: sorted(paths) for (name, _), paths in places.items() if len(paths) > 1}
    assert not {name: paths for name, paths in shared.items() if name not in SAME_NAME}
    assert not SAME_NAME.keys() - shared.keys()   # what is told apart by now leaves the list
