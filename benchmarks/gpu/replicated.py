"""Figure 1 and table 1 as they were trained on the GPU, beside the paper's numbers: records that REPLICATION.md is
made of."""

import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from flowstudy import plots
from flowstudy.figures.replication import write_record, write_report
from flowstudy.paper.conv_nets import conv_table
from flowstudy.paper.published import figure_1_claims
from flowstudy.sweep import Cell, Store
from flowstudy.sweep.plan import table_of

from .record import STORE, records_in
from .searches import FIGURE, SEARCHES, parameters, plan
from .table_1 import CURVES, TABLE_1
from .table_1 import STUDY as CONV_STUDY

STUDY, TOP = "loss_vs_depth", 10
SETTING = ["net", "depth", "width", "seed", "activation", "gate_bias", "learning_rate", "momentum", "decay", "epoch"]


def replicate(folder: Path, root: Path) -> str:
    """Write the record of the groups that ended, and REPLICATION.md; in words, what was done.

    Args:
        folder: of `--out`.
        root: of the repository, or of another folder that is to hold them.
    """
    records = records_in(folder)
    ended = [row for row in records["parts"].get(SEARCHES, {"rows": []})["rows"]
             if row["epochs"] and row["group"].startswith(FIGURE)]
    if not ended or not (folder / STORE).exists():
        return f"{folder} holds no group of figure 1 that ended: no record."
    groups, epochs = plan(records["profile"]), {row["group"]: row["epochs"] for row in ended}
    cells = [replace(cell, epochs=epochs[name]) for name in epochs for cell in groups[name]]
    with unpacked(folder / STORE) as results:
        loss, made = loss_and_provenance(cells, Store(results))
    last = max(datetime.fromisoformat(one["finished"]) for one in made).astimezone(UTC)
    seconds = {row["group"]: row["taken [s]"] for row in ended}  # its kinds of nets train side by side
    about = about_run(records, STUDY, sum(seconds.values()), last, parameters_of(cells))
    below = parameters(records["profile"], STUDY).get("trains_below")
    write_record(root, about, figure_1_claims(loss, TOP, trains_below=below))
    kept = root / "replication" / records["profile"]
    kept_rows(loss).to_csv(kept / "training_loss.csv", index=False)
    keep_picture(kept, STUDY, "figure_1", plots.figure_1(loss, TOP))
    write_report(root)
    return f"{len(epochs)} groups of figure 1, {len(cells)} nets: {root / 'REPLICATION.md'}"


def replicate_table_1(folder: Path, root: Path) -> str:
    """Write the record of the convolutional nets, and REPLICATION.md; in words, what was done."""
    records = records_in(folder)
    ended = [row for row in records["parts"].get(TABLE_1, {"rows": []})["rows"] if row["epochs"]]
    if not ended or not (folder / STORE).exists():
        return f"{folder} holds no convolutional net that ended: no record."
    with unpacked(folder / STORE) as results:
        frame = pd.read_csv(results / CURVES)
    finished = datetime.fromtimestamp((folder / STORE).stat().st_mtime, UTC)
    epochs = frame.groupby("block", sort=False)["epoch"].max()
    about = about_run(records, CONV_STUDY, sum(row["taken [s]"] for row in ended), finished,
                      parameters(records["profile"], CONV_STUDY) | {"epochs": int(epochs.max())})
    write_record(root, about, conv_table(frame))
    kept = root / "replication" / records["profile"]
    frame.to_csv(kept / CURVES, index=False, float_format="%.6g")
    keep_picture(kept, CONV_STUDY, "training", plots.conv_training(frame))
    write_report(root)
    return f"{len(ended)} convolutional nets: {root / 'REPLICATION.md'}"


def about_run(records: dict, study: str, seconds: float, finished: datetime, parameters: dict[str, object]) -> dict:
    """What `write_record` says of where and how the rows were computed."""
    machine = {row["what"]: row["value"] for row in records["parts"]["machine"]["rows"]}
    return {"study": study, "profile": records["profile"], "seconds": round(seconds, 1),
            "finished": f"{finished:%Y-%m-%d %H:%M} UTC", "device": f"one {machine['device']}",
            "versions": {"torch": machine["torch"]}, "parameters": parameters}


def keep_picture(kept: Path, study: str, name: str, figure: Figure) -> None:
    with tempfile.TemporaryDirectory() as drawn:
        plots.save({name: figure}, {}, drawn)
        shutil.copy(Path(drawn, f"{name}.svg"), kept / f"{study}_{name}.svg")


def loss_and_provenance(cells: list[Cell], store: Store) -> tuple[pd.DataFrame, list[dict]]:
    """What `run(cells, measure="training_loss")` returns, and how each of the groups was computed."""
    table, keys = table_of("training_loss", {}), {cell.key for cell in cells}
    return store.load(cells, table), [footer["provenance"] for footer in store.footers(table)
                                      if not keys.isdisjoint(footer["cells"])]


def kept_rows(loss: pd.DataFrame) -> pd.DataFrame:
    """The last loss of every run, and the whole curves of the best of each net and depth."""
    last = loss[loss["epoch"] == loss.groupby(["net", "depth"])["epoch"].transform("max")]
    best = last.sort_values("loss").groupby(["net", "depth"]).head(TOP)
    own = ["net", "depth", "seed"]
    curves = loss.merge(best[own], on=own)
    rows = pd.concat([curves, last]).drop_duplicates([*own, "epoch"]).sort_values([*own, "epoch"])
    return rows[SETTING].assign(loss=rows["loss"].map("{:.5g}".format))


def parameters_of(cells: list[Cell]) -> dict[str, object]:
    """Those of the study's notebook that these cells show."""
    epochs = sorted({cell.epochs for cell in cells})
    return {"depths": sorted({cell.depth for cell in cells}), "runs": len({cell.seed for cell in cells}), "top": TOP,
            "epochs": epochs[0] if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}",
            "batch_size": cells[0].batch_size, "dataset": cells[0].dataset, "train_samples": cells[0].train_samples}


@contextmanager
def unpacked(store: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder, tarfile.open(store) as archive:
        archive.extractall(folder, filter="data")
        yield Path(folder) / "results"
