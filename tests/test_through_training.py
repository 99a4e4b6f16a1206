"""Spectra and slopes at moments of training are those of the nets at those moments; theory stands at the first."""

import numpy as np
import pandas as pd
import pytest

from flowstudy import grid, plots, run
from flowstudy.predictions import through_training
from flowstudy.train import RecordAt


def measured(rows: pd.DataFrame, statistic: str) -> dict[str, float]:
    return rows[rows["statistic"] == statistic].set_index("cell")["measured"].to_dict()


def test_statistics_are_the_nets_own(tmp_path):
    """At each epoch the condition number and the slope are those of the rows measured then; predictions at epoch 0."""
    cells = grid(net=["plain", "highway"], depth=6, width=8, init="glorot_normal", epochs=2, train_samples=60,
                 seed=range(2))
    frames = run(cells, measure=["jacobian_spectrum", "gradient_flow"], at=RecordAt(epochs=[0, 2]), samples=3,
                 store=tmp_path, progress=False)
    found = through_training(frames["jacobian_spectrum"], frames["gradient_flow"])
    assert found.groupby(["cell", "epoch", "statistic"]).size().unique() == [1]
    for epoch in (0, 2):
        now, spectra, flow = (rows[rows["epoch"] == epoch] for rows in (found, *frames.values()))
        by_sample = spectra.groupby(["cell", "sample"])["log_singular_value"]
        condition = ((by_sample.max() - by_sample.min()) / np.log(10)).groupby("cell").mean()
        assert measured(now, "log10_condition") == pytest.approx(condition.to_dict(), rel=1e-12)
        slopes = {cell: -np.polyfit(rows["layer"], 2 * np.log(10) * rows["log10_error_signal_norm"], 1)[0]
                  for cell, rows in flow.groupby("cell")}
        assert measured(now, "slope") == pytest.approx(slopes, rel=1e-9)
    predicted = found.query("statistic == 'log_mean_square'").groupby("epoch")["predicted"].count()
    assert predicted.to_dict() == {0: 4, 2: 0}
    figure = plots.spectra_through_training(found)
    assert [ax.get_title() for ax in figure.axes] == ["6 layers", "", ""]
    assert len(figure.axes[1].lines) == 2 * (2 + 1)  # of each kind a line a net and their median
