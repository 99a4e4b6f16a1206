"""The laws of drawing, for every figure: it says what it shows, and nothing on it hides anything else."""

import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from drawn import contrast_on_white, pale_lines, texts_on_data, texts_outside, texts_that_overlap
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from sklearn.isotonic import IsotonicRegression
from torch import nn

import flowstudy as fs
from flowstudy import plots
from flowstudy.figures.gallery import words_of
from flowstudy.plots import message, style
from flowstudy.predictions import through_training, with_predicted_spectra, with_predicted_statistics
from flowstudy.predictions.spectra import spectrum_statistics

ERROR, WEIGHT = "log10_error_signal_norm", "log10_weight_gradient_norm"
SHARED = dict(width=8, dataset="digits", seed=range(2))
NO_FIGURES = {"each", "save", "TRAINING_PANELS"}
ONE_MODEL = {"gradient_flow", "spectrum", "trainability", "gate_activity", "training_heat_map"}  # of a user's data


def many(**options: object) -> list[fs.Cell]:
    cells = fs.grid(net="plain", activation=["tanh", "relu"], init=["glorot_normal", "he_uniform", "orthogonal"],
                    depth=[3, 12], **SHARED)
    return cells + fs.grid(net="highway", activation=["tanh", "relu"], init="glorot_normal", gate_bias=[-1, -4],
                           depth=[3, 12], **SHARED, **options)


def some_figures() -> dict[str, list[Figure]]:
    """Of tables made by hand: one of each way to lay out words."""
    common = {"dataset": "digits", "width": 8, "activation": "tanh", "init": "he_normal", "gain": None, "seed": 0}
    searched = pd.DataFrame([common | {
        "cell": f"{net}{depth}{run}", "net": net, "depth": depth, "epoch": epoch, "epochs": 2,
        "loss": 2.3 / (1 + epoch) ** run, "learning_rate": 0.1 * run, "gate_bias": -run if net == "highway" else None}
        for net in ("plain", "highway") for depth in (2, 50) for run in (1, 2) for epoch in (0, 1, 2)])
    searched["gate_bias"] = searched["gate_bias"].astype(float)
    lesions = pd.DataFrame({"cell": "a", "depth": 4, "gate_bias": -2.0, "layer": [0, 2, 3, 4],
                            "error": [0.1, 0.5, 0.2, 0.1]}).assign(**{k: v for k, v in common.items() if k != "gain"})
    grid = pd.DataFrame([common | {"net": "plain", "depth": depth, "gain": variance**0.5, "bias_var": 0.05, "epochs": 1,
                                   "test_accuracy": 0.9 if depth < 9 else 0.1}
                         for depth in (5, 50) for variance in (0.5, 1.0, 2.25)])
    statistics = pd.DataFrame([common | {
        "net": "plain", "depth": depth, "init": init, "gate_bias": np.nan, "gain": np.nan,
        "statistic": "relative_variance", "measured": depth / factor, "predicted": float(depth),
        "valid": depth < 20, "z": 1.0}
        for depth in (3, 12, 40) for init, factor in (("he_normal", 9.0), ("orthogonal", 9.1), ("glorot_normal", 9.2))])
    return {"figure_1": [plots.figure_1(searched, top=1)], "which_runs_train": [plots.which_runs_train(searched, 1.0)],
            "training_curve": [plots.training_curve(searched)], "lesions": [plots.lesions(lesions)],
            "trainability_map": [plots.trainability_map(grid, "weight_var")],
            "spectrum_statistic_by_depth": [plots.spectrum_statistic_by_depth(statistics, "relative_variance")]}


@pytest.fixture(scope="module", params=["some", pytest.param("every", marks=pytest.mark.slow)])
def figures(request, tmp_path_factory) -> dict[str, list[Figure]]:
    """Figures by the function of `plots` that drew them; every one, of frames as studies make them, takes a minute."""
    if request.param == "some":
        return some_figures()
    torch.manual_seed(0)
    store = tmp_path_factory.mktemp("store")

    def run(cells: list, measure: object, **options: object) -> object:
        return fs.run(cells, measure=measure, store=store, device="cpu", progress=False, **options)

    found = of_initial_nets(run) | of_trained_nets(run) | of_one_model()
    assert set(found) == set(plots.__all__) - NO_FIGURES
    return found


