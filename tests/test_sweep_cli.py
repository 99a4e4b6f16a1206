"""Plans as files, `flowstudy sweep` and `flowstudy status`: they run what `run` runs, and refuse what is wrong."""

import inspect
import itertools
import json
import re
import subprocess
import sys
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest
import yaml
from jsonschema import Draft202012Validator
from pandas.testing import assert_frame_equal
from typer.testing import CliRunner

from flowstudy.cli import commands as cli
from flowstudy.cli import sweeps
from flowstudy.cli.commands import EXAMPLE
from flowstudy.data import datasets
from flowstudy.seal import sealed_json, unsealed_json
from flowstudy.sweep import Cell, Store, grid, random_search, run
from flowstudy.sweep.looks.table import MEASUREMENTS, training_loss
from flowstudy.sweep.plan import table_of
from flowstudy.sweep.plan_file import PlainYaml, as_python, read_plan
from flowstudy.sweep.plan_schema import plan_schema
from flowstudy.sweep.status import busy_seconds, status
from flowstudy.sweep.workers import code, tasks

ROOT = Path(__file__).parents[1]
SMALL = {"width": 5, "train_samples": 20, "batch_size": 10, "epochs": 2}
PLAN = """
measure: accuracy
grid:
  net: [plain, highway]
  depth: 3
  seed: {range: 3}
  learning_rate: [1e-2, 0.1]
  width: 5
  train_samples: 20
  batch_size: 10
  epochs: 2
random_search:
  - {n: 2, net: highway, depth: 2, width: 5, train_samples: 20}
  - {n: 1, depth: [2, 4], width: 5, train_samples: 20, ranges: {learning_rate: [1e-3, 0.1]}, seed: 1}
"""
TINY = {"width": 5, "train_samples": 20}
CELLS = [*grid(net=["plain", "highway"], depth=3, seed=range(3), learning_rate=[0.01, 0.1], **SMALL),
         *random_search(2, net="highway", depth=2, **TINY),
         *random_search(1, depth=[2, 4], ranges={"learning_rate": [1e-3, 0.1]}, seed=1, **TINY)]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.yaml").write_text(PLAN)
    return tmp_path


def call(*arguments: object):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def sweep(*arguments: object):
    return call("sweep", "plan.yaml", "--device", "cpu", "--no-progress", *arguments)


# --- sweep -----------------------------------------------------------------------------------------------------------


def test_a_plan_file_is_the_same_plan(here):
    """The cells are those of `grid` and `random_search` called with the same arguments, 1e-2 being a number."""
    plan = read_plan(here / "plan.yaml")
    assert plan.cells == CELLS and plan.measure == "accuracy" and plan.options == {}
    assert read_plan(here / "plan.yaml", "jacobian_spectrum").measure == "jacobian_spectrum"


def test_sweep_stores_what_run_stores(here):
    """Its folder, which it prints, holds the rows that `run` gives for the same cells."""
    result = sweep("--store", "out")
    assert result.exit_code == 0, result.output
    folder = result.output.strip().rpartition(" ")[2]
    assert f"{len(CELLS)} cells, {len(CELLS)} rows, in {folder}" in result.output
    expected = run(CELLS, measure="accuracy", store=here / "other", device="cpu", progress=False)
    stored = pd.read_parquet(folder).set_index("cell").loc[expected["cell"]].reset_index()
    assert_frame_equal(stored[list(expected)], expected, check_dtype=False)


SWEEP = {"measure": ("--measure", "training_loss"), "store": ("--store", Path("elsewhere")),
         "device": ("--device", "cpu"), "shard": ("--shard", "1/2"), "engine": ("--engine", "tcp://127.0.0.1:1"),
         "nets_at_once": ("--nets-at-once", 3), "insecure_network": ("--insecure-network", True),
         "progress": ("--no-progress", False)}


