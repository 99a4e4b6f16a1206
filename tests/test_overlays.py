"""Theory beside measured frames: predictions of known nets, and the distance in standard errors."""

import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import polygamma

import flowstudy as fs
from flowstudy import plots, theory
from flowstudy.plots.message import caption_of, message_of, number
from flowstudy.predictions import backward_slopes, layer_gains, weight_var
from flowstudy.predictions.gradients import (
    exact_step,
    mean_steps,
    norm_law,
    predicted_slope,
    slope_weights,
    with_predicted_norms,
    with_predicted_slopes,
)
from flowstudy.predictions.layers import mode_theory
from flowstudy.predictions.spectra import (
    STATISTICS,
    spectrum_statistics,
    statistics_law,
    with_predicted_spectra,
    with_predicted_statistics,
)

LARGEST_Z = 4.5
NATS = 2 * math.log(10)
ERROR, WEIGHT = "log10_error_signal_norm", "log10_weight_gradient_norm"
NETS = 40  # of each kind
MANY = dict(net="plain", width=16, seed=range(NETS))
PLAN = [
    *fs.grid(activation="relu", init=["he_normal", "glorot_normal", "he_uniform"], depth=[5, 20], **MANY),
    *fs.grid(activation="relu", init="orthogonal", gain=2**0.5, depth=[5, 20], **MANY),
    *fs.grid(activation="linear", init=["lecun_normal", "orthogonal"], depth=[5, 20], **MANY),
]
WIDE = [
    *fs.grid(net="plain", activation="tanh", init="orthogonal", gain=0.9, depth=20, width=100, seed=range(6)),
    *fs.grid(net="highway", activation=["tanh", "relu"], init="glorot_normal", gate_bias=[-3.0, -40.0], depth=20,
             width=100, seed=range(6)),
]
KIND = ["net", "activation", "init", "gate_bias", "depth"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    return lambda cells, **options: fs.run(cells, store=store, device="cpu", progress=False, **options)


@pytest.fixture(scope="module")
def flow(run) -> pd.DataFrame:
    return run(PLAN, measure="gradient_flow", samples=1)


@pytest.fixture(scope="module")
def wide(run) -> pd.DataFrame:
    return run(WIDE, measure="gradient_flow", samples=1)


# --- gradients -------------------------------------------------------------------------------------------------------


def test_slopes_of_narrow_nets_follow_the_finite_width_law(flow):
    """Mean and spread of width-16 nets' slopes: |z| < 4.5, and the limit of infinite width is off for ReLU.

    The variance's z has the normal law's sqrt(2 / nets) for standard error.
    """
    slopes = with_predicted_slopes(backward_slopes(flow), flow)
    assert len(slopes) == len(PLAN) and np.abs(slopes["z"]).max() < LARGEST_Z
    for (_, activation, init, _, depth), nets in slopes.groupby(KIND, dropna=False):
        std = nets["predicted_std"].iloc[0]
        if std > 1e-9:
            assert abs(nets["slope"].var() / std**2 - 1) < LARGEST_Z * math.sqrt(2 / len(nets))
        if activation == "relu" and depth == 20 and init != "orthogonal":
            assert nets["predicted"].iloc[0] - nets["limit"].iloc[0] == pytest.approx(-0.176397324)  # n = 16
            assert (nets["slope"].mean() - nets["limit"].iloc[0]) < -LARGEST_Z * nets["slope"].sem()


def test_slopes_of_tanh_nets_follow_the_first_order_in_width(run):
    """Width 40: |z| < 4.5, where the limit is off by more; the second order, below 6 / width^2, is allowed for."""
    tanh = run(fs.grid(net="plain", activation="tanh", init=["he_normal", "lecun_normal", "orthogonal"], depth=60,
                       width=40, seed=range(40)), measure="gradient_flow", samples=1)
    slopes = with_predicted_slopes(backward_slopes(tanh), tanh)
    for init, nets in slopes.groupby("init"):
        gap, error = nets["slope"].mean() - nets["predicted"].iloc[0], nets["slope"].sem()
        assert abs(gap) < LARGEST_Z * error + 6 / 40**2
        if init != "orthogonal":
            assert nets["slope"].mean() - nets["limit"].iloc[0] < -LARGEST_Z * error
    rows = with_predicted_norms(tanh)
    assert set(rows["law"]) == {"first order in 1 / width"}
    first = rows[rows["layer"] == 1].groupby("init")
    gap, error = first.apply(lambda nets: (nets[ERROR] - nets["predicted"]).agg(["mean", "sem"])).T.to_numpy() * NATS
    assert np.all(np.abs(gap) < LARGEST_Z * error + 59 * 6 / 40**2)


def test_slopes_of_a_batch_are_held_to_the_limit_of_infinite_width(run):
    """No finite-width law is claimed for several samples at once: He ReLU 0, Glorot ReLU ln 1/2, sample errors."""
    batch = run(PLAN[:5 * NETS], measure="gradient_flow", samples=3)
    slopes = with_predicted_slopes(backward_slopes(batch), batch)
    assert slopes["predicted_std"].isna().all() and (slopes["predicted"] == slopes["limit"]).all()
    predicted = slopes.groupby("init")["predicted"].agg(["min", "max"])
    assert predicted.loc["he_normal"].tolist() == pytest.approx([0, 0], abs=1e-12)
    assert predicted.loc["glorot_normal"].tolist() == pytest.approx([math.log(1 / 2)] * 2, abs=1e-12)
    one = slopes[(slopes["init"] == "he_normal") & (slopes["depth"] == 20)]
    assert one["z"].iloc[0] == pytest.approx(one["slope"].mean() / one["slope"].sem())
    assert with_predicted_norms(batch, WEIGHT)["predicted"].isna().all()
    assert set(with_predicted_norms(batch)["law"]) == {"infinite width"}


def test_wide_nets_are_near_the_limit(wide):
    """Closed gates keep all; tanh and highway nets of width 100 are within a layer's 5 / (2 n) of the limit."""
    slopes = with_predicted_slopes(backward_slopes(wide), wide)
    shut = slopes[slopes["gate_bias"] == -40]
    assert shut["limit"].to_numpy() == pytest.approx(0, abs=1e-12)
    assert shut["slope"].to_numpy() == pytest.approx(0, abs=1e-12)
    for _, nets in slopes.groupby(KIND, dropna=False):
        assert abs(nets["slope"].mean() - nets["limit"].iloc[0]) < 4.5 * nets["slope"].sem() + 5 / 200


@pytest.mark.parametrize("quantity", [ERROR, WEIGHT])
def test_norms_by_layer_follow_the_finite_width_law(flow, quantity):
    """Every layer's mean from the last layer's, and the spread of the norms themselves: |z| < 4.5 at width 16."""
    rows = with_predicted_norms(flow, quantity)
    known = rows[(rows["layer"] > 1) | (quantity == ERROR)]
    assert known["predicted"].notna().all() and np.abs(known["z"]).max() < LARGEST_Z and known["valid"].all()
    uniform = rows["init"] == "he_uniform"  # not Gaussian: the law holds to the first order
    assert set(rows.loc[uniform, "law"]) == {"first order in 1 / width"} and set(rows.loc[~uniform, "law"]) == {"exact"}
    layer_2 = known[(known["layer"] == 2) & (known["init"] != "orthogonal")]
    for (_, _, _, _, depth), nets in layer_2.groupby(KIND, dropna=False):
        excess = nets[quantity].var() / nets["predicted_std"].iloc[0] ** 2 - 1
        assert excess < LARGEST_Z * math.sqrt(2 / len(nets)) + 2 / depth  # the loss's own size varies too
        assert excess > -LARGEST_Z * math.sqrt(2 / len(nets))


def test_weight_gradients_of_highway_nets_follow_the_limit(wide):
    """Layer 2 from layer 20: the residual size of O(1 / n) a layer, 20 layers, is half of what is allowed."""
    rows = with_predicted_norms(wide[wide["gate_bias"] == -3], WEIGHT)
    for _, nets in rows[rows["layer"] == 2].groupby(KIND, dropna=False):
        gap = NATS * (nets[WEIGHT] - nets["predicted"])
        assert abs(gap.mean()) < LARGEST_Z * gap.sem() + 20 * 2 / 100
        assert gap.notna().all()


def test_linear_orthogonal_nets_have_no_gap(flow):
    """Isometries: the slope and every norm are what theory says, to the rounding of 20 layers of float32 weights."""
    nets = flow[(flow["activation"] == "linear") & (flow["init"] == "orthogonal")]
    slopes = with_predicted_slopes(backward_slopes(nets), nets)
    assert np.abs(slopes["slope"] - slopes["predicted"]).max() < 1e-6
    for quantity in (ERROR, WEIGHT):
        rows = with_predicted_norms(nets, quantity)
        assert np.abs(rows[quantity] - rows["predicted"]).max() < 1e-6


def test_nets_scaled_by_a_known_factor_show_that_gap(flow):
    """ln 3 a layer added to He ReLU nets: the gap grows by it, z by it in standard errors."""
    nets = flow[(flow["init"] == "he_normal") & (flow["depth"] == 20)]
    scaled = nets.assign(**{ERROR: nets[ERROR] + (20 - nets["layer"]) * math.log(3) / NATS})
    before, after = (with_predicted_slopes(backward_slopes(frame), frame) for frame in (nets, scaled))
    assert (after["slope"] - after["predicted"] - before["slope"] + before["predicted"]).to_numpy() == pytest.approx(
        math.log(3))
    error = before["predicted_std"].iloc[0] / math.sqrt(NETS)
    assert (after["z"] - before["z"]).iloc[0] == pytest.approx(math.log(3) / error, rel=1e-6)
    gaps = [NATS * (rows[ERROR] - rows["predicted"]) for rows in map(with_predicted_norms, (nets, scaled))]
    assert (gaps[1] - gaps[0]).to_numpy() == pytest.approx((20 - nets["layer"].to_numpy()) * math.log(3))


def test_predicted_slope_is_the_mean_where_layers_are_alike_and_weighs_the_middle_where_not():
    """Equal chi: its logarithm. The weights are numpy's polyfit of the sum of the steps, and add up to 1."""
    assert predicted_slope(np.full(9, 0.7)) == pytest.approx(math.log(0.7))
    assert math.isnan(predicted_slope(np.array([])))
    steps = np.random.default_rng(0).normal(size=6)
    polynomial = np.polyfit(np.arange(7), np.append(0, np.cumsum(steps)), 1)
    assert slope_weights(7) @ steps == pytest.approx(polynomial[0])
    assert slope_weights(7).sum() == pytest.approx(1)


def test_schemes_that_theory_cannot_place_have_no_prediction():
    """An unknown scheme or a dead first layer is nan, not a number; a gain replaces the scheme's own."""
    cell = {"net": "plain", "init": "critical", "gain": math.nan, "activation": "tanh", "width": 9, "depth": 4,
            "activation_mean_square": 1.0, "activation_mean": 0.0, "bias_var": 0.0, "gate_bias": -2.0}
    assert np.isnan(layer_gains(pd.Series(cell))).all() and len(layer_gains(pd.Series(cell))) == 3
    dead = pd.Series(cell | {"init": "he_normal", "activation_mean_square": 0.0})
    assert np.isnan(layer_gains(dead)).all()
    for net in ("highway", "residual"):
        assert mode_theory(dead.replace("plain", net)).isna().all(axis=None)
    assert weight_var("critical", 3.0, "tanh", 9) == 9.0
    assert weight_var("he_normal", None, "relu", 9) == pytest.approx(2)
    biased = cell | {"init": "he_normal", "activation": "relu"}
    assert tuple(exact_step(pd.Series(biased))) == pytest.approx(tuple(theory.log_jacobian_norm(9, 1, "relu")))
    assert all(map(math.isnan, exact_step(pd.Series(biased | {"bias_var": 0.1}))))


KNOWN = {"net": "plain", "init": "he_normal", "gain": math.nan, "gate_bias": math.nan, "bias_var": 0.0, "depth": 4,
         "activation": "tanh", "width": 50, "activation_mean_square": 1.0, "activation_mean": 0.0}


@pytest.mark.parametrize("init", ["lecun_normal", "lecun_uniform", "orthogonal"])
def test_a_small_signal_makes_a_tanh_net_a_linear_one(init):
    """The first order in 1 / n of its steps is that of the linear net's exact ones: they differ by 1 / n^2 at most."""
    small = pd.Series(KNOWN | {"init": init, "activation_mean_square": 1e-14})
    linear = exact_step(small.replace({"tanh": "linear"}))
    assert mean_steps(small) == pytest.approx(np.full(3, linear.mean), abs=1 / 50**2)


def test_slopes_that_vary_cost_half_their_relative_variance():
    """Leaky ReLUs of slope a: mu_k = E phi'^2k = (1 + a^2k) / 2, and the step is ln chi less (3 mu_2 / mu_1^2 - 1) / 2n
    with Gaussian weights, less 3 (mu_2 / mu_1^2 - 1) / 2n with orthogonal ones."""
    excess = ((1 + 0.01**4) / 2) / ((1 + 0.01**2) / 2) ** 2 - 1
    for init, variance, loss in (("he_normal", 2.0, 3 * excess + 2), ("orthogonal", 1.0, 3 * excess)):
        steps = mean_steps(pd.Series(KNOWN | {"activation": "leaky_relu", "init": init}))
        assert steps == pytest.approx(np.full(3, math.log(variance * (1 + 0.01**2) / 2) - loss / (2 * 50)), rel=1e-9)


@pytest.mark.parametrize("activation, init", [("linear", "lecun_normal"), ("relu", "he_normal"),
                                              ("relu", "he_uniform")])
def test_the_last_layers_error_signal_varies_as_its_read_out(activation, init):
    """ln of a chi-squared variable of n degrees of freedom: its variance is the trigamma function at n / 2; each layer
    below adds its own, and the drift's is theirs alone."""
    cell = pd.Series(KNOWN | {"activation": activation, "init": init})
    law, own = norm_law(cell, ERROR, one=True), exact_step(cell).variance
    layers = np.arange(3, -1, -1)
    for name, variance in (("predicted_std", polygamma(1, 25) + layers * own), ("gap_std", layers * own)):
        assert ((NATS * law[name]) ** 2).to_numpy() == pytest.approx(variance, rel=1e-12)


@pytest.mark.parametrize("activation", ["linear", "relu"])
@pytest.mark.parametrize("scheme", [name for name in fs.nets.SCHEMES if name != "critical"])
def test_weight_variance_is_what_initialize_draws(scheme, activation):
    """The same draws as those of the same distribution at gain 1, times its root."""
    like = "orthogonal" if scheme == "orthogonal" else "lecun_uniform" if "uniform" in scheme else "lecun_normal"
    drawn, unit = (fs.initialize(torch.nn.Sequential(torch.nn.Linear(9, 9), torch.nn.Linear(9, 2)).double(), name,
                                 activation=activation)[0].weight.detach() for name in (scheme, like))
    ratio = (drawn / unit).square().numpy()
    assert ratio == pytest.approx(np.full((9, 9), weight_var(scheme, None, activation, 9)), rel=1e-9)


def test_an_unknown_quantity_is_refused(flow):
    with pytest.raises(ValueError, match=r"`quantity` must be log10_error_signal_norm or .*, got 'loss'"):
        with_predicted_norms(flow, "loss")


def test_slope_figures_draw_the_prediction(flow):
    """Dashed, through the predicted values, with the largest z in the caption; the finite-width law of the gap as a
    line."""
    figure = plots.slope_by_depth(flow)
    relu = next(ax for ax in figure.axes if ax.get_title() == "plain relu")
    dashed = [line for line in relu.lines if line.get_linestyle() == "--"]
    assert list(dashed[0].get_ydata()) == pytest.approx([-0.176397324] * 2)
    slopes = with_predicted_slopes(backward_slopes(flow), flow)
    z = slopes.loc[slopes["valid"] & (slopes["depth"] == 20), "z"]
    assert f"z = {number(z[z.abs().idxmax()])} of them" in caption_of(figure)
    gaps = next(ax for ax in plots.slope_gap_by_depth(flow).axes if ax.get_title().startswith("plain relu"))
    exact = {line.get_label(): list(line.get_ydata()) for line in gaps.lines if "exact" in line.get_label()}
    assert exact["exact, Gaussian"] == pytest.approx([-0.176397324] * 2)
    assert exact["exact, orthogonal"] == pytest.approx([theory.log_jacobian_norm(16, 1, "relu", "orthogonal").mean] * 2)


def test_norm_figure_draws_line_and_band(flow):
    """He ReLU: the dashed line is the median prediction, the dotted ones 1.28 exact standard deviations beside it."""
    nets = flow[(flow["init"] == "he_normal") & (flow["depth"] == 20)]
    rows = with_predicted_norms(nets).groupby("layer")[["predicted", "predicted_std"]].median()
    _, middle, below, above = plots.gradient_by_layer(nets).axes[0].lines
    assert list(middle.get_ydata()) == pytest.approx(rows["predicted"].tolist())
    width = (np.asarray(above.get_ydata()) - np.asarray(below.get_ydata())) / 2
    assert width == pytest.approx(1.2816 * rows["predicted_std"].to_numpy())


# --- spectra ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spectra(run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Spectra and gradient flow of the same nets and sample."""
    cells = [*(cell for cell in PLAN if cell.seed < 20),
             *fs.grid(net="highway", activation=["tanh", "relu"], init="glorot_normal", gate_bias=-3.0, depth=[2, 20],
                      width=64, seed=range(6))]
    return (run(cells, measure="jacobian_spectrum", part="body", samples=1),
            run(cells, measure="gradient_flow", samples=1))


def test_rank_and_log_volume_are_exact(spectra):
    """Of width-16 ReLU and linear nets, 20 a kind; orthogonal linear nets are isometries."""
    statistics = with_predicted_statistics(*spectra)
    exact = statistics[statistics["net"] == "plain"].set_index(["activation", "statistic"]).sort_index()
    for which in (("relu", "rank"), ("linear", "mean_log")):
        rows = exact.loc[which]
        assert rows["predicted"].notna().all() and np.abs(rows["z"]).max() < LARGEST_Z
    isometries = exact[exact["init"] == "orthogonal"].loc["linear"]
    known = isometries[isometries["predicted"].notna()]
    assert set(known.index) == {"mean_log", "log_mean_square", "relative_variance"}
    assert np.abs(known["measured"] - known["predicted"]).max() < 1e-6  # float32 weights


def test_statistics_of_highway_nets_are_near_the_limit(spectra):
    """Width 64: within 4.5 standard errors and O(1 / n) per layer, the relative variance within a tenth of itself."""
    statistics = with_predicted_statistics(*spectra)
    for (statistic, depth, activation), nets in statistics[statistics["net"] == "highway"].groupby(
            ["statistic", "depth", "activation"]):
        if statistic == "rank" or (activation == "relu" and statistic == "relative_variance"):  # the mean mode
            continue
        predicted = nets["predicted"].iloc[0]
        allowed = 0.1 * predicted if statistic == "relative_variance" else (depth - 1) / 64
        assert abs(nets["measured"].mean() - predicted) < LARGEST_Z * nets["measured"].sem() + allowed


def test_spectra_of_highway_nets_follow_the_free_law(spectra):
    """All ranks but ReLU's first, of the mean over nets of width 64: within n^(-2/3), as edges are, of the law's
    spread, and twice that at most; plain ReLU nets have no prediction."""
    rows = with_predicted_spectra(*spectra)
    assert rows[(rows["net"] == "plain") & (rows["activation"] == "relu")]["predicted"].isna().all()
    for activation, nets in rows[(rows["net"] == "highway") & (rows["depth"] == 20)].groupby("activation"):
        means = nets.groupby("rank")[["log_singular_value", "predicted"]].mean()
        assert means["predicted"].isna().tolist() == [activation == "relu"] + [False] * 63
        means = means.dropna()
        distance = np.abs(means["log_singular_value"] - means["predicted"]).max()
        assert distance < 2 * 64 ** (-2 / 3) * np.ptp(means["predicted"])


@pytest.mark.parametrize("init", ["orthogonal", "he_normal"])
def test_mean_log_of_leaky_relus_is_half_of_their_small_slope(init):
    """Half of the units have slope 0.01, whatever the layer; orthogonal weights add nothing, Gaussian ones theirs."""
    found = statistics_law(pd.Series(KNOWN | {"activation": "leaky_relu", "init": init, "bias_var": 0.1}))
    weights = 0.0 if init == "orthogonal" else theory.sum_log_singular_values(50, 3, 2.0).mean / 50
    assert dict(zip(STATISTICS, found, strict=True))["mean_log"] == pytest.approx(weights + 3 * math.log(0.01) / 2)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_mean_mode_is_one_large_singular_value(activation):
    """Of n values the bulk has E s^4 = P, in units of its mean square, and the mode, where there is one, adds P to its
    own s^2 = n mode: the fourth moment over the mean squared, less 1; nets without a mean have the bulk's P - 1."""
    cell = pd.Series(KNOWN | {"net": "highway", "activation": activation, "gate_bias": -1.0, "activation_mean": 0.3})
    last, n = mode_theory(cell).iloc[-1], 50
    mode = math.exp(last["log_mode"] - last["log_bulk"]) if activation == "relu" else 0.0
    fourth = last["P"] + ((n * mode + last["P"]) ** 2 - last["P"] ** 2) / n
    found = dict(zip(STATISTICS, statistics_law(cell), strict=True))
    assert found["relative_variance"] == pytest.approx(fourth / (1 + mode) ** 2 - 1, rel=1e-9)
    assert found["log_mean_square"] == pytest.approx(last["log_bulk"] + math.log1p(mode), rel=1e-9)
    assert (mode > 0.01) == (activation == "relu")


def test_statistics_of_a_known_spectrum():
    """By hand, of s = e, 1 / e, and beyond float64's range; a zero has a rank, and no mean logarithm."""
    for shift in (0.0, -1000.0):
        found = spectrum_statistics(np.array([1.0, -1.0]) + shift)
        square = math.cosh(2)
        assert found == pytest.approx({"rank": 2, "mean_log": shift, "log_mean_square": 2 * shift + math.log(square),
                                       "relative_variance": math.cosh(4) / square**2 - 1})
    found = spectrum_statistics(np.array([0.0, -np.inf]))
    assert (found["rank"], found["log_mean_square"]) == (1, pytest.approx(math.log(1 / 2)))
    assert math.isnan(found["mean_log"])
    assert found["relative_variance"] == pytest.approx(1)


def test_spectrum_figures_draw_the_prediction(spectra):
    """The free law dashed, ReLU's mean rank as triangles, and the condition number that the law has."""
    statistics, rows = with_predicted_statistics(*spectra), with_predicted_spectra(*spectra)
    highway = rows[(rows["net"] == "highway") & (rows["activation"] == "tanh") & (rows["depth"] == 20)]
    law = highway.groupby("rank")["predicted"].first() / math.log(10)
    _, dashed = plots.spectrum_by_depth(highway, statistics).axes[0].lines
    assert list(dashed.get_ydata()) == pytest.approx(law.tolist())
    _, dashed = plots.condition_by_depth(highway).axes[0].lines
    assert list(dashed.get_ydata()) == pytest.approx([law.iloc[0] - law.iloc[-1]])
    relu = rows[(rows["init"] == "he_normal") & (rows["depth"] == 20)]
    triangle = plots.spectrum_by_depth(relu, statistics).axes[0].lines[-1]
    assert triangle.get_xdata()[0] == pytest.approx(theory.expected_rank(16, 19) / 16)


def test_each_route_is_named_at_its_smallest_value(run):
    figure = plots.spectrum_by_route(run(fs.grid(net="plain", activation="linear", init="lecun_normal", depth=6,
                                                 width=8), measure="spectrum_by_route"))
    named = {text.get_color(): text.xy[1] for text in figure.axes[0].texts}
    assert named == {line.get_color(): line.get_ydata()[-1] for line in figure.axes[0].lines} and len(named) == 3


def test_the_spread_that_is_told_is_that_of_the_deepest_nets(spectra):
    """Shallower ones beside them change nothing in the sentence."""
    statistics, rows = with_predicted_statistics(*spectra), with_predicted_spectra(*spectra)
    highway = rows[(rows["net"] == "highway") & (rows["activation"] == "tanh")]
    both, deep, shallow = (message_of(plots.spectrum_by_depth(some, statistics)) for some in (
        highway, highway[highway["depth"] == 20], highway[highway["depth"] == 2]))
    assert both == deep and "of 20 layers" in both
    assert re.findall("within ([0-9.]+)", both) != re.findall("within ([0-9.]+)", shallow)


# --- the trainability map --------------------------------------------------------------------------------------------


def test_accuracy_is_each_nets_own_share_of_right_answers(tmp_path):
    """After one epoch, of each cell's net trained alone; a net that diverged is nan and leaves its mate alone."""
    cells = fs.grid(net="plain", depth=2, width=9, epochs=1, learning_rate=[0.05, 1e38], train_samples=200)
    frame = fs.run(cells, measure="accuracy", store=tmp_path / "both", device="cpu", progress=False)
    alone = fs.run(cells[:1], measure="accuracy", store=tmp_path / "one", device="cpu", progress=False)
    columns = ["loss", "train_accuracy", "test_accuracy"]
    np.testing.assert_allclose(frame[columns].iloc[0].astype(float), alone[columns].iloc[0].astype(float), rtol=1e-5)
    assert frame[columns].iloc[1].isna().all()
    assert 0.1 < alone["train_accuracy"].item() <= 1
    assert alone["train_accuracy"].item() * 200 == pytest.approx(round(alone["train_accuracy"].item() * 200))


def test_map_draws_the_depth_that_theory_allows():
    """6 xi_c where it is finite, and the depth at which the gate-bias rule gives each bias."""
    grid = pd.DataFrame([{"net": "plain", "activation": "tanh", "width": 9, "dataset": "digits", "epochs": 1,
                          "depth": depth, "gain": variance**0.5, "bias_var": 0.05, "gate_bias": bias,
                          "init": "glorot_normal", "test_accuracy": accuracy, "seed": 0}
                         for depth, accuracy in ((5, 0.9), (50, math.nan)) for variance in (0.5, 1.0, 2.25)
                         for bias in (-5.0, -1.0)])
    figure = plots.trainability_map(grid, "weight_var")
    mesh = figure.axes[0].collections[0].get_array().reshape(2, 3)
    assert mesh[0].tolist() == pytest.approx([0.9] * 3) and mesh[1].tolist() == pytest.approx([0.1] * 3)  # chance
    drawn = dict(zip(*(axis.round(6).tolist() for axis in figure.axes[0].lines[0].get_data()), strict=True))
    assert drawn[2.25] == pytest.approx(6 * 15.1170865, rel=1e-6)  # theory.mean_field, sigma_w = 1.5
    bias, depth = plots.trainability_map(grid, "gate_bias").axes[0].lines[0].get_data()
    assert np.asarray(bias) == pytest.approx(-np.log(2 * (np.asarray(depth) - 1) - 1))