def of_initial_nets(run) -> dict[str, list[Figure]]:
    cells = many()
    flow = run(cells, "gradient_flow", samples=1)
    spectra = run(cells, "jacobian_spectrum", part="body", samples=1)
    statistics, spectra = with_predicted_statistics(spectra, flow), with_predicted_spectra(spectra, flow)
    linear = fs.grid(net="plain", activation="linear", init="lecun_normal", depth=[3, 12], **SHARED)
    body = fs.grid(net=["plain"], activation="relu", init="he_normal", depth=9, **SHARED)
    body += fs.grid(net="highway", activation="relu", init="he_normal", gate_bias=[-1, -4], depth=9, **SHARED)
    kinds = {f"{net} {activation}": flow[(flow["net"] == net) & (flow["activation"] == activation)]
             for net in ("plain", "highway") for activation in ("tanh", "relu")}
    circle = fs.grid(net=["plain", "residual"], activation="relu", init="he_normal", depth=[2, 6], **SHARED)
    correlation = run(circle, "gradient_correlation", points=8)
    return {
        "gradient_by_layer": [plots.gradient_by_layer(rows, name)
                              for rows in kinds.values() for name in (ERROR, WEIGHT)],
        "slope_by_depth": [plots.slope_by_depth(flow)],
        "slope_gap_by_depth": [plots.slope_gap_by_depth(flow)],
        "spectrum_by_depth": [plots.spectrum_by_depth(rows, statistics) for _, rows in spectra.groupby("net")],
        "spectrum_statistic_by_depth": [plots.spectrum_statistic_by_depth(statistics, name)
                                        for name in ("mean_log", "log_mean_square", "relative_variance")],
        "condition_by_depth": [plots.condition_by_depth(spectra)],
        "spectrum_by_route": [plots.spectrum_by_route(run(linear[-1:], "spectrum_by_route"))],
        "lyapunov_exponents": [plots.lyapunov_exponents(run(linear, "jacobian_spectrum", part="body", samples=1))],
        "highway_recursion": [plots.highway_recursion(run(body, "body_moments", every=2))],
        "highway_spectrum": [plots.highway_spectrum(run(body, "jacobian_spectrum", part="body", samples=1),
                                                    run(body, "gradient_flow", samples=1))],
        "gradient_correlation": [plots.gradient_correlation(correlation)],
        "gradient_correlation_by_depth": [plots.gradient_correlation_by_depth(correlation)],
        "gradient_around_circle": [plots.gradient_around_circle(run(circle, "gradient_around_circle", points=16))],
    }


def of_trained_nets(run) -> dict[str, list[Figure]]:
    options = dict(epochs=2, train_samples=100, learning_rate=0.1, momentum=0.5, batch_size=20, dataset="digits")
    searched = run(fs.random_search(2, net=["plain", "highway"], depth=[2, 4], epochs=2, train_samples=100),
                   "training_loss")
    deep = run(fs.grid(net=["plain", "highway"], depth=4, width=8, **options), "training_loss")
    trained = fs.grid(net="highway", depth=5, width=8, gate_bias=-2, **options)
    gates = run(trained, ["gate_routing", "gate_routing_by_class", "lesions"])
    tanh = dict(activation="tanh", width=8)
    mapped = fs.grid(net="plain", depth=[2, 4], gain=[1.0, 1.5], bias_var=0.05, **tanh, **options)
    maps = run(mapped + fs.grid(net="highway", depth=[2, 4], gate_bias=[-3, 0], **tanh, **options), "accuracy")
    kinds = fs.grid(net="plain", init=["glorot_normal", "orthogonal"], depth=[3, 6], seed=[0, 1], **tanh, **options)
    kinds += fs.grid(net="highway", init="glorot_normal", gate_bias=-3, depth=[3, 6], seed=[0, 1], **tanh, **options)
    through = run(kinds, ["training_loss", "jacobian_spectrum", "gradient_flow"], at=fs.RecordAt(epochs=[0, 2]),
                  samples=2)
    conv = pd.DataFrame([{"net": "mnist_16", "block": block, "seed": 0, "dataset": "digits", "learning_rate": rate,
                          "parameters": 9, "epoch": epoch, "loss": 2.3 / epoch**slope,
                          "test_accuracy": 1 - 0.9 / epoch}
                         for rate in (0.1, 0.01) for block, slope in (("highway", 1), ("plain", 0.01))
                         for epoch in (1, 2, 3)])
    return {
        "figure_1": [plots.figure_1(searched, top=1), plots.figure_1(searched.assign(dataset="mnist"), top=1)],
        "best_settings": [plots.best_settings(searched), plots.best_settings(searched.assign(dataset="mnist"))],
        "which_runs_train": [plots.which_runs_train(searched, 2.0)],
        "training_curve": [plots.training_curve(deep)],
        "trainability_map": [plots.trainability_map(maps[maps["net"] == net], axis)
                             for net, axis in (("plain", "weight_var"), ("highway", "gate_bias"))],
        "conv_training": [plots.conv_training(conv)],
        "spectra_through_training": [plots.spectra_through_training(
            through_training(through["jacobian_spectrum"], through["gradient_flow"]))],
        "training_curves": [plots.training_curves(through["training_loss"])],
        "gate_routing": [plots.gate_routing(gates["gate_routing"])],
        "gate_routing_by_class": [plots.gate_routing_by_class(gates["gate_routing_by_class"], (0, 7))],
        "lesions": [plots.lesions(gates["lesions"])],
    }


