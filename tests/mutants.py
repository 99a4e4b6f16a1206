"""Small slips in the code, one at a time, to see whether a test notices: `make mutants`, or with ARGS="--package theory".

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
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).resolve().parent.parent
TESTS = {  # of a part of the code, those that notice the soonest first
    "cli": "cli sweep_cli shown names", "data": "augment datasets", "figures": "replication gallery gallery_text studies",
    "integrations": "integrations", "kinds": "kinds overlays body_moments residual highway_theory shattering",
    "measure": "body_moments shattering gradients", "measure/gates": "gates routing recurrent",
    "measure/gradients": "verdict gradients gradient_laws verdict_cases gradients_foreign recurrent numbers",
    "measure/lesions.py": "gates", "measure/models": "routes layer_rules inputs copies gradients numbers any_dtype",
    "measure/models/recurrent": "recurrent", "measure/models/dense_jacobian.py": "dense_jacobian routes numbers",
    "measure/monitor": "monitor monitor_foreign", "measure/numerics": "product_svd matrix_free density numbers routes",
    "measure/spectra": "jacobian routes any_dtype matrix_free numbers recurrent", "nets": "blocks fully_connected residual "
    "convolutional initialize", "paper": "replication search overlays links", "plots": "plots result_plots search_plots "
    "overlays routing shattering studies", "predictions": "overlays body_moments shattering through_training predictions",
    "sweep": "cells cells_to_nets search shards engine store tasks run_again in_training sweep_cli optuna",
    "sweep/looks": "in_training engine shattering body_moments routing through_training run_again",
    "sweep/store": "store tasks run_again earlier_stores", "theory": "mean_field highway_theory mean_mode shattering",
    "theory/random_matrix": "random_matrix fluctuations free_product predictions", "train": "loop stacked_training "
    "ensemble sgd in_training convnets", "train/convolutional": "sgd convnets", "trainability": "trial trainability"}
COMPARED = {ast.Lt: (ast.LtE, ast.Gt), ast.LtE: (ast.Lt, ast.GtE), ast.Gt: (ast.GtE, ast.Lt), ast.GtE: (ast.Gt, ast.LtE),
            ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,),
            ast.NotIn: (ast.In,)}
SWAPPED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.Mod: ast.Mult,
           ast.FloorDiv: ast.Mult, ast.And: ast.Or, ast.Or: ast.And, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}
TELLING = ("stop", "warn", "say", "echo", "Option", "Argument", "TypeVar")  # calls whose arguments are words


def changed(node: ast.AST, **fields: object) -> ast.AST:
    return ast.fix_missing_locations(ast.copy_location(type(node)(**(vars(copy.deepcopy(node)) | fields)), node))


def mutants_of(node: ast.AST) -> list[tuple[str, ast.AST]]:
    """Each slip that can be made at this node: its operator, and what stands there instead."""
    match node:
        case ast.Compare(ops=[op]):
            return [("comparison", changed(node, ops=[other()])) for other in COMPARED[type(op)]]
        case ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op) in SWAPPED:
            return [("arithmetic" if isinstance(node, ast.BinOp) else "logic", changed(node, op=SWAPPED[type(op)]()))]
        case ast.Constant(value=bool(value)):
            return [("true or false", changed(node, value=not value))]
        case ast.Constant(value=int(value) | float(value)):
            return [("constant", changed(node, value=other)) for other in {value + 1, 2 * value, 0} - {value}]
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            return [("dropped", node.operand)]
        case ast.IfExp() | ast.If() | ast.While():
            return [("negated", ast.copy_location(ast.UnaryOp(ast.Not(), node.test), node.test))]
        case ast.Call(args=[ast.expr() as first, ast.expr() as second, *rest]) if not any(
                isinstance(arg, ast.Starred) for arg in node.args):
            return [("swapped", changed(node, args=[second, first, *rest]))]
        case ast.AugAssign() | ast.Expr(value=ast.Call()) | ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            return [("deleted", ast.copy_location(ast.Pass(), node))]
    return []


def places(node: ast.AST) -> list[ast.AST]:
    """The nodes below this one that do something: no words, annotations, imports or decorators."""
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom | ast.Assert):
        return []
    if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in TELLING:
        return []
    skipped = ("annotation", "returns", "decorator_list", "bases", "type_params")
    below = [child for name, value in ast.iter_fields(node) if name not in skipped
             for child in (value if isinstance(value, list) else [value]) if isinstance(child, ast.AST)]
    return [node, *(place for child in below for place in places(child))]


def candidates(package: str) -> dict[str, list[dict]]:
    """By operator, every mutant of a package: its file, the span of source that goes, what comes."""
    found: dict[str, list[dict]] = {}
    for path in sorted((ROOT / "flowstudy" / package).rglob("*.py")):
        text = path.read_text()
        starts = [0]
        for line in text.encode().splitlines(keepends=True):
            starts.append(starts[-1] + len(line))
        for node in places(ast.parse(text)):
            for operator, other in mutants_of(node):
                old = node.test if operator == "negated" else node
                span = [starts[old.lineno - 1] + old.col_offset, starts[old.end_lineno - 1] + old.end_col_offset]
                new = f"({ast.unparse(other)})" if operator in ("negated", "dropped") else ast.unparse(other)
                found.setdefault(operator, []).append({
                    "package": package, "file": str(path.relative_to(ROOT)), "line": old.lineno, "operator": operator,
                    "old": text.encode()[slice(*span)].decode(), "new": new, "span": span})
    return found


def drawn(package: str, count: int, seed: int) -> list[dict]:
    """An operator first, then one of its places: constants are many, and what is deleted is few."""
    rng, left, taken = random.Random(f"{seed} {package}"), candidates(package), []
    while len(taken) < count and any(left.values()):
        mutants = left[rng.choice(sorted(name for name, some in left.items() if some))]
        mutant = mutants.pop(rng.randrange(len(mutants)))
        if all((mutant["file"], mutant["line"]) != (other["file"], other["line"]) for other in taken):
            taken.append(mutant)
    return taken


def tests_of(file: str) -> list[str]:
    part = max((part for part in TESTS if f"{file}/".startswith(("flowstudy/" + part + "/"))), key=len)
    return [f"tests/test_{name}.py" for name in TESTS[part].split()]


def run_tests(tree: Path, tests: list[str], limit: float) -> tuple[str, str]:
    """"survived", "caught" or "caught by time", and the test that failed."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "-n", "0", "-p", "no:cacheprovider", *tests]
    here = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree)}
    process = subprocess.Popen(command, cwd=tree, env=here, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               start_new_session=True)
    try:
        words = process.communicate(timeout=limit)[0].splitlines()
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return "caught by time", ""
    failed = [line for line in words if line.startswith(("FAILED", "ERROR"))]
    return "survived" if process.returncode == 0 else "caught", failed[0][:200] if failed else words[-1] if words else ""


