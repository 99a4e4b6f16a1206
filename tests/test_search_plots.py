"""A random search beside the paper: intervals in closed form, panels that hold the runs, published numbers in place."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from flowstudy import plots, theory
from flowstudy.paper import best_net, best_settings, published
from flowstudy.plots.search import Z, wilson


def test_wilson_intervals_solve_their_equation():
    """Both ends e satisfy |share - e| = z sqrt(e (1 - e) / n); none of n goes up to z^2 / (n + z^2)."""
    successes, runs = np.array([0.0, 3.0, 10.0, 50.0]), np.array([10.0, 10.0, 10.0, 100.0])
    for ends in wilson(successes, runs):
        inside = (ends > 0) & (ends < 1)
        gap = np.abs(successes / runs - ends)
        assert_allclose(gap[inside], (Z * np.sqrt(ends * (1 - ends) / runs))[inside], rtol=1e-12)
    low, high = wilson(successes, runs)
    assert low[0] == 0 and high[0] == pytest.approx(Z**2 / (10 + Z**2)) and high[2] == 1


def search(dataset: str = "mnist") -> pd.DataFrame:
    """Three runs of each net at depths 10 and 50; the second highway run of depth 50 diverged."""
    rows = []
    for net in ("plain", "highway"):
        for depth in (10, 50):
            for run, final in enumerate([1e-4, 1e-2, 2.0]):
                died = (net, depth, run) == ("highway", 50, 1)
                common = {"cell": f"{net}{depth}{run}", "net": net, "depth": depth, "dataset": dataset, "epochs": 1,
                          "gate_bias": -2.0 - run if net == "highway" else np.nan, "activation": "tanh",
                          "init": "he_normal", "gain": np.nan, "width": 50, "learning_rate": 0.01 * (run + 1)}
                rows += [common | {"epoch": 0, "loss": 2.3}, common | {"epoch": 1, "loss": np.nan if died else final}]
    return pd.DataFrame(rows)


def test_panels_hold_the_runs():
    """A third of the runs trains; every highway run is a dot at its depth and bias, the diverged one a cross; both
    rules are drawn, for the depth's highway layers."""
    share, bias = plots.which_runs_train(search(), 1e-3).axes[:2]
    assert len(share.containers) == 2
    for bars in share.containers:
        assert_allclose(bars.lines[0].get_ydata(), 1 / 3)
    dots, crosses = bias.collections[:2]
    assert len(dots.get_offsets()) == 5 and len(crosses.get_offsets()) == 1
    assert crosses.get_offsets()[0][1] == -3
    assert sorted(dots.get_array().tolist()) == pytest.approx(sorted(np.log10([1e-4, 1e-4, 1e-2, 2.0, 2.0])))
    rate, whole = (dict(zip(*line.get_data(), strict=True)) for line in bias.lines)
    assert [rate[8], whole[8]] == pytest.approx([theory.suggest_gate_bias(7), theory.suggest_gate_bias(
        7, "whole net", weight_var=2.0, gate_weight_var=2.0)])


def test_each_activation_has_a_panel_of_its_own_runs():
    both = pd.concat([search(), search().assign(activation="relu", cell=lambda rows: rows["cell"] + "r")])
    _, relu, tanh = plots.which_runs_train(both, 1e-3).axes[:3]
    assert (relu.get_title(), tanh.get_title()) == ("highway runs, relu", "highway runs, tanh")
    assert [len(ax.collections[0].get_offsets()) for ax in (relu, tanh)] == [5, 5]


def test_published_numbers_stand_beside_ours():
    """On MNIST like beside like: best with best, mean of 3 with mean of 3, and no number where the tables have none, as
    on other data; a diverged run counts as chance."""
    found = published.figure_1_claims(search(), top=3).set_index("quantity")
    best, mean = "highway 50: best of 3 runs", "highway 50: mean of the best 3 of 3 runs"
    assert found.loc[[best, mean], "paper"].tolist() == [6.8e-6, 7.3e-6]
    assert found.loc[[best, mean], "ours"].tolist() == pytest.approx([1e-4, (1e-4 + 2.0 + np.log(10)) / 3])
    assert "mean of the best 3 of 100, 400 epochs; ours: 1 epochs, 3 runs" in found.loc[mean, "note"]
    two = published.figure_1_claims(search(), top=2).set_index("quantity")
    assert two.loc["plain 10: mean of the best 2 of 3 runs", "ours"] == pytest.approx((1e-4 + 1e-2) / 2)
    assert np.isnan(two.loc["plain 10: mean of the best 2 of 3 runs", "paper"])
    deep = published.figure_1_claims(search().replace({"depth": {50: 100}}), 3).set_index("quantity")
    assert deep.loc["best plain over best highway, depth 100", "ours"] == 1
    assert published.figure_1_claims(search("digits"), 3)["paper"].isna().all()
    for dataset in ("mnist", "digits"):
        words = [text.get_text() for text in plots.figure_1(search(dataset), top=2).axes[0].texts]
        assert any("authors" in text for text in words) == (dataset == "mnist")
    for top, column in ((3, "best_3"), (10, "best_10")):
        drawn = [list(line.get_ydata()) for line in plots.figure_1(search(), top=top).axes[0].lines]
        assert published.FIGURE_1.groupby("net")[column].apply(list)["highway"] in drawn


