"""Summaries of a search: the ranking is that of a table worked by hand, and bad frames are refused."""

import numpy as np
import pandas as pd
import pytest

from flowstudy.sweep import best, grid, run, top

TOY = pd.DataFrame([
    # cell, net, depth, epoch, loss
    ("a", "plain", 10, 0, 2.3), ("a", "plain", 10, 1, 0.3),
    ("b", "plain", 10, 0, 2.3), ("b", "plain", 10, 1, np.nan),   # diverged
    ("c", "plain", 10, 0, 0.1), ("c", "plain", 10, 1, 0.2),      # its last value counts, not its lowest
    ("d", "plain", 20, 0, 2.3), ("d", "plain", 20, 1, np.inf),
    ("e", "highway", 10, 0, 2.3), ("e", "highway", 10, 1, 0.3), ("e", "highway", 10, 2, 0.5),  # longer than others
    ("f", "highway", 10, 0, 2.3), ("f", "highway", 10, 1, 0.5),  # a tie: the plan's order
    ("g", "plain", 10, 0, 2.3), ("g", "plain", 10, 1, np.nan),
], columns=["cell", "net", "depth", "epoch", "loss"])


def test_top_is_as_worked_by_hand():
    """By last loss, within net and depth; diverged last, in the plan's order, like ties."""
    ranked = top(TOY, 3)
    assert list(zip(ranked["cell"], ranked["net"], ranked["depth"], ranked["rank"], strict=True)) == [
        ("e", "highway", 10, 1), ("f", "highway", 10, 2),
        ("c", "plain", 10, 1), ("a", "plain", 10, 2), ("b", "plain", 10, 3), ("d", "plain", 20, 1)]
    assert list(ranked["epoch"]) == [2, 1, 1, 1, 1, 1]
    assert top(TOY, 9, by="depth")["cell"].tolist() == ["c", "a", "e", "f", "b", "g", "d"]


def test_largest_turns_the_ranking_around():
    """But diverged cells stay last."""
    assert top(TOY, 9, by=["depth"], largest=True)["cell"].tolist() == ["e", "f", "a", "c", "b", "g", "d"]


def test_best_of_a_sweep_is_the_minimum_of_its_final_losses(tmp_path):
    """On a real frame with a net that diverges: pandas' own minimum per net and depth, with the cell's fields."""
    plan = grid(net=["plain", "highway"], depth=[2, 3], activation="linear", learning_rate=[1e6, 0.01, 0.3], epochs=2,
                width=5, train_samples=20, batch_size=10)
    frame = run(plan, store=tmp_path, device="cpu", progress=False)
    final = frame[frame["epoch"] == 2]
    assert final["loss"].isna().any()
    winners = best(frame)
    expected = final.groupby(["net", "depth"])["loss"].min()
    assert winners.set_index(["net", "depth"])["loss"].to_dict() == expected.to_dict()
    assert {cell.key for cell in plan if cell.learning_rate != 1e6} > set(winners["cell"])
    assert top(frame, 3)["rank"].tolist() == [1, 2, 3] * 4


@pytest.mark.parametrize("frame, options, message", [
    (TOY, {"of": "accuracy"}, "`frame` must have a column `accuracy`, got cell, net"),
    (TOY, {"by": ["depht"]}, "`frame` must have a column `depht`"),
    (TOY, {"k": 0}, "`k` must be an integer of at least 1, got 0"),
    (TOY.drop(columns="epoch"), {}, "`of` must have one value a cell and epoch or step, got several of 'loss'"),
])
def test_frames_that_cannot_be_ranked(frame, options, message):
    with pytest.raises(ValueError, match=f"^top: {message}"):
        top(frame, **({"k": 1} | options))