@pytest.mark.parametrize("name", SWEEP)
def test_each_option_of_sweep_reaches_run(here, monkeypatch, name):
    """As what it is, the others being as they are without."""
    told, frame = [], pd.DataFrame({"cell": ["a"]})
    monkeypatch.setattr(sweeps, "run", lambda cells, **options: (told.append(options), frame)[1])
    option, value = SWEEP[name]
    for arguments in ((), (option,) if isinstance(value, bool) else (option, value)):
        assert call("sweep", "plan.yaml", *arguments).exit_code == 0
    without, given = told
    assert given == without | {name: value} and without[name] != value
    assert inspect.signature(cli.sweep).parameters.keys() - SWEEP.keys() == {"plan", "schema"}


def test_measure_options_and_shards(here):
    """--measure takes the place of the file's, `options:` go to it, and two shards are the whole."""
    (here / "plan.yaml").write_text(PLAN.replace("measure: accuracy", "options: {samples: 2}"))
    for shard in ("1/2", "2/2"):
        result = sweep("--measure", "gradient_flow", "--shard", shard)
        assert result.exit_code == 0, result.output
    assert Store("results").missing(CELLS, table_of("gradient_flow", {"samples": 2})) == []


@pytest.mark.parametrize("word, number", [("0", 0), ("0.1", 0.1), ("-0.5", -0.5), ("1e-2", 0.01), ("1_000", 1000),
                                          ("+3", 3), ("0.0", 0.0), (".5", 0.5), ("-7", -7)])
def test_numbers_in_a_plan_are_what_they_look_like(here, word, number):
    """Zeros before the point stay, and merged mappings are no repeated keys."""
    (here / "plan.yaml").write_text(f"options: {{at: {word}}}\nmeasure: accuracy\ngrid: {{seed: 1}}")
    found = yaml.load((here / "plan.yaml").read_text(), PlainYaml)["options"]["at"]
    assert as_python(found) == number
    merged = "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: {<<: *a, x: 4}"
    assert yaml.load(merged, PlainYaml) == yaml.safe_load(merged)