def of_one_model() -> dict[str, list[Figure]]:
    net, x, y = fs.HighwayNet(6, 8, 5, 3), torch.randn(16, 6), torch.arange(16) % 3
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with fs.GradientMonitor(net) as monitor:
        for _ in range(3):
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    return {
        "gradient_flow": [fs.gradient_flow(net, x, y).plot()],
        "spectrum": [fs.jacobian_spectrum(net, x).plot()],
        "trainability": [fs.trainability(net, x, y, samples=8, trial=4).plot()],
        "gate_activity": [fs.gate_activity(net, x, y).plot()],
        "training_heat_map": [monitor.plot()],
    }


def test_every_figure_says_what_it_shows(figures):
    """A sentence with a number, written from the data; of many nets also what data they had and how many they were."""
    for name, drawn in figures.items():
        for figure in drawn:
            said, caption = message.message_of(figure), message.caption_of(figure)
            assert any(map(str.isdigit, said)) and "nan" not in said.split(), (name, said)
            if name not in ONE_MODEL:
                assert said[0].isupper() and said.endswith("."), (name, said)
                assert any(word in caption for word in ("digits", "MNIST", "inear net")), (name, caption)
                assert any(word in caption for word in ("seed", "net", "run")), (name, caption)


def test_no_words_are_cut_or_hide_words_or_data(figures):
    for name, drawn in figures.items():
        for figure in drawn:
            assert texts_that_overlap(figure) == [], name
            assert texts_outside(figure) == [], name
            assert texts_on_data(figure) == [], name


def test_every_line_shows_on_white(figures):
    """A contrast of 3:1 or more, as WCAG asks of graphics."""
    for name, drawn in figures.items():
        for figure in drawn:
            assert pale_lines(figure) == [], name


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_the_palette_shows_on_white_and_tells_apart(count):
    frame = pd.DataFrame({"depth": range(count), "gate_bias": -np.arange(count, dtype=float)})
    depths, gates = style.depth_colors(frame), style.gate_colors(frame["gate_bias"])
    fixed = [*style.NETS.values(), *style.SCHEMES.values(), *style.CLASSES, *style.ROUTES.values(), style.OTHER,
             style.LOST, style.REFERENCE]
    for colors in (list(depths.values()), list(gates.values()), fixed):
        assert len(set(colors)) == len(colors)
        assert min(map(contrast_on_white, colors)) >= 3


def test_contrast_is_that_of_the_standard():
    """Black 21, white 1, and #767676, the lightest grey of 4.5:1."""
    assert contrast_on_white("black") == pytest.approx(21) and contrast_on_white("white") == pytest.approx(1)
    assert contrast_on_white("#767676") == pytest.approx(4.54, abs=0.005)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=12), st.floats(0.1, 30))
def test_labels_are_kept_apart_by_the_nearest_places(places, gap):
    """Isotonic regression, after scikit-learn; none nearer than the gap, and none moved that was free."""
    places = np.array(places)
    moved = style.spread(places, gap)
    order = np.argsort(places, kind="stable")
    steps = gap * np.arange(len(places))
    nearest = IsotonicRegression().fit_transform(steps, places[order] - steps) + steps
    assert moved[order] == pytest.approx(nearest, abs=1e-9)
    assert (np.diff(moved[order]) >= gap - 1e-9).all()