def test_the_deepest_net_stands_with_its_first_and_its_last_loss():
    """After all others, beside no number of the paper's; without it the claims are the same."""
    deepest = pd.DataFrame({"net": "highway", "depth": 900, "epoch": [0, 1, 2], "loss": [4.6052, 3.9, 3.25]})
    claims = published.figure_1_claims(search(), 3, deepest)
    last = claims.iloc[-1]
    assert (last["quantity"], last["ours"]) == ("highway 900: loss after 2 epochs", 3.25)
    assert np.isnan(last["paper"]) and last["note"].startswith("from 4.605: it learns")
    pd.testing.assert_frame_equal(claims.iloc[:-1], published.figure_1_claims(search(), 3))


def test_the_share_of_runs_that_train_is_of_all_runs():
    """A run that diverged has not trained, and one that ends at the bound has not either."""
    def shares(bound: float) -> dict[str, float]:
        claims = published.figure_1_claims(search(), 3, trains_below=bound)
        rows = claims[claims["quantity"].str.contains("share of 3 runs")]
        return dict(zip(rows["quantity"].str.split(":").str[0], rows["ours"], strict=True))

    kinds = ["plain 10", "plain 50", "highway 10", "highway 50"]
    assert shares(1e-2) == pytest.approx(dict.fromkeys(kinds, 1 / 3))
    assert shares(10.0) == pytest.approx(dict.fromkeys(kinds, 1.0) | {"highway 50": 2 / 3})


def test_the_best_settings_are_the_tables():
    """Each net and depth of figure 1 once; the cells have its setting, the width of its kind and its weights' law; the
    net of figures 2 to 4 is the one of 50 highway layers."""
    table = best_settings.BEST_SETTINGS
    assert table[["net", "depth"]].to_records(index=False).tolist() == (
        published.FIGURE_1[["net", "depth"]].to_records(index=False).tolist())
    cells = best_settings.best_settings([10, 50], seeds=2, epochs=3)
    assert [(cell.net, cell.depth, cell.seed) for cell in cells] == [
        (net, depth, seed) for net in ("plain", "highway") for depth in (10, 50) for seed in (0, 1)]
    plain, highway = cells[0], cells[-1]
    assert (plain.width, plain.activation, plain.init, plain.gate_bias) == (71, "relu", "he_uniform", None)
    assert (highway.width, highway.activation, highway.init, highway.gate_bias) == (50, "tanh", "lecun_uniform", -2.0)
    assert (plain.learning_rate, plain.momentum, plain.decay, plain.batch_size) == (0.11886, 0.98140, 0.98484, 20)
    one, = best_net.best_net(epochs=3, seed=1)
    assert one == highway


def test_the_authors_losses_stand_beside_medians_over_seeds():
    """On MNIST alone; a run that diverged counts as chance; the ratio of the text is of the deepest."""
    loss = search().replace({"depth": {50: 100}})
    found = best_settings.best_settings_claims(loss).set_index("quantity")
    assert found.loc["plain 10: loss by the authors' best setting", ["paper", "ours"]].tolist() == [6.6e-6, 1e-2]
    assert found.loc["highway 100: loss by the authors' best setting", "ours"] == 2.0  # of 1e-4, ln 10, 2
    assert found.loc["plain over highway, depth 100, the authors' best settings", "ours"] == 1e-2 / 2.0
    assert best_settings.best_settings_claims(search("digits"))["paper"].isna().all()
    assert len(best_settings.best_settings_claims(search())) == 4


@pytest.mark.parametrize("dataset", ["mnist", "digits"])
def test_training_by_the_best_settings_shows_where_the_authors_ended(dataset):
    """Every run is a line; on MNIST alone a triangle a depth stands at the right edge, at the tables' loss."""
    plain, highway = plots.best_settings(search(dataset)).axes
    for ax, net in ((plain, "plain"), (highway, "highway")):
        triangles = [line for line in ax.lines if line.get_marker() == "<"]
        assert len([line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_ls() != ":"]) == 6
        theirs = published.FIGURE_1.set_index(["net", "depth"])["best"][net]
        assert [line.get_ydata()[0] for line in triangles] == ([theirs[10], theirs[50]] if dataset == "mnist" else [])
        assert all(line.get_xdata()[0] == 1 and line.get_transform() == ax.get_yaxis_transform() for line in triangles)
