"""The store: what goes in comes out, a killed writer leaves nothing half-written, and damage is set aside."""

import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from pandas.testing import assert_frame_equal

from flowstudy.sweep import Cell, Store, grid
from flowstudy.sweep.cells import CELL_FIELDS

TABLE = "things"
PLAN = grid(net=["plain", "highway"], depth=[3, 5], seed=range(3))
DEAD = 2**22 + 1  # beyond the largest process number of Linux


def rows_of(cells: list[Cell], each: int = 4, seed: int = 0) -> pd.DataFrame:
    """Rows that a measurement could give: integers, and floats with the awkward ones among them."""
    values = np.random.default_rng(seed).standard_normal(len(cells) * each)
    values[:4] = [np.nan, np.inf, -np.inf, 5e-324]
    return pd.DataFrame({"cell": np.arange(len(cells)).repeat(each), "layer": np.tile(np.arange(each), len(cells)),
                         "value": values})


def assert_holds(frame: pd.DataFrame, cells: list[Cell], rows: pd.DataFrame) -> None:
    """The frame has the rows of these cells in their order, with every field of the cell, to the last bit."""
    assert list(frame.columns) == ["cell", *CELL_FIELDS, *rows.columns.drop("cell")]
    measured = list(rows.columns.drop("cell"))
    assert_frame_equal(frame[measured], rows[measured], check_exact=True)
    for name in CELL_FIELDS:
        expected = [getattr(cells[i], name) for i in rows["cell"]]
        assert [None if pd.isna(value) else value for value in frame[name]] == expected
    assert frame["cell"].tolist() == [cells[i].key for i in rows["cell"]]


# --- in and out ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", [
    PLAN, grid(seed=range(2)), grid(net="highway", gain=[0.5, None], train_samples=[9, None])],
    ids=["mixed", "plain", "optional"])
def test_round_trip_is_exact(tmp_path, plan):
    """Rows come back to the last bit, nan, infinities and denormals too; so do the cells' fields, None as missing."""
    store, rows = Store(tmp_path), rows_of(plan)
    assert store.missing(plan, TABLE) == plan
    store.append(TABLE, plan, rows, {"seconds": 1.5})
    assert store.missing(plan, TABLE) == []
    assert_holds(Store(tmp_path).load(plan, TABLE), plan, rows)
    assert Store(tmp_path).provenance(TABLE) == [{"seconds": 1.5}]


def test_files_from_before_a_field_are_read_with_its_default(tmp_path):
    """A store written before Cell had `bias_var` holds the same cells: they are found, and the column is there."""
    store, rows = Store(tmp_path), rows_of(PLAN)
    path = store.append(TABLE, PLAN, rows, {})
    written = pq.read_table(path)
    pq.write_table(written.drop_columns(["bias_var"]), path)
    assert store.missing(PLAN, TABLE) == []
    assert_holds(store.load(PLAN, TABLE), PLAN, rows)


def test_rows_come_in_the_order_of_the_plan(tmp_path):
    """Whatever was stored together and when, a plan's rows come in its own order; cells beside it stay away."""
    store, rows = Store(tmp_path), rows_of(PLAN)
    for some in (PLAN[8:], PLAN[:3], PLAN[3:8]):
        local = rows[rows["cell"].isin([PLAN.index(cell) for cell in some])]
        store.append(TABLE, some, local.assign(cell=local["cell"].map(lambda i, some=some: some.index(PLAN[i]))), {})
    order = [7, 2, 11, 0]
    parts = [rows[rows["cell"] == i].assign(cell=place) for place, i in enumerate(order)]
    expected = pd.concat(parts, ignore_index=True)
    assert_holds(store.load([PLAN[i] for i in order], TABLE), [PLAN[i] for i in order], expected)
    assert_holds(store.load(PLAN, TABLE), PLAN, rows)


def test_a_cell_stored_twice_is_read_once(tmp_path):
    """Two runs that overlap leave each cell's rows once in what is read."""
    store, rows = Store(tmp_path), rows_of(PLAN[:3])
    store.append(TABLE, PLAN[:3], rows, {})
    store.append(TABLE, PLAN[2:5], rows_of(PLAN[2:5], seed=1), {})
    assert len(store.load(PLAN[:5], TABLE)) == 5 * 4
    assert store.load(PLAN[:5], TABLE)["cell"].drop_duplicates().tolist() == [cell.key for cell in PLAN[:5]]


