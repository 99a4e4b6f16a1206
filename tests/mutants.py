"""Small slips in the code, one at a time, to see whether a test notices: `make mutants`, or with ARGS="--package nets".

A seeded draw of places in each package; each mutant is made in a copy of the files that git knows, where the tests of
its part of the code run until one fails.  A run that was stopped goes on where it was: what is known is in --results.
"""

import argparse
import ast
import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).resolve().parent.parent
# Of a part of the code, the tests that run: those that notice the soonest first.
TESTS = {part: [f"tests/test_{name}.py" for name in names.split()] for part, names in (
    line.split(": ") for line in (ROOT / "tests" / "mutants.txt").read_text().splitlines())}
COMPARED = {ast.Lt: [ast.LtE, ast.Gt], ast.LtE: [ast.Lt, ast.GtE], ast.Gt: [ast.GtE, ast.Lt],
            ast.GtE: [ast.Gt, ast.LtE], ast.Eq: [ast.NotEq], ast.NotEq: [ast.Eq], ast.Is: [ast.IsNot],
            ast.IsNot: [ast.Is], ast.In: [ast.NotIn], ast.NotIn: [ast.In]}
SWAPPED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
           ast.Mod: ast.Mult, ast.FloorDiv: ast.Mult, ast.And: ast.Or, ast.Or: ast.And}
WORDS = (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom, ast.Assert)
TELLING = ("stop", "warn", "say", "echo", "Option", "Argument", "TypeVar")  # calls whose arguments are words


def changed(node: ast.AST, **fields: object) -> ast.AST:
    return type(node)(**(vars(copy.deepcopy(node)) | fields))


def mutants_of(node: ast.AST) -> list[tuple[str, ast.AST]]:
    """Each slip that can be made at this node: its operator, and what stands there instead."""
    match node:
        case ast.Compare(ops=[op]):
            return [("comparison", changed(node, ops=[other()])) for other in COMPARED[type(op)]]
        case ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op) in SWAPPED:
            return [("arithmetic", changed(node, op=SWAPPED[type(op)]()))]
        case ast.Constant(value=bool(value)):
            return [("true or false", changed(node, value=not value))]
        case ast.Constant(value=int(value) | float(value)):
            return [("constant", changed(node, value=other)) for other in (value + 1, 2 * value, 0) if other != value]
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            return [("dropped", node.operand)]
        case ast.IfExp() | ast.If() | ast.While():
            return [("negated", ast.UnaryOp(ast.Not(), node.test))]
        case ast.Call(args=[first, second, *rest]) if ast.dump(first) != ast.dump(second):
            if not any(isinstance(arg, ast.Starred) for arg in node.args):
                return [("arguments", changed(node, args=[second, first, *rest]))]
        case ast.AugAssign() | ast.Expr(value=ast.Call()) | ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            return [("deleted", ast.Pass())]
    return []


def places(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes from here down that do something: no words, annotations, imports or decorators."""
    if isinstance(node, WORDS) or (isinstance(node, ast.Call)
                                   and getattr(node.func, "id", getattr(node.func, "attr", "")) in TELLING):
        return
    yield node
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and name not in ("annotation", "returns", "decorator_list", "bases"):
                yield from places(child)


def drawn(package: str, count: int, seed: int) -> list[dict]:
    """An operator first, then one of its places, none on a line that has one: constants are many, deletions few."""
    left: dict[str, list[dict]] = {}
    for path in sorted((ROOT / "flowstudy" / package).rglob("*.py")):
        lines = path.read_bytes().splitlines(keepends=True)
        for node in places(ast.parse(path.read_bytes())):
            for operator, other in mutants_of(node):
                old = node.test if operator == "negated" else node
                first, last = (sum(map(len, lines[:line - 1])) + column for line, column in (
                    (old.lineno, old.col_offset), (old.end_lineno, old.end_col_offset)))
                left.setdefault(operator, []).append({
                    "package": package, "file": str(path.relative_to(ROOT)), "line": old.lineno, "operator": operator,
                    "span": [first, last], "old": b"".join(lines)[first:last].decode(),
                    "new": f"({ast.unparse(other)})" if operator in ("negated", "dropped") else ast.unparse(other)})
    rng, taken = random.Random(f"{seed} {package}"), {}
    while len(taken) < count and any(left.values()):
        some = left[rng.choice([operator for operator in sorted(left) if left[operator]])]
        mutant = some.pop(rng.randrange(len(some)))
        taken.setdefault((mutant["file"], mutant["line"]), mutant)
    return list(taken.values())


def tried(mutant: dict, trees: Queue, limit: float) -> dict:
    """The mutant with its outcome, "survived", "caught", "caught by time" or "not run", and the test that failed."""
    tree, (first, last), part = trees.get(), mutant["span"], mutant["file"].removeprefix("flowstudy/")
    path, part = tree / mutant["file"], max(filter(part.startswith, TESTS), key=len)
    whole = path.read_bytes()
    path.write_bytes(whole[:first] + mutant["new"].encode() + whole[last:])
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "-n", "0", "-p", "no:cacheprovider"]
    how = {"cwd": tree, "env": os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree)}, "text": True}
    process = subprocess.Popen(command + TESTS[part], stdout=subprocess.PIPE, start_new_session=True, **how)
    try:
        words = [line for line in process.communicate(timeout=limit)[0].splitlines() if line[:5] in ("FAILE", "ERROR")]
        outcome = "caught" if words else "survived" if process.returncode == 0 else "not run"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        outcome, words = "caught by time", []
    path.write_bytes(whole)
    trees.put(tree)
    return mutant | {"outcome": outcome, "test": words[0] if words else ""}


def main() -> None:
    rooms = sorted({part.split("/")[0] for part in TESTS})
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", action="append", choices=rooms, help="of flowstudy; all where none is given")
    parser.add_argument("--count", type=int, default=11, help="mutants of each package")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=300, help="seconds; a mutant that takes longer is caught")
    parser.add_argument("--results", type=Path, default=Path("build", "mutants.jsonl"))
    asked = parser.parse_args()
    asked.results.parent.mkdir(exist_ok=True)
    known = [json.loads(line) for line in asked.results.read_text().splitlines()] if asked.results.exists() else []
    wanted = [mutant for package in asked.package or rooms for mutant in drawn(package, asked.count, asked.seed)]
    todo = [one for one in wanted if not any(one.items() <= before.items() for before in known)]
    trees, files = Queue(), subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
    with tempfile.TemporaryDirectory() as home, ThreadPoolExecutor(asked.jobs) as pool, asked.results.open("a") as out:
        for tree in (Path(home, str(number)) for number in range(asked.jobs)):
            for file in files:
                (tree / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / file, tree / file)
            trees.put(tree)
        for found in pool.map(lambda mutant: tried(mutant, trees, asked.limit), todo):
            known.append(found)
            print(json.dumps(found), file=out, flush=True)
            print("{outcome:14} {file}:{line} {operator}: {old!r} -> {new!r} {test}".format(**found), flush=True)
    counts = Counter((one["package"], one["outcome"].split()[0]) for one in known)
    print(*(f"{room:14} {counts[room, 'caught']:3} caught, {counts[room, 'survived']:3} survived" for room in rooms),
          sep="\n")


if __name__ == "__main__":
    main()
