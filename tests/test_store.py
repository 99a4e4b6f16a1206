"""The store: what goes in comes out, a killed writer leaves nothing half-written, and damage is set aside."""

import contextlib
import errno
import json
import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pandas.testing import assert_frame_equal

from flowstudy.seal import MARK
from flowstudy.sweep import Cell, Store, StoreError, grid
from flowstudy.sweep.cells import CELL_FIELDS
from flowstudy.sweep.store import store as tables
from flowstudy.sweep.store.store import KEPT, parquet_file

TABLE = "things"
PLAN = grid(net=["plain", "highway"], depth=[3, 5], seed=range(3))
DEAD = 2**22 + 1  # beyond the largest process number of Linux


def rows_of(cells: list[Cell], each: int = 4, seed: int = 0) -> pd.DataFrame:
    """Rows that a measurement could give: integers, and floats with the awkward ones among them."""
    values = np.random.default_rng(seed).standard_normal(len(cells) * each)
    values[:4] = [np.nan, np.inf, -np.inf, 5e-324]
    return pd.DataFrame({"place": np.arange(len(cells)).repeat(each), "layer": np.tile(np.arange(each), len(cells)),
                         "value": values})


def assert_holds(frame: pd.DataFrame, cells: list[Cell], rows: pd.DataFrame) -> None:
    """The frame has the rows of these cells in their order, with every field of the cell, to the last bit."""
    assert list(frame.columns) == ["cell", *rows.columns.drop("place"), *CELL_FIELDS]
    measured = list(rows.columns.drop("place"))
    assert_frame_equal(frame[measured], rows[measured], check_exact=True)
    for name in CELL_FIELDS:
        expected = [getattr(cells[i], name) for i in rows["place"]]
        assert [None if pd.isna(value) else value for value in frame[name]] == expected
    assert frame["cell"].tolist() == [cells[i].key for i in rows["place"]]


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
    pq.write_table(written.drop_columns(["bias_var"]), path, **KEPT)
    assert store.missing(PLAN, TABLE) == []
    assert_holds(store.load(PLAN, TABLE), PLAN, rows)


def test_rows_come_in_the_order_of_the_plan(tmp_path):
    """Whatever was stored together and when, a plan's rows come in its own order; cells beside it stay away."""
    store, rows = Store(tmp_path), rows_of(PLAN)
    for some in (PLAN[8:], PLAN[:3], PLAN[3:8]):
        local = rows[rows["place"].isin([PLAN.index(cell) for cell in some])]
        store.append(TABLE, some, local.assign(place=local["place"].map(lambda i, some=some: some.index(PLAN[i]))), {})
    order = [7, 2, 11, 0]
    parts = [rows[rows["place"] == i].assign(place=place) for place, i in enumerate(order)]
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
    with pytest.warns(UserWarning, match=r"Store: .*is not a table of flowstudy .*set aside as \..*\.unreadable"):
        assert store.missing(PLAN[:5], TABLE) == PLAN[:3]
    assert path.with_name(f".{path.name}.unreadable").read_bytes() == damaged
    assert len(pd.read_parquet(tmp_path / TABLE)) == 2 * 4
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