@pytest.mark.parametrize("panels, columns", [(1, 2), (3, 2), (4, 2), (5, 3)])
def test_axes_are_labelled_at_the_left_and_lower_edges_alone(panels, columns):
    """Where nothing lies further left, and where nothing lies below, by the places on the page."""
    figure, axes = style.grid_of_axes(panels, columns)
    style.finish(axes, "rank", "size")
    figure.draw_without_rendering()
    boxes = [ax.get_position() for ax in axes]
    for ax, box in zip(axes, boxes, strict=True):
        below = any(other.y1 < box.y0 and abs(other.x0 - box.x0) < 1e-6 for other in boxes)
        left = any(other.x1 < box.x0 for other in boxes)
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("" if below else "rank", "" if left else "size")


def test_lines_lie_over_each_other_in_the_order_of_the_legend():
    """Of gate biases, whose names sort otherwise: -10 before -2."""
    common = {"cell": "a", "net": "highway", "activation": "tanh", "init": "he_normal", "gain": np.nan, "seed": 0,
              "dataset": "digits", "depth": 9, "width": 3}
    spectra = pd.DataFrame([common | {"gate_bias": bias, "rank": rank, "log_singular_value": bias / rank}
                            for bias in (-2.0, -10.0) for rank in (1, 2, 3)])
    figure = plots.spectrum_by_depth(spectra)
    measured = [line.get_color() for line in figure.axes[0].lines if line.get_color() != "black"]
    assert measured == [handle.get_color() for handle in figure.legends[0].legend_handles]


def test_steps_and_layers_are_counted_in_whole_numbers():
    """However few there are: nothing happens at step 0.5."""
    frame = pd.DataFrame([{"step": step, "layer": layer, "log10_weight_gradient_norm": -float(step + layer)}
                          for step in range(3) for layer in (1, 2)])
    figure = plots.training_heat_map(frame)
    figure.draw_without_rendering()
    for ticks in (figure.axes[0].get_xticks(), figure.axes[0].get_yticks()):
        assert (ticks == np.round(ticks)).all()


def test_one_value_alone_has_the_relative_variance_that_is_called_the_most():
    """The dotted line's height is that of a spectrum with a single value other than 0."""
    width = 5
    single = spectrum_statistics(np.array([0.0] + [-np.inf] * (width - 1)))
    statistics = pd.DataFrame([{
        "cell": depth, "dataset": "digits", "width": width, "activation": "tanh", "init": "he_normal", "seed": 0,
        "net": "plain", "depth": depth, "gate_bias": np.nan, "gain": np.nan, "statistic": "relative_variance",
        "measured": depth / 9, "predicted": float(depth), "valid": True, "z": 1.0} for depth in (3, 12)])
    [ax] = plots.spectrum_statistic_by_depth(statistics, "relative_variance").axes
    [dotted] = [line for line in ax.lines if line.get_linestyle() == ":"]
    assert list(dotted.get_ydata()) == pytest.approx([single["relative_variance"]] * 2)


def test_pictures_carry_their_words(figures, tmp_path):
    """Title and description of SVG, as any reader of XML finds them, and as the gallery does."""
    figure = figures["lesions"][0]
    plots.save({"lesions": figure}, {"some": pd.DataFrame({"a": [1 / 3]})}, tmp_path)
    said, caption = message.message_of(figure), message.caption_of(figure)
    root = ElementTree.parse(tmp_path / "lesions.svg").getroot()
    assert root.find("{http://www.w3.org/2000/svg}title").text == said
    assert words_of(tmp_path / "lesions.svg") == (said, caption)
    assert words_of(Path("no_such.svg")) == ("no such", "")
    assert said.encode() in (tmp_path / "lesions.png").read_bytes() or not said.isascii()
    assert (tmp_path / "some.csv").read_text() == "a\n0.333333\n"


@pytest.mark.parametrize("value, words", [
    (0.046, "0.046"), (-0.5, "\N{MINUS SIGN}0.5"), (210.4, "210"), (49.0, "49"), (12345.0, "12,000"), (0.0, "0"),
    (3e-12, "3 \N{MULTIPLICATION SIGN} 10⁻¹²"), (1e-7, "10⁻⁷")])
def test_numbers_are_written_as_people_write_them(value, words):
    assert message.number(value) == words


def test_powers_of_ten_know_no_underflow():
    assert message.power_of_ten(-335.2) == "10⁻³³⁵" and message.power_of_ten(math.log10(0.5)) == "0.5"
    assert message.power_of_ten(-math.inf) == "0"