def test_tables_do_not_mix(tmp_path):
    """The same cells in two tables are two results; loading what was never stored is an error that says so."""
    store = Store(tmp_path)
    store.append("one", PLAN[:2], rows_of(PLAN[:2]), {})
    assert store.missing(PLAN[:2], "other") == PLAN[:2]
    store.append("other", PLAN[:2], rows_of(PLAN[:2], each=2), {})
    assert [len(store.load(PLAN[:2], table)) for table in ("one", "other")] == [8, 4]
    with pytest.raises(KeyError, match=r"Store\.load: 1 of 3 cells are not in .*Run them first"):
        store.load(PLAN[:3], "one")


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [
    lambda data: b"", lambda data: data[:len(data) // 2], lambda data: data[:-1], lambda data: b"not a table" * 100],
    ids=["empty", "half", "a byte short", "something else"])
def test_damaged_file_is_set_aside(tmp_path, damage):
    """A file that cannot be read counts as missing, with a warning; it is kept aside, and other files still count."""
    store = Store(tmp_path)
    path = store.append(TABLE, PLAN[:3], rows_of(PLAN[:3]), {})
    store.append(TABLE, PLAN[3:5], rows_of(PLAN[3:5]), {})
    path.write_bytes(damage(path.read_bytes()))
    damaged = path.read_bytes()
    with pytest.warns(UserWarning, match=r"Store: .*is not a table of flowstudy .*set aside as .*\.unreadable"):
        assert store.missing(PLAN[:5], TABLE) == PLAN[:3]
    assert path.with_name(path.name + ".unreadable").read_bytes() == damaged
    store.append(TABLE, PLAN[:3], rows_of(PLAN[:3]), {})
    assert_holds(store.load(PLAN[:3], TABLE), PLAN[:3], rows_of(PLAN[:3]))


def test_damaged_rows_are_not_returned(tmp_path):
    """A byte changed anywhere: the rows come back exact, or the file is set aside and its cells are missing."""
    store, rows = Store(tmp_path), rows_of(PLAN[:3])
    path = store.append(TABLE, PLAN[:3], rows, {})
    whole, caught = path.read_bytes(), 0
    for place in range(0, len(whole), 61):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1:])
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            try:
                assert_holds(store.load(PLAN[:3], TABLE), PLAN[:3], rows)
            except KeyError as error:
                assert "3 of 3 cells are not in" in str(error)
                assert "set aside" in str(seen[0].message)
                assert not path.exists()
                caught += 1
    assert caught > 10


def test_leftovers_of_the_dead_are_swept_and_others_stay(tmp_path):
    """An append removes temporary files of processes of this machine that are gone: not the living's, nor another's."""
    store = Store(tmp_path)
    folder = store.append(TABLE, PLAN[:1], rows_of(PLAN[:1]), {}).parent
    host = os.uname().nodename
    gone, living, elsewhere = (folder / f".abc.{place}.{pid}.tmp"
                               for place, pid in ((host, DEAD), (host, os.getppid()), (f"not-{host}", DEAD)))
    for path in (gone, living, elsewhere):
        path.write_bytes(b"half")
    store.append(TABLE, PLAN[1:2], rows_of(PLAN[1:2]), {})
    assert [path.exists() for path in (gone, living, elsewhere)] == [False, True, True]


def test_failed_append_leaves_nothing(tmp_path, monkeypatch):
    """When writing fails, the table is as before and no temporary file is left."""
    store = Store(tmp_path)
    store.append(TABLE, PLAN[:1], rows_of(PLAN[:1]), {})
    before = sorted(path.name for path in (tmp_path / TABLE).iterdir())

    def half(_table, path, **_options):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("flowstudy.sweep.store.pq.write_table", half)
    with pytest.raises(OSError, match="disk full"):
        store.append(TABLE, PLAN[1:2], rows_of(PLAN[1:2]), {})
    assert sorted(path.name for path in (tmp_path / TABLE).iterdir()) == before


def test_a_file_appears_whole_by_being_renamed(tmp_path, monkeypatch):
    """What is written bears a name that no reader looks at until it is whole: stopped before the rename, no file."""
    store = Store(tmp_path)

    def stop(written, _path):
        assert len(pq.read_table(written)) == 4
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        store.append(TABLE, PLAN[:1], rows_of(PLAN[:1]), {})
    assert list((tmp_path / TABLE).iterdir()) == []


WRITERS = textwrap.dedent("""
    import os, signal, sys, time
    from pathlib import Path
    import numpy as np, pandas as pd
    from flowstudy.sweep import Store, grid

    cells, each = grid(seed=range(10)), 50_000
    rows = pd.DataFrame({"cell": [0] * each, "value": np.random.default_rng(0).standard_normal(each)})

    def write_for_ever(store):
        while True:
            for i, cell in enumerate(cells):
                store.append("things", [cell], rows.assign(value=rows["value"] + i), {})

    for kill in range(8):
        folder = Path(sys.argv[1]) / str(kill)
        child = os.fork()
        if child == 0:
            write_for_ever(Store(folder))
        while not list(folder.glob("things/*.parquet")) or not list(folder.glob("things/.*.tmp")):
            time.sleep(1e-4)
        time.sleep(kill * 1e-3)  # the first are killed as they begin to write, the others anywhere
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
""")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_killed_writers_leave_only_whole_files(tmp_path):
    """Eight writers killed while writing: every visible file is whole, and what else they left is swept away."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", WRITERS, str(tmp_path)], check=True, timeout=60)
    assert list(tmp_path.glob(f"*/{TABLE}/.*.tmp")), "no writer was caught in the act: the test shows nothing"
    cells, values = grid(seed=range(10)), np.random.default_rng(0).standard_normal(50_000)
    for folder in tmp_path.iterdir():
        store = Store(folder)
        missing = store.missing(cells, TABLE)
        written = [cell for cell in cells if cell not in missing]
        assert written
        frame = store.load(written, TABLE)
        for cell in written:
            assert np.array_equal(frame["value"][frame["seed"] == cell.seed], values + cell.seed)
        store.append(TABLE, PLAN[:1], rows_of(PLAN[:1]), {})
        assert all(path.suffix == ".parquet" for path in (folder / TABLE).iterdir())