def damaged_bits(content: bytes, number: int) -> Iterator[tuple[int, bytes]]:
    """Each content differs from the whole in one bit; the last 600 bytes, where footers and directories end, are all
    there at one bit each."""
    rng = np.random.default_rng(0)
    ends = np.arange(max(0, len(content) - 600), len(content)) * 8 + rng.integers(8, size=min(600, len(content)))
    for bit in {*rng.integers(8 * len(content), size=number).tolist(), *ends[::max(1, 600 // number)].tolist()}:
        place = bit // 8
        yield bit, content[:place] + bytes([content[place] ^ 1 << bit % 8]) + content[place + 1:]


def bits_read_back(store: Store, path: Path, number: int) -> tuple[list[int], list[int]]:
    """Bits of the table's file whose change is found, and those that change nothing that is read."""
    whole, found, harmless = path.read_bytes(), [], []
    expected = store.load(PLAN[:3], TABLE)
    for bit, content in damaged_bits(whole, number):
        path.write_bytes(content)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            missing = Store(store.root).missing(PLAN[:3], TABLE)
        if missing:
            assert missing == PLAN[:3] and "set aside" in str(seen[0].message) and not path.exists()
            found.append(bit)
        else:
            assert_frame_equal(Store(store.root).load(PLAN[:3], TABLE), expected, check_exact=True)
            harmless.append(bit)
    return found, harmless


@pytest.mark.parametrize("number", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_changed_bit_of_a_table_is_found(tmp_path, number):
    """One bit anywhere, the schema and the names of columns too: the file is set aside before a row is read.

    The only bits that may pass are those of the words before the digest, behind which the table is what it was.
    """
    store = Store(tmp_path)
    path = store.append(TABLE, PLAN[:3], rows_of(PLAN[:3]), {"seconds": 1.0})
    whole = path.read_bytes()
    words = whole.index(MARK)
    found, harmless = bits_read_back(store, path, number)
    assert len(found) >= number and all(words <= bit // 8 < words + len(MARK) for bit in harmless)
    assert len(pq.ParquetFile(pa.BufferReader(whole)).read()) == 12  # for all other readers it is plain Parquet


def test_a_table_from_before_digests_is_read(tmp_path):
    """Its rows and its file stay; where its description for pandas is damaged it is set aside, and no run ends."""
    store, rows = Store(tmp_path), rows_of(PLAN[:3])
    path = store.append(TABLE, PLAN[:3], rows, {})
    written = pq.read_table(path)
    pq.write_table(written, path, **KEPT)
    before = path.read_bytes()
    assert MARK not in before
    assert_holds(Store(tmp_path).load(PLAN[:3], TABLE), PLAN[:3], rows)
    assert path.read_bytes() == before
    metadata = written.schema.metadata
    pq.write_table(written.replace_schema_metadata(metadata | {b"pandas": metadata[b"pandas"][1:]}), path)
    with pytest.warns(UserWarning, match="set aside as"):
        assert Store(tmp_path).missing(PLAN[:3], TABLE) == PLAN[:3]


def test_leftovers_of_the_dead_are_swept_and_others_stay(tmp_path):
    """An append removes temporary files of processes of this machine that are gone: not the living's, nor another's."""
    store = Store(tmp_path)
    folder = store.append(TABLE, PLAN[:1], rows_of(PLAN[:1]), {}).parent
    host = os.uname().nodename
    gone, living, elsewhere = (folder / f".abc.{place}.{pid}.tmp"
                               for place, pid in ((host, DEAD), (host, os.getppid()), (f"not-{host}", DEAD)))
    for path in (gone, living, elsewhere):
        path.write_bytes(b"half")
    Store(tmp_path).append(TABLE, PLAN[1:2], rows_of(PLAN[1:2]), {})
    assert [path.exists() for path in (gone, living, elsewhere)] == [False, True, True]


@contextlib.contextmanager
def tiny_disk(folder: Path) -> Iterator[None]:
    """A file system of 64 KB, where this user may mount one."""
    folder.mkdir()
    if not hasattr(os, "geteuid") or os.geteuid() or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], capture_output=True).returncode:
        pytest.skip("no permission to mount a small file system")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_full_disk(tmp_path):
    """On a full disk the error says so, nothing of what is stored is lost, and no temporary file takes its space."""
    with tiny_disk(tmp_path / "disk"):
        store, rows = Store(tmp_path / "disk"), rows_of(PLAN[:1])
        store.append(TABLE, PLAN[:1], rows, {})
        before = sorted(path.name for path in (store.root / TABLE).iterdir())
        for _ in range(2):
            with pytest.raises(StoreError, match=r"Store: `store` must have space .*No space left.* free some space"):
                store.append(TABLE, PLAN[1:2], rows_of(PLAN[1:2], each=10_000), {})
        assert sorted(path.name for path in (store.root / TABLE).iterdir()) == before
        assert_holds(store.load(PLAN[:1], TABLE), PLAN[:1], rows)


LIMITED = textwrap.dedent("""
    import resource, sys
    import numpy as np, pandas as pd
    from flowstudy.sweep import Store, StoreError, grid
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        Store(sys.argv[1]).append("things", grid(), pd.DataFrame({"place": 0, "x": np.random.rand(50_000)}), {})
    except StoreError as error:
        sys.exit(f"{error.errno} {error}")
""")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no limits on the size of files")
def test_file_larger_than_allowed(tmp_path):
    """The system stops the writing half-way, at 20 KB a file: the same error, and nothing is left."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", LIMITED, str(tmp_path)], capture_output=True,
                          text=True)
    assert done.returncode == 1 and f"{errno.EFBIG} " in done.stderr and "`store` must have space" in done.stderr
    assert list((tmp_path / TABLE).iterdir()) == []


@pytest.mark.parametrize("number, rule", [(errno.ENOSPC, "have space for the results"), (errno.EIO, "take the results"),
                                          (errno.EROFS, "be a folder that can be written to")])
def test_failed_append_leaves_nothing(tmp_path, monkeypatch, number, rule):
    """When writing fails, for whatever reason, the table is as before and no temporary file is left."""
    store = Store(tmp_path)
    store.append(TABLE, PLAN[:1], rows_of(PLAN[:1]), {})
    before = sorted(path.name for path in (tmp_path / TABLE).iterdir())

    def fail(_file):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("flowstudy.sweep.store.files.os.fsync", fail)
    with pytest.raises(StoreError, match=rule) as caught:
        store.append(TABLE, PLAN[1:2], rows_of(PLAN[1:2]), {})
    assert caught.value.errno == number
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


def with_footer(path: Path, footer: dict | None) -> bytes:
    """The file again with another footer; None is none."""
    table = pq.read_table(path)
    metadata = {key: value for key, value in table.schema.metadata.items() if key != b"flowstudy"}
    pq.write_table(table.replace_schema_metadata(
        metadata | ({} if footer is None else {b"flowstudy": json.dumps(footer).encode()})), path)
    return path.read_bytes()


@pytest.mark.parametrize("footer", [None, {}, {"schema": "flowstudy-0", "cells": []}, {"schema": "theirs", "cells": []},
                                    {"schema": "flowstudy-1", "cells": [1]}, {"schema": "flowstudy-1"}, []],
                         ids=["none", "empty", "older", "foreign", "wrong cells", "no cells", "no mapping"])
def test_foreign_file_is_set_aside(tmp_path, footer):
    """Parquet that is not ours, or says nothing of use: set aside byte by byte, with what was set aside before."""
    store = Store(tmp_path)
    for turn in ("", ".2"):
        path = store.append(TABLE, PLAN[:1], rows_of(PLAN[:1]), {})
        foreign = with_footer(path, footer)
        with pytest.warns(UserWarning, match="is not a table of flowstudy"):
            assert store.missing(PLAN[:1], TABLE) == PLAN[:1]
        assert path.with_name(f".{path.name}{turn}.unreadable").read_bytes() == foreign


def test_file_of_a_later_version_is_left_alone(tmp_path):
    """It is not damaged: it stays, byte by byte, under its name, while this version computes its cells again."""
    store = Store(tmp_path)
    path = store.append(TABLE, PLAN[:1], rows_of(PLAN[:1]), {})
    path = path.rename(path.with_name("later.parquet"))
    later = with_footer(path, {"schema": "flowstudy-2", "cells": {"another": "form"}})
    with pytest.warns(UserWarning, match=r"is left alone: its schema is flowstudy-2, .* update flowstudy"):
        assert store.missing(PLAN[:1], TABLE) == PLAN[:1]
    store.append(TABLE, PLAN[:1], rows_of(PLAN[:1]), {})
    assert_holds(store.load(PLAN[:1], TABLE), PLAN[:1], rows_of(PLAN[:1]))  # and no second warning
    assert path.read_bytes() == later


def test_damaged_file_that_cannot_be_moved_is_ignored(tmp_path, monkeypatch):
    """In a folder that cannot be written to, damage is told once and read around."""
    store = Store(tmp_path)
    path = store.append(TABLE, PLAN[:1], rows_of(PLAN[:1]), {})
    store.append(TABLE, PLAN[1:2], rows_of(PLAN[1:2]), {})
    path.write_bytes(b"damage")
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(errno.EROFS, "read-only")))
    with pytest.warns(UserWarning, match="ignored, as it cannot be moved"):
        assert store.missing(PLAN[:2], TABLE) == PLAN[:1]
    assert_holds(store.load(PLAN[1:2], TABLE), PLAN[1:2], rows_of(PLAN[1:2]))
    assert path.read_bytes() == b"damage"


def test_damage_that_its_time_does_not_show_is_read_once_where_it_cannot_be_moved(tmp_path, monkeypatch):
    """A footer that was read before the file was damaged, at the same time and size: the rows are missing, and the
    store does not look for ever."""
    store = Store(tmp_path)
    path = store.append(TABLE, PLAN[:1], rows_of(PLAN[:1]), {})
    assert store.missing(PLAN[:1], TABLE) == []
    there, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(there.st_atime_ns, there.st_mtime_ns))
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(errno.EROFS, "read-only")))
    with pytest.warns(UserWarning, match="ignored, as it cannot be moved"), pytest.raises(KeyError, match="Run them"):
        store.load(PLAN[:1], TABLE)


# --- other readers, other writers ------------------------------------------------------------------------------------


def test_pandas_and_duckdb_read_a_table_as_it_is(tmp_path):
    """A table is a folder of plain Parquet: both see every row once, whatever else the store keeps there."""
    duckdb = pytest.importorskip("duckdb", reason="DuckDB is not installed: `make test` installs it")
    store = Store(tmp_path)
    for some in (PLAN[:3], PLAN[3:]):
        store.append(TABLE, some, rows_of(some), {})
    (tmp_path / TABLE / ".half.host.1.tmp").write_bytes(b"half")
    (tmp_path / TABLE / ".old.parquet.unreadable").write_bytes(b"damage")
    expected = store.load(PLAN, TABLE)[["cell", "layer", "value"]].sort_values(["cell", "layer"], ignore_index=True)
    by_pandas = pd.read_parquet(tmp_path / TABLE)[list(expected)]
    by_duckdb = duckdb.sql(f"select cell, layer, value from '{tmp_path / TABLE}/*.parquet'").df()
    for frame in (by_pandas, by_duckdb):
        frame = frame.sort_values(["cell", "layer"], ignore_index=True).astype({"cell": expected["cell"].dtype})
        assert_frame_equal(frame, expected, check_exact=True)


TOGETHER = textwrap.dedent("""
    import sys
    import pandas as pd
    from flowstudy.sweep import Store, grid
    cells, size = grid(seed=range(60)), int(sys.argv[2])
    store = Store(sys.argv[1])
    for start in range(0, 60, size):
        some = cells[start:start + size]
        store.append("things", some, pd.DataFrame({"place": range(len(some)), "x": [c.seed for c in some]}), {})
        assert not store.missing(some, "things")
    print(len(store.load(cells, "things")))
""")


def test_two_processes_neither_lose_nor_double_rows(tmp_path):
    """The same cells in groups of another size, at the same time: each is in the frame, once."""
    both = [subprocess.Popen([sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", TOGETHER,
                              str(tmp_path), size], stdout=subprocess.PIPE, text=True) for size in ("1", "7")]
    assert [process.communicate(timeout=600)[0].strip() for process in both] == ["60", "60"]
    assert Store(tmp_path).load(grid(seed=range(60)), TABLE)["x"].tolist() == list(range(60))


def test_footers_are_read_once(tmp_path, monkeypatch):
    """Asking again what is stored opens no file that is as it was, and sees every change."""
    store = Store(tmp_path)
    path = store.append(TABLE, PLAN[:3], rows_of(PLAN[:3]), {})
    assert store.missing(PLAN, TABLE) == PLAN[3:]
    opened = []
    monkeypatch.setattr(tables, "parquet_file", lambda path: opened.append(path) or parquet_file(path))
    Store(tmp_path).append(TABLE, PLAN[3:5], rows_of(PLAN[3:5]), {})
    assert store.missing(PLAN, TABLE) == store.missing(PLAN, TABLE) == PLAN[5:]
    assert len(opened) == 1
    path.unlink()
    assert store.missing(PLAN, TABLE) == [*PLAN[:3], *PLAN[5:]]


# --- killed writers --------------------------------------------------------------------------------------------------


WRITERS = textwrap.dedent("""
    import os, signal, sys, time
    from pathlib import Path
    import numpy as np, pandas as pd
    from flowstudy.sweep import Store, grid

    cells, each = grid(seed=range(10)), 50_000
    rows = pd.DataFrame({"place": [0] * each, "value": np.random.default_rng(0).standard_normal(each)})

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


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_killed_writers_leave_only_whole_files(tmp_path):
    """Eight writers killed while writing: every visible file is whole, and what else they left is swept away."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", WRITERS, str(tmp_path)], check=True, timeout=600)
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
        Store(folder).append(TABLE, PLAN[:1], rows_of(PLAN[:1]), {})
        assert all(path.suffix == ".parquet" for path in (folder / TABLE).iterdir())
