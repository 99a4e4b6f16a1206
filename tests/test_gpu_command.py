"""`python -m benchmarks.gpu` goes through on emulated devices, says what failed, and is read back."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from flowstudy.sweep import Store

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def command(*arguments: object, emulated: bool = True) -> None:
    paths = [str(ROOT / "tests/emulator")] * emulated + [str(ROOT)]
    done = subprocess.run([sys.executable, "-m", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler for emulated devices")
def test_every_part_runs_and_the_store_and_the_tables_can_be_read(tmp_path):
    subprocess.run([sys.executable, ROOT / "tests/emulator/build.py"], check=True)
    command("benchmarks.gpu", "--tiny", "--profile", "smoke", "--minutes", 30, "--out", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"records.json", "store.tgz"}
    parts = json.loads((tmp_path / "out" / "records.json").read_text())["parts"]
    assert {name: part.get("error") for name, part in parts.items() if "error" in part} == {}
    assert all(part["rows"] for part in parts.values())
    assert parts["device tests"]["rows"] == [{"tests": 1, "failure": 0, "error": 0, "skipped": 0}]
    assert all(row["same nets diverged"] and row["largest relative gap"] < 1e-6
               for row in parts["losses beside the CPU's"]["rows"])
    with tarfile.open(tmp_path / "out" / "store.tgz") as archive:
        archive.extractall(tmp_path, filter="data")
    [table] = (tmp_path / "results").glob("training_loss-*")
    stored = sum(len(footer["cells"]) for footer in Store(tmp_path / "results").footers(table.name))
    assert stored == sum(row["nets"] for row in parts["searches"]["rows"])
    command("benchmarks.gpu", "--read", tmp_path / "out", "--into", tmp_path / "read", emulated=False)
    text = (tmp_path / "read/benchmarks/results/gpu.md").read_text()
    assert all(f"## {name} (" in text for name in parts)
    record = json.loads((tmp_path / "read/replication/smoke/loss_vs_depth.json").read_text())
    best = {f"{row['net']} {row['group'].split()[2]}: best of {row['nets']} runs": row["best"]
            for row in parts["searches"]["rows"] if row["group"].startswith("figure 1")}
    recorded = {row["quantity"]: row["ours"] for row in record["rows"]}
    assert {name: recorded[name] for name in best} == pytest.approx(best, rel=1e-9) and best
    assert (tmp_path / "read/REPLICATION.md").exists() and record["parameters"]["runs"] == 2
    of_nets = json.loads((tmp_path / "read/replication/smoke/mnist_conv.json").read_text())["rows"]
    reached = [100 * row["test accuracy"] for row in parts["table 1"]["rows"]]
    assert [row["ours"] for row in of_nets] == pytest.approx(reached, rel=1e-9) and len(reached) == 2


def test_what_fails_or_is_late_is_recorded_and_the_rest_goes_on(tmp_path):
    from benchmarks.gpu.record import Record, read

    record = Record(tmp_path / "out", 60.0, 8, 16.0, "smoke")
    assert record.attempt("wrong", lambda: [{"share": 1 / 0}]) == []
    assert record.attempt("late", lambda: [iter(int, 1).__next__() for _ in iter(int, 1)], share=1e-3) == []
    half = itertools.chain([{"depth": 10}], iter(lambda: 1 / 0, None))
    assert record.attempt("half", lambda: half) == [{"depth": 10}]
    assert record.parts["half"]["error"] == "ZeroDivisionError: division by zero"
    assert record.attempt("right", lambda: [{"loss": 0.25}]) == [{"loss": 0.25}]
    text = read([tmp_path / "out"])
    assert "Failed: ZeroDivisionError: division by zero" in text and "Failed: Late: not done after" in text
    assert "| loss |\n| --- |\n| 0.25 |" in text


def test_the_files_that_are_run_on_a_gpu_are_those_that_pytest_finds_tests_for_it_in():
    from benchmarks.gpu.parts import files_with_gpu_tests

    found = subprocess.run([sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "gpu", "tests"], cwd=ROOT,
                           capture_output=True, text=True, check=True, timeout=600).stdout
    wanted = {str(ROOT / line.split("::")[0]) for line in found.splitlines() if "::" in line}
    assert set(files_with_gpu_tests()) == wanted


def test_the_bundle_is_small_and_holds_what_the_command_imports(tmp_path):
    command("benchmarks.gpu.bundle", "--to", tmp_path / "bundle.tgz", emulated=False)
    assert (tmp_path / "bundle.tgz").stat().st_size < 20e6
    with tarfile.open(tmp_path / "bundle.tgz") as archive:
        inside = {name.removeprefix("flowstudy-gpu/") for name in archive.getnames()}
    assert {"flowstudy/__init__.py", "benchmarks/gpu/__main__.py", "tests/test_gpu.py", "studies/profiles.yaml",
            "jaxtyping/__init__.py", "typer/__init__.py", "tqdm/__init__.py", "yaml/__init__.py"} <= inside
    compiled = ("torch/", "numpy/", "pydantic", "hypothesis")
    assert not [name for name in inside if name.endswith((".so", ".pyc")) or name.startswith(compiled)]
