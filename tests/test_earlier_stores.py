"""A store that 0.1.0 wrote is read as it is: nothing computed again, nothing written, its plans told.

`data/store_0.1.0` grew as a user's would: its first files are by the code of the first days (97ba657), which kept no
plans and whose cells had no bias variance; the rest, plans among it, by 53c878b, still 0.1.0.  Of the table
gradient_flow the later file is taken away, as if that run had been killed before it.
"""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from flowstudy.sweep import Store, engine, grid, run
from flowstudy.sweep.cells import CELL_FIELDS
from flowstudy.sweep.status import status

WRITTEN = Path(__file__).parent / "data" / "store_0.1.0"
SMALL = {"width": 3, "train_samples": 30, "batch_size": 15, "epochs": 1}
EARLY = grid(net="plain", depth=2, seed=[0, 1], **SMALL)
LATER = grid(net="highway", depth=3, gain=0.5, gate_bias=-1.0, **SMALL)


@pytest.fixture
def store(tmp_path) -> Path:
    return shutil.copytree(WRITTEN, tmp_path / "store")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("measure, options, cells", [
    ("training_loss", {}, EARLY + LATER), ("training_loss", {"precision": "float32"}, LATER + EARLY[:1]),
    ("gradient_flow", {"samples": 2}, EARLY)])
def test_what_0_1_0_stored_is_read_and_not_computed(store, monkeypatch, measure, options, cells):
    """The frame is what the files say, cell by cell, beside every field that a cell has today; no byte changes."""
    monkeypatch.setattr(engine, "execute", lambda *_: pytest.fail("something was computed"))
    before = contents(store)
    frame = run(cells, measure=measure, store=store, progress=False, **options)
    assert contents(store) == before == contents(WRITTEN)
    assert frame["cell"].drop_duplicates().tolist() == [cell.key for cell in cells]
    files = [pd.read_parquet(path) for path in sorted(WRITTEN.glob(f"{measure}-*/*.parquet"))]
    for cell in cells:
        mine = frame[frame["cell"] == cell.key].reset_index(drop=True)
        (written,) = [rows for rows in (file[file["cell"] == cell.key] for file in files) if len(rows)]
        measured = [name for name in written.columns if name not in ("cell", *CELL_FIELDS)]
        assert_frame_equal(mine[measured], written[measured].reset_index(drop=True), check_exact=True)
        for name in CELL_FIELDS:
            assert [None if pd.isna(value) else value for value in mine[name].unique()] == [getattr(cell, name)]


def test_its_plans_are_told_and_gone_on_with(store):
    """Of the plan that was killed the highway cell is missing: it alone is computed."""
    told = status(store).set_index("measure")
    assert told.loc["training_loss", ["cells", "done", "missing"]].tolist() == [3, 3, 0]
    assert told.loc["gradient_flow", ["cells", "done", "missing"]].tolist() == [3, 2, 1]
    frame = run(EARLY + LATER, measure="gradient_flow", samples=2, store=store, device="cpu", progress=False)
    assert frame["cell"].nunique() == 3
    by_file = [footer["cells"] for footer in Store(store).footers(told.loc["gradient_flow", "table"])]
    assert sorted(by_file) == sorted([[cell.key for cell in EARLY], [LATER[0].key]])
    assert status(store)["missing"].tolist() == [0, 0] and len(status(store)) == 2