def test_a_process_of_its_own(here):
    """As a user calls it, `-m flowstudy`: the status of a killed or finished sweep is that of the store."""
    done = subprocess.run([sys.executable, "-m", "flowstudy", "sweep", "plan.yaml", "--device", "cpu"],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{len(CELLS)} cells" in done.stdout and "accuracy" in done.stderr  # the progress bar
    assert status("results")["done"].tolist() == [len(CELLS)]


WRONG = {
    "section": (PLAN.replace("grid:", "gird:"), "unknown key `gird`; .* Did you mean 'grid'"),
    "axis": (PLAN.replace("  depth: 3", "  dept: 3"), "grid: unknown key `dept`; .* Did you mean 'depth'"),
    "argument": (PLAN.replace("ranges", "range_s"), "random_search: unknown key `range_s`; .* Did you mean 'ranges'"),
    "range": (PLAN.replace("{learning_rate: [1e-3", "{learnin_rate: [1e-3"), "may hold .* got 'learnin_rate'"),
    "value": (PLAN.replace("highway]", "higway]"), "`net` must be one of .* Did you mean 'highway'"),
    "measure": (PLAN.replace("accuracy", "acuracy"), "`measure` must be one of .* Did you mean 'accuracy'"),
    "option": (PLAN + "options: {samples: 3}", "accuracy takes at, precision, got `samples`"),
    "misspelt option": (PLAN.replace("accuracy", "gradient_flow") + "options: {sample: 3}", "Did you mean 'samples'"),
    "no plan": ("measure: accuracy", "must have a section `grid` or `random_search`, got measure"),
    "no mapping": ("- 1", "must be a mapping of names to values"),
    "no yaml": ("grid: [", "`plan` must be a YAML file that can be read"),
    "python": (PLAN.replace("{range: 3}", "range(3)"), r"grid: `seed` must be .* got 'range\(3\)'.* Write {range: 3}"),
    "python from": (PLAN.replace("depth: 3", "depth: range(2, 5)"), r"`depth` must be .* Write {range: \[2, 5\]}"),
    "one of several": (PLAN.replace("accuracy", "[accuracy, acuracy]"), "several of `measure` must be .* 'acuracy'"),
    "measure of numbers": (PLAN.replace("accuracy", "[1, 2]"), r"`measure` must be a name or a list of names, got \[1"),
    "option of none": (PLAN.replace("accuracy", "[training_loss, accuracy]") + "options: {samples: 3}",
                       "none of training_loss, accuracy takes `samples`"),
    "too late": (PLAN + "options: {at: {epochs: [0, 10]}}", "`at` must lie .* got epoch 10 for one with `epochs` 2"),
    "never trained": ("grid: {depth: 3}\nmeasure: gradient_flow\noptions: {at: {epochs: [0, 10]}}",
                      "got epoch 10 for one with `epochs` 0. Give the cells more `epochs`"),
    "update too late": (PLAN + "options: {at: {steps: [5]}}", "got update 5 for one with `epochs` 2 of 2 updates"),
    "moment": (PLAN + "options: {at: {epochs: [-3]}}", "`epochs` must be integers of at least -1"),
    "key twice": (PLAN.replace("  depth: 3", "  depth: 3\n  depth: 5"), "the key `depth` is there twice"),
    "section twice": (PLAN + "grid: {depth: 4}", "the key `grid` is there twice"),
    "range twice": (PLAN.replace("{range: 3}", "{range: 3, range: 4}"), "the key `range` is there twice"),
    "octal": (PLAN.replace("  depth: 3", "  depth: 010"), "the number 010 must be written without a leading 0"),
    "octal in a list": (PLAN.replace("[2, 4]", "[2, 0_7]"), "the number 0_7 must be written without a leading 0"),
    "other octal": (PLAN.replace("{range: 3}", "{range: 0x1f}"), "the number 0x1f must be written without"),
    "base 60": (PLAN.replace("  depth: 3", "  depth: 1:30"), "the number 1:30 must be written without"),
    "base 60 float": (PLAN.replace("1e-2, 0.1", "1:30.5, 0.1"), "the number 1:30.5 must be written without"),
    "no net": (PLAN.replace("[plain, highway]", "[]"), "grid: axis `net` must have at least one value, got none"),
    "no net to search": (PLAN.replace("n: 2, net: highway", "n: 2, net: []"), "random_search: `net` must have at"),
    "bomb": ("a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
        f"{name}: &{name} [{', '.join([f'*{below}'] * 10)}]\n" for below, name in itertools.pairwise("abcdefghi"))
        + "grid: {depth: *i}", "its anchors come to more than 1,000,000 entries"),
    "anchor in itself": ("grid: &a {depth: *a}", "its anchors come to more than 1,000,000 entries"),
    "nested": ("grid: {depth: " + "[" * 10_000 + "]" * 10_000 + "}", "`plan` must be a YAML file that can be read"),
    "long range": ("grid: {seed: {range: 10000000000000}}", "`range` must be of at most 1,000,000 numbers"),
    "many cells": ("grid: {seed: {range: 10000}, order_seed: {range: 10000}}", "must have at most 1,000,000 cells, got "
                   "100,000,000"),
    "many searched": ("random_search: {n: 10000000}", "must have at most 1,000,000 cells, got 10,000,000"),
    "list of words": (PLAN.replace("{range: 3}", "{range: abc}"), "`range` must be a whole number or two, got 'abc'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_plans_are_refused_before_anything_runs(here, case):
    """One line that names the place and what was probably meant, exit status 2, no store."""
    text, message = WRONG[case]
    (here / "plan.yaml").write_text(text)
    result = sweep()
    assert result.exit_code == 2
    with pytest.raises((ValueError, TypeError), match=message):
        read_plan(here / "plan.yaml")
    assert len(result.output.strip().splitlines()) == 1
    assert not (here / "results").exists()


@pytest.mark.parametrize("arguments, message", [
    (["--shard", "3/2"], "`shard` must be 'i/N'"), (["--engine", "dask"], "`engine` must be 'local'"),
    (["--device", "abacus"], "`device` must be 'auto' or"), (["--measure", "acuracy"], "Did you mean 'accuracy'")])
def test_wrong_options_are_refused(here, arguments, message):
    result = call("sweep", "plan.yaml", "--no-progress", *arguments)
    assert result.exit_code == 2 and message in result.output and len(result.output.strip().splitlines()) == 1
    assert not (here / "results").exists()


def test_a_missing_package_is_one_line(here, monkeypatch):
    """Of an engine that was asked for: the message names the extra."""
    monkeypatch.setitem(sys.modules, "distributed", None)  # as where it is not installed
    result = call("sweep", "plan.yaml", "--engine", "tcp://127.0.0.1:8786")
    assert result.exit_code == 2 and "pip install 'flowstudy[cluster]'" in result.output
    assert len(result.output.strip().splitlines()) == 1
    with pytest.raises(ModuleNotFoundError, match=r"^run: `engine` must be 'local' where Dask is not installed"):
        run(CELLS, engine="tcp://127.0.0.1:8786")


def test_an_error_that_is_no_refusal_keeps_its_traceback(here, monkeypatch):
    """Whatever its message begins with."""
    def broken(*_arguments, **_options):
        raise ValueError("run: a fault of the library's own")

    monkeypatch.setattr("flowstudy.cli.sweeps.run", broken)
    result = call("sweep", "plan.yaml")
    assert result.exit_code == 1 and isinstance(result.exception, ValueError)
    assert "a fault" not in result.output


def test_a_missing_plan_is_one_line(here):
    result = call("sweep", "plam.yaml")
    assert result.exit_code == 2 and "got plam.yaml" in result.output


def test_several_measurements_are_one_training(here):
    """By the file or by --measure, with ranges inside options; each has its line and its folder."""
    several = PLAN[:PLAN.index("random_search")].replace("accuracy", "[training_loss, gradient_flow]")
    (here / "plan.yaml").write_text(several + "options: {samples: 2, at: {epochs: {range: [1, 3]}}}")
    result = sweep()
    assert result.exit_code == 0, result.output
    lines = result.output.strip().splitlines()
    assert [line.partition(":")[0] for line in lines] == ["training_loss", "gradient_flow"]
    frames = [pd.read_parquet(line.rpartition(" ")[2]) for line in lines]
    assert len(frames[0]) == 12 * 3 and sorted(frames[1]["epoch"].unique()) == [1, 2]
    plan = read_plan(here / "plan.yaml", ["accuracy", "gradient_flow"])
    assert plan.measure == ["accuracy", "gradient_flow"]


def test_a_data_set_that_cannot_be_had_costs_its_own_cells(here, monkeypatch):
    """The plan's other data set is trained on; where there is no other, it is a mistake of the call."""
    monkeypatch.setenv("FLOWSTUDY_CACHE", str(here / "cache"))
    monkeypatch.delenv("FLOWSTUDY_DATA", raising=False)
    monkeypatch.setitem(datasets.MIRRORS, "mnist", ("http://127.0.0.1:1/",))
    (here / "plan.yaml").write_text("grid: {dataset: [mnist, digits], width: 4, depth: 2, epochs: 1}")
    result = sweep()
    said = [line for line in result.output.splitlines() if not line.startswith("Downloading data from")]
    assert result.exit_code == 1 and len(said) == 1 and "1 of 2 cells failed" in said[0], result.output
    assert "'mnist' must come from a mirror" in said[0] and "set FLOWSTUDY_DATA" in said[0]
    assert [len(list((here / "results").glob(kept))) for kept in ("*/*.parquet", "failed/*/*.json")] == [1, 1]
    with pytest.raises(FileNotFoundError, match=r"^load_dataset: 'mnist' must come from a mirror"):
        run(grid(dataset="mnist", width=4, depth=2), store=here / "results", device="cpu", progress=False)


# --- the example, and the schema --------------------------------------------------------------------------------------


def test_the_example_is_a_plan_and_stands_where_users_look(here):
    """In the README and in --help, word for word; 30 nets of a grid and 20 of a search."""
    (here / "plan.yaml").write_text(EXAMPLE)
    plan = read_plan(here / "plan.yaml")
    assert len(plan.cells) == 30 + 20 and plan.measure == ["training_loss", "gradient_flow"]
    assert EXAMPLE in (ROOT / "README.md").read_text(encoding="utf-8")
    shown = CliRunner().invoke(cli.app, ["sweep", "--help"], env={"COLUMNS": "80", "TERM": "dumb"}).output
    lines = [line[1:].rstrip() for line in shown.splitlines()]  # without the margin
    first = lines.index(EXAMPLE.splitlines()[0])  # copied from a screen of the usual width it is the same plan
    assert "\n".join(lines[first:]).startswith(EXAMPLE), shown


SCHEMA = Draft202012Validator(plan_schema())


def test_the_schema_takes_what_the_reader_takes():
    """It is a schema of its draft, which the command prints; the example and the plan above are of it."""
    Draft202012Validator.check_schema(SCHEMA.schema)
    assert json.loads(call("sweep", "--schema").output) == SCHEMA.schema
    for text in (EXAMPLE, PLAN):
        assert list(SCHEMA.iter_errors(yaml.safe_load(text))) == []


@pytest.mark.parametrize("case", sorted(WRONG.keys() - {
    # what a schema cannot know: which measurement takes which option, how long training is, what YAML is
    "option", "misspelt option", "option of none", "too late", "never trained", "update too late", "no yaml",
    # nor see, since YAML keeps the last of two keys and reads 010 as 8
    "bomb", "anchor in itself", "nested", "long range", "many cells", "many searched",
    "key twice", "section twice", "range twice", "octal", "octal in a list", "other octal", "base 60",
    "base 60 float"}))
def test_the_schema_refuses_what_the_reader_refuses(case):
    assert list(SCHEMA.iter_errors(yaml.safe_load(WRONG[case][0])))


def test_the_schema_refuses_options_that_no_measurement_takes():
    plan = {"grid": {"depth": 2}, "measure": "gradient_flow", "options": {"samples": 5}}
    assert SCHEMA.is_valid(plan) and not SCHEMA.is_valid(plan | {"options": {"sample_count": 5}})


@pytest.mark.parametrize("name", [field.name for field in fields(Cell)])
def test_the_schema_knows_each_field_and_the_type_of_its_default(name):
    """Alone and in a list; a word is none of a number."""
    default = getattr(Cell(net="highway"), name)
    for value in (default, [default]):
        assert SCHEMA.is_valid({"grid": {name: value}}), SCHEMA.schema["properties"]["grid"]
    assert not SCHEMA.is_valid({"grid": {name: "no such word"}})


# --- status ----------------------------------------------------------------------------------------------------------


def fails_at_seed_2(moment, data):
    if any(cell.seed == 2 for cell in moment.cells):
        raise ZeroDivisionError("bad")
    return training_loss(moment, data)


def test_status_tells_done_failed_and_missing(here, monkeypatch):
    """A shard is done, a cell of it failed, the rest is missing; exit status 1 where cells fail, tracebacks named."""
    monkeypatch.setitem(MEASUREMENTS, "accuracy", fails_at_seed_2)
    result = sweep("--shard", "1/2")
    assert result.exit_code == 1 and "cells failed, the first with `ZeroDivisionError: bad`" in result.output
    row = status("results").iloc[0]
    failed = len(list(Path("results").glob("failed/*/*.json")))
    assert failed == row["failed"] > 0 and row["done"] > 0
    assert row["done"] + row["failed"] + row["missing"] == row["cells"] == len(CELLS)
    assert row["seconds_left"] > 0
    shown = call("status", "results")
    assert shown.exit_code == 0 and f"tracebacks: results/failed/{row['table']}" in shown.output
    [plan] = json.loads(call("status", "results", "--json").stdout)["plans"]
    assert plan["done"] == row["done"] and plan["seconds_left"] == pytest.approx(row["seconds_left"])
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert sweep().exit_code == 0
    assert status("results")[["done", "failed", "missing", "seconds_left"]].iloc[0].tolist() == [len(CELLS), 0, 0, 0]
    assert "0:00:00" in call("status", "results").output


def test_time_left_is_cost_left_over_pace(tmp_path, monkeypatch):
    """Two workers of 10 s each, side by side for 5 s, did 4 cells of cost 10 in 15 s: 6 more take 22.5 s."""
    cells = grid(depth=10, seed=range(10))
    run(cells[:1], store=tmp_path, measure="gradient_flow", samples=1, device="cpu", progress=False)
    table = table_of("gradient_flow", {"samples": 1})
    for path in (tmp_path / table).glob("*.parquet"):
        path.unlink()
    plan = next((tmp_path / "plans").glob("*.json"))
    plan.write_bytes(sealed_json(unsealed_json(plan.read_bytes()) | {"cells": [{"seed": c.seed} for c in cells]}))
    assert pd.isna(status(tmp_path)["seconds_left"].iloc[0])
    for start, stop, end, left in ((0, 2, 100, 40), (2, 4, 105, 22.5), (4, 5, 900, 25)):
        moment = datetime.fromtimestamp(1e9 + end, UTC).isoformat(timespec="milliseconds")
        Store(tmp_path).append(table, cells[start:stop], pd.DataFrame({"place": range(stop - start)}),
                               {"seconds": 10.0, "finished": moment})
        assert status(tmp_path)["seconds_left"].iloc[0] == pytest.approx(left)
    monkeypatch.setattr(sys.modules["flowstudy.sweep.status"], "LATEST", 1)
    assert status(tmp_path)["seconds_left"].iloc[0] == pytest.approx(50)  # 5 at 10 s each: the last file's pace alone


@pytest.mark.parametrize("provenance", [{}, {"seconds": 10.0, "finished": "yesterday"}, {"seconds": 1.0, "finished": 3},
                                        {"seconds": "long", "finished": "2026-11-26T12:00:00+00:00"}])
def test_a_file_that_does_not_say_when_it_was_made_tells_no_pace(tmp_path, provenance):
    """The cells that it holds are done all the same, and the others tell how long the rest takes."""
    cells = grid(depth=10, seed=range(4))
    run(cells[:1], store=tmp_path, measure="gradient_flow", samples=1, device="cpu", progress=False)
    plan = next((tmp_path / "plans").glob("*.json"))
    plan.write_bytes(sealed_json(unsealed_json(plan.read_bytes()) | {"cells": [{"seed": c.seed} for c in cells]}))
    table = table_of("gradient_flow", {"samples": 1})
    Store(tmp_path).append(table, cells[1:2], pd.DataFrame({"place": [0]}), provenance)
    assert status(tmp_path)[["done", "missing"]].to_numpy().tolist() == [[2, 2]]
    assert status(tmp_path)["seconds_left"].iloc[0] >= 0
    assert call("status", tmp_path).exit_code == 0


def test_status_counts_the_codes_that_rows_come_from(tmp_path, monkeypatch):
    """Two that say theirs, one of an earlier version that says none; nothing is computed again for any of them."""
    cells = grid(seed=range(3), **TINY)
    for number in range(3):
        monkeypatch.setattr(tasks, "code_digest", lambda number=number: f"code {number}")
        run(cells[:number + 1], store=tmp_path, device="cpu", progress=False)
    table = table_of("training_loss", {})
    earlier = Store(tmp_path).path(cells[:1], table)
    earlier.unlink()
    Store(tmp_path).append(table, cells[:1], pd.DataFrame({"place": [0]}), {"seconds": 1.0, "finished": "2026-01-01"})
    monkeypatch.setitem(MEASUREMENTS, "training_loss", lambda *_: pytest.fail("computed again"))
    run(cells, store=tmp_path, device="cpu", progress=False)
    found = status(tmp_path)
    assert dict(zip(found["done"], found["codes"], strict=True)) == {1: 0, 2: 1, 3: 2}


@pytest.mark.parametrize("file, content, other", [
    ("measure/a.py", b"x = 2\n", True), ("nets/new.py", b"", True), ("sweep/looks/table.py", b"y\n", True),
    ("measure/a.py", b"x = 1\r\n", False), ("plots/b.py", b"z\n", False), ("sweep/engine.py", b"z\n", False)])
def test_a_code_is_the_sources_that_numbers_come_from(tmp_path, monkeypatch, file, content, other):
    """The same in another folder and with other line ends; another where a room that measures has changed."""
    monkeypatch.setattr(code, "HOUSE", tmp_path)
    (tmp_path / "measure").mkdir()
    (tmp_path / "measure" / "a.py").write_bytes(b"x = 1\n")
    before = code.code_digest.__wrapped__()
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_bytes(content)
    assert (code.code_digest.__wrapped__() != before) == other
    assert re.fullmatch("[0-9a-f]{16}", code.code_digest())


def test_busy_seconds_is_the_length_of_the_union():
    """Overlaps once, gaps not at all."""
    assert busy_seconds([(0.0, 2.0), (1.0, 3.0), (10.0, 11.0), (10.2, 10.4)]) == 4.0
    assert busy_seconds([]) == 0


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_status_changes_nothing_in_or_outside_a_store_from_someone_else(here):
    """Tables that lead out of the store, damage, words that a terminal would obey: told, not done, no file touched."""
    store, table = Path("store/inside"), "training_loss-0123456789abcdef"
    plan = {"measure": "training_loss", "options": {}, "table": table, "cells": [{}], "asked": "2026"}
    outside = ["../../outside", str((here / "outside").absolute()), "..", ".", "", "failed/../../../outside",
               f"{table}/../../../outside", f"{table}\n", table.upper(), "training_loss", None, 3, [table]]
    hostile = [plan | {"table": name} for name in outside] + [
        plan | {"options": []}, plan | {"asked": 3}, plan | {"measure": None}, plan | {"table": table + "\x1b[2J"},
        [], 3]
    for folder in (here / "outside", store / table, store / "plans"):
        folder.mkdir(parents=True)
    for folder in (here / "outside", store / table):
        (folder / "theirs.parquet").write_bytes(b"not a table")
    for i, one in enumerate(hostile):
        (store / "plans" / f"{i}.json").write_text(json.dumps(one))
    (store / "plans" / "deep.json").write_text("[" * 100_000)
    good = plan | {"measure": "\x1b[31mred", "options": {"\x1b]0;title\x07": "\u202eback", "\x9b2J": "\r"}}
    (store / "plans" / "\x1b[2Jgood.json").write_text(json.dumps(good))
    before = contents(here)
    with pytest.warns(UserWarning) as told:
        shown = call("status", store)
    assert contents(here) == before
    assert shown.exit_code == 0 and "\\x1b[31mred" in shown.output and "\\x1b[2Jgood" in shown.output
    words = [shown.output, *(str(warning.message) for warning in told)]
    assert all(c.isprintable() or c == "\n" for text in words for c in text)
    refused = {Path(word).stem for text in words[1:] if "is not a plan" in text
               for word in text.split() if ".json" in word}
    assert refused == {*map(str, range(len(hostile))), "deep"}
    assert any("theirs.parquet is not a table of flowstudy" in text and "; ignored," in text for text in words)


def test_status_of_a_folder_without_plans(here):
    result = call("status", "nothing")
    assert result.exit_code == 2 and "no plan has been run in nothing" in result.output
    assert not Path("nothing").exists()


def test_a_plan_that_cannot_be_read_is_left_out(here):
    """With a warning: a later version's, or half a file of another program's."""
    sweep()
    (here / "results" / "plans" / "later.json").write_text('{"cells": [{"future": 1}]}')
    with pytest.warns(UserWarning, match=r"later\.json is not a plan that this version"):
        assert len(status("results")) == 1