def tried(mutant: dict, trees: Queue, limit: float) -> dict:
    tree = trees.get()
    path = tree / mutant["file"]
    whole, (first, last) = path.read_bytes(), mutant["span"]
    try:
        path.write_bytes(whole[:first] + mutant["new"].encode() + whole[last:])
        outcome, test = run_tests(tree, tests_of(mutant["file"]), limit)
        return mutant | {"outcome": outcome, "test": test}
    finally:
        path.write_bytes(whole)
        trees.put(tree)


def main() -> None:
    rooms = sorted({part.split("/")[0] for part in TESTS})
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", action="append", choices=rooms, help="of flowstudy; all where none is given")
    parser.add_argument("--count", type=int, default=11, help="mutants of each package")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds of tests; a mutant that takes longer is caught")
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "mutants.jsonl")
    asked = parser.parse_args()
    asked.results.parent.mkdir(exist_ok=True)
    known = [json.loads(line) for line in asked.results.read_text().splitlines()] if asked.results.exists() else []
    wanted = [mutant for package in asked.package or rooms for mutant in drawn(package, asked.count, asked.seed)]
    todo = [one for one in wanted if not any(one.items() <= before.items() for before in known)]
    trees: Queue = Queue()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(asked.jobs) as pool:
        files = subprocess.run(["git", "ls-files"], cwd=ROOT, text=True, capture_output=True, check=True).stdout.split("\n")
        for number in range(asked.jobs):
            for file in filter(None, files):
                target = Path(folder, str(number), file)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / file, target)
            trees.put(Path(folder, str(number)))
        for found in pool.map(lambda mutant: tried(mutant, trees, asked.limit), todo):
            known.append(found)
            with asked.results.open("a") as results:
                results.write(json.dumps(found) + "\n")
            print(f"{time.strftime('%H:%M:%S')} {found['outcome']:14} {found['file']}:{found['line']} {found['operator']}: "
                  f"{found['old']!r} -> {found['new']!r} {found['test']}", flush=True)
    counts = Counter((one["package"], one["outcome"] == "survived") for one in known)
    print(f"{'package':14} caught  survived")
    for package in rooms:
        print(f"{package:14} {counts[package, False]:6}  {counts[package, True]:8}")


if __name__ == "__main__":
    main()
