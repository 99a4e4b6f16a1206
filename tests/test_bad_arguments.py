"""Every argument of every public callable, with values that it cannot take: a line that says so, soon, or a result."""

import contextlib
import functools
import importlib
import inspect
import io
import itertools
import signal
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import flowstudy as fs
from flowstudy import kinds, measure, nets, plots, predictions, sweep, train
from flowstudy.nets.convolutional import Conv, Dense
from flowstudy.outcomes import judged, known_outcomes, rates
from flowstudy.refusal import RefusalError

BAD = {
    "None": lambda: None, "nan": lambda: float("nan"), "inf": lambda: float("inf"), "-1": lambda: -1, "0": lambda: 0,
    "2**64": lambda: 2**64, "''": lambda: "", "'nonsense'": lambda: "nonsense", "[]": list, "{}": dict,
    "array of another shape": lambda: np.ones((2, 3, 5)), "object": object,
}
READABLE = (RefusalError, sweep.StoreError, sweep.SweepError, fs.UntrainableError)
SECONDS = 10
RESULTS = {  # made by the library for its users to read
    "measure.Comparison", "measure.GateActivity", "measure.GradientFlow", "measure.JacobianSpectrum", "measure.Verdict",
    "theory.MeanField", "theory.Moments", "train.ConvHistory", "train.History", "train.Moment",
    "trainability.Trainability",
}
FORWARD = ("forward", "extra_repr")  # torch's own interface, called by torch

# --- what is called --------------------------------------------------------------------------------------------------


def public_callables() -> Iterator[tuple[str, Callable]]:
    """By room and name: functions, classes that users make, and their own methods."""
    for room in fs._ROOMS:
        module = importlib.import_module(f"flowstudy.{room}")
        for name in getattr(module, "__all__", ()):
            found, full = getattr(module, name), f"{room}.{name}"
            if not callable(found) or (inspect.isclass(found) and issubclass(found, Exception)):
                continue
            if full not in RESULTS:
                yield full, found
            for method in vars(found) if inspect.isclass(found) else ():
                if not method.startswith("_") and method not in FORWARD and callable(getattr(found, method)):
                    yield f"{full}.{method}", getattr(found, method)


def arguments_of(function: Callable) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name != "self"]


CALLABLES = dict(public_callables())

# --- good calls ------------------------------------------------------------------------------------------------------


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3))


def x() -> torch.Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def y() -> torch.Tensor:
    return torch.arange(6) % 3


def highway() -> nets.HighwayNet:
    return nets.HighwayNet(4, 5, 3, 3)


def small_conv_net() -> nets.ConvNet:
    return nets.mnist_conv_net(width=4)


@functools.cache
def data() -> fs.Dataset:
    return fs.load_dataset("digits").subset(20)


@functools.cache
def images() -> fs.Dataset:
    return train.load_images("digits", 28, train_samples=10, device="cpu")


def stacked() -> train.Stack:
    return train.stack([nets.PlainNet(64, 5, 2, 10), nets.PlainNet(64, 5, 2, 10)])


def settings(**changed: object) -> dict:
    return {"learning_rate": torch.full((2,), 0.1).double(), "momentum": torch.zeros(2).double(),
            "decay": torch.ones(2).double(), "epochs": 1, "batch_size": 10, "order_seed": 0,
            "precision": "float32"} | changed


def recipe(**changed: object) -> dict:
    return {"inputs": "pixels_over_256", "learning_rate": 0.1, "drops": (), "epochs": 1, "crop": False,
            "batch_size": 10, "momentum": 0.9, "weight_decay": 0.0} | changed


@functools.cache
def kept_nets(*families: str) -> pd.DataFrame:
    return known_outcomes.known_outcomes(families)


@functools.cache
def areas_of_kept() -> pd.DataFrame:
    found = judged.areas(judged.scored(kept_nets("plain", "highway")), 10)
    return found[found["optimizer"] == "adam"]


@functools.cache
def measured(what: str, **options: object) -> pd.DataFrame:
    """Of a few small nets, as `run` gives them."""
    trained = what in ("training_loss", "accuracy", "lesions", "gate_routing", "gate_routing_by_class")
    highway = what in ("lesions", "gate_routing", "gate_routing_by_class")
    cells = fs.grid(net="highway" if highway else ["plain", "highway"], depth=[3, 5], width=6, seed=range(2),
                    init="orthogonal", activation="tanh", epochs=int(trained), train_samples=30)
    if highway:
        cells = cells[:1]
    if what == "body_moments":
        cells = fs.grid(net="highway", depth=4, width=6, gate_bias=[-1.0, -3.0], seed=range(2))
    with tempfile.TemporaryDirectory() as folder:
        return fs.run(cells, measure=what, store=folder, device="cpu", progress=False, **options)


def flow() -> pd.DataFrame:
    return measured("gradient_flow", samples=4)


def spectra() -> pd.DataFrame:
    return measured("jacobian_spectrum", samples=2)


@functools.cache
def correlations() -> pd.DataFrame:
    return measured("gradient_correlation", points=16)


def statistics() -> pd.DataFrame:
    return predictions.with_predicted_statistics(spectra(), flow())


@functools.cache
def searched() -> pd.DataFrame:
    cells = fs.random_search(3, net=["plain", "highway"], depth=[2, 3], epochs=1, width=5, train_samples=30)
    with tempfile.TemporaryDirectory() as folder:
        return fs.run(cells, store=folder, device="cpu", progress=False)


@functools.cache
def conv_runs() -> pd.DataFrame:
    return train.train_conv_nets(train.conv_grid(["mnist_16"], ["plain", "highway"], [0]), images(),
                                 train.Recipe(**recipe()), progress=False)


@functools.cache
def trained_study() -> fs.Trainability:
    return fs.trainability(model(), x(), y(), trial=2, rates=(0.1,))


def store() -> fs.Store:
    made = fs.Store(tempfile.mkdtemp())
    made.prepare("t-1")
    made.append("t-1", [fs.Cell()], pd.DataFrame({"place": [0], "loss": [1.0]}), {})
    return made


def kind(name: str = "of_the_test") -> kinds.Kind:
    plain = kinds.KINDS["plain"]
    return kinds.Kind(**{field.name: getattr(plain, field.name) for field in fields(plain)} | {"name": name})


def monitored() -> fs.GradientMonitor:
    return fs.GradientMonitor(model())


@functools.cache
def monitor_folder() -> Path:
    """Of a finished run of two steps."""
    folder, net = Path(tempfile.mkdtemp()), model()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with fs.GradientMonitor(net, optimizer=optimizer, store=folder):
        for _ in range(2):
            nn.functional.cross_entropy(net(x()), y()).backward()
            optimizer.step()
    return folder


NUMBERS = itertools.count()


def registered() -> str:
    """The name of a kind that is registered anew at each call."""
    made = kind(f"kind {next(NUMBERS)}")
    kinds.register(made)
    return made.name


@functools.cache
def mnist_folder() -> Path:
    """Two images and labels in each part."""
    folder = Path(tempfile.mkdtemp())
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, 2, 3, 3) + bytes(18))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 2) + bytes(2))
    return folder


@functools.cache
def through_training() -> dict[str, pd.DataFrame]:
    cells = fs.grid(net="plain", depth=3, width=6, init="orthogonal", epochs=1, train_samples=30)
    with tempfile.TemporaryDirectory() as folder:
        frames = fs.run(cells, measure=["jacobian_spectrum", "gradient_flow"], at={"epochs": [0, 1]}, samples=2,
                        store=folder, device="cpu", progress=False)
    return {"spectra": frames["jacobian_spectrum"], "flow": frames["gradient_flow"]}


def trainability_frames() -> dict:
    found = trained_study()
    curve = pd.DataFrame({"steps": found.remaining.index, "remaining": found.remaining.to_numpy()})
    return {"frame": found.frame, "path": found.flow.path, "curve": curve, "trial": found.trial,
            "constant_loss": found.constant_loss}


def cell_row() -> pd.Series:
    return flow().iloc[0]


CELL = {"net": "plain", "depth": 3, "width": 5, "activation": "tanh", "init": "he_normal", "gain": None,
        "gate_bias": None, "dataset": "digits", "train_samples": 30, "seed": 0, "learning_rate": 0.1, "momentum": 0.9,
        "decay": 1.0, "epochs": 0, "batch_size": 10, "order_seed": 0, "bias_var": 0.0}
NET = {"in_features": 4, "width": 5, "depth": 3, "out_features": 3}
LAWS = {"activation": "tanh", "depth": 5, "weight_var": 1.0}
NORM = {"width": 10, "depth": 5, "activation": "relu"}

GOOD: dict[str, Callable[[], dict]] = {
    # nets
    "nets.ConvNet": lambda: {"plan": [Conv(4), Conv(4), nn.MaxPool2d(2), Dense(5)], "in_shape": (1, 8, 8), "classes": 3,
                             "block": "highway", "gate_bias": -1.0, "readout_std": 0.1, "first_std": None},
    "nets.ConvNet.set_gate_bias": lambda: {"self": small_conv_net(), "value": -1.0},
    "nets.HighwayBlock": lambda: {"affine": nn.Linear(4, 8)},
    "nets.HighwayBlock.set_gate_bias": lambda: {"self": highway().blocks[0], "value": -1.0},
    "nets.HighwayBlock.transform_gate": lambda: {"self": highway().blocks[0], "x": torch.randn(2, 5)},
    "nets.HighwayNet": lambda: NET, "nets.HighwayNet.set_gate_bias": lambda: {"self": highway(), "value": -1.0},
    "nets.PlainBlock": lambda: {"affine": nn.Linear(4, 4)}, "nets.ResidualBlock": lambda: {"affine": nn.Linear(4, 4)},
    "nets.PlainNet": lambda: NET, "nets.ResidualNet": lambda: NET,
    "nets.cifar_conv_net": dict, "nets.mnist_conv_net": lambda: {"width": 4},
    "nets.fitnet": lambda: {"name": "A"},
    "nets.initialize": lambda: {"model": highway(), "scheme": "he_normal"},
    "nets.initialize_as_authors": lambda: {"net": small_conv_net()},
    # measure
    "measure.GradientMonitor": lambda: {"model": model()},
    "measure.GradientMonitor.attach": lambda: {"self": monitored()},
    "measure.GradientMonitor.detach": lambda: {"self": monitored()},
    "measure.GradientMonitor.step": lambda: {"self": monitored().attach()},
    "measure.GradientMonitor.load": lambda: {"folder": monitor_folder()},
    "measure.compare": lambda: {"models": {"a": model()}, "x": x(), "y": y()},
    "measure.gate_activity": lambda: {"model": highway(), "x": x(), "y": y()},
    "measure.gradient_flow": lambda: {"model": model(), "x": x(), "y": y()},
    "measure.jacobian": lambda: {"function": torch.tanh, "x": x()},
    "measure.jacobian_spectrum": lambda: {"model": model(), "x": x()},
    "measure.layer_jacobian_spectra": lambda: {"model": model(), "x": x()},
    "measure.lesion": lambda: {"model": highway(), "layers": 2},
    "measure.lesion_losses": lambda: {"net": highway(), "x": x(), "y": y()},
    "measure.product_svd": lambda: {"factors": [torch.eye(3).double()[None]]},
    "measure.stacked_gradient_flow": lambda: {"model": stacked().template, "state": stacked().state,
                                              "x": data().flat().x_train, "y": data().y_train},
    "measure.stacked_jacobian_spectrum": lambda: {"model": stacked().template, "state": stacked().state,
                                                  "x": data().flat().x_train},
    # trainability
    "trainability.trainability": lambda: {"model": model(), "x": x(), "y": y(), "trial": 2, "rates": (0.1,)},
    "trainability.assert_trainable": lambda: {"model": model(), "x": x(), "y": y(), "trial": 10},
    "trainability.Trainability.steps_to": lambda: {"self": trained_study(), "share": 0.5},
    # train
    "train.Checkpoint": lambda: {"path": Path("c.pt")},
    "train.Checkpoint.due": lambda: {"self": train.Checkpoint("c.pt")},
    "train.Checkpoint.save": lambda: {"self": train.Checkpoint("c.pt"), "state": {"a": 1}},
    "train.Checkpoint.load": lambda: {"self": train.Checkpoint("c.pt")},
    "train.Checkpoint.finish": lambda: {"self": train.Checkpoint("c.pt")},
    "train.Checkpoint.key_of": lambda: {"path": Path("c.pt")},
    "train.Checkpoint.remove": lambda: {"self": train.Checkpoint("c.pt")},
    "train.ConvRun": lambda: {"net": "mnist_16", "block": "highway", "seed": 0},
    "train.Recipe": recipe, "train.Recipe.rate": lambda: {"self": train.Recipe(**recipe()), "epoch": 0},
    "train.RecordAt": lambda: {"epochs": (0, 1)},
    "train.RecordAt.updates": lambda: {"self": train.RecordAt((0, 1)), "epochs": 2, "per_epoch": 3},
    "train.Settings": settings, "train.Settings.step_size": lambda: {"self": train.Settings(**settings()), "epoch": 1},
    "train.Stack": lambda: {"template": stacked().template, "state": stacked().state},
    "train.Stack.part": lambda: {"self": stacked(), "nets": slice(0, 1)},
    "train.Stack.only": lambda: {"self": stacked(), "kept": torch.tensor([True, False])},
    "train.Stack.net": lambda: {"self": stacked(), "index": 0},
    "train.stack": lambda: {"nets": [nets.PlainNet(64, 5, 2, 10)]},
    "train.stack_states": lambda: {"template": model(), "states": [dict(model().named_parameters())]},
    "train.train": lambda: {"nets": stacked(), "data": data().flat(), "settings": train.Settings(**settings())},
    "train.conv_grid": lambda: {"net": ["mnist_16"], "block": ["highway"], "seed": [0]},
    "train.load_images": lambda: {"name": "digits", "size": 28, "train_samples": 10, "device": "cpu"},
    "train.train_conv": lambda: {"net": small_conv_net(), "data": images(), "recipe": train.Recipe(**recipe())},
    "train.train_conv_nets": lambda: {"runs": train.conv_grid(["mnist_16"], ["plain"], [0]), "data": images(),
                                      "recipe": train.Recipe(**recipe()), "progress": False},
    "train.train_conv_study": lambda: {"nets": {"digits": ["mnist_16"]}, "block": ["plain"], "seed": [0],
                                       "recipes": [train.Recipe(**recipe())], "size": 28, "train_samples": 10,
                                       "device": "cpu", "progress": False},
    # sweep
    "sweep.Cell": lambda: CELL,
    "sweep.grid": lambda: CELL,
    "sweep.random_search": lambda: {"n": 1, **{key: value for key, value in CELL.items() if key in (
        "width", "train_samples", "epochs", "batch_size")}},
    "sweep.run": lambda: {"cells": fs.grid(**CELL), "store": "results", "device": "cpu", "progress": False,
                          "measure": "gradient_flow", "samples": 2, "at": None, "precision": "float32"},
    "sweep.best": lambda: {"frame": searched()}, "sweep.top": lambda: {"frame": searched(), "k": 1},
    "sweep.Store": lambda: {"root": "results"},
    "sweep.Store.tables": lambda: {"self": store()},
    "sweep.Store.stored": lambda: {"self": store(), "table": "t-1"},
    "sweep.Store.missing": lambda: {"self": store(), "cells": [fs.Cell()], "table": "t-1"},
    "sweep.Store.holds": lambda: {"self": store(), "cells": [fs.Cell()], "table": "t-1"},
    "sweep.Store.path": lambda: {"self": store(), "cells": [fs.Cell()], "table": "t-1"},
    "sweep.Store.prepare": lambda: {"self": store(), "table": "t-2"},
    "sweep.Store.append": lambda: {"self": store(), "table": "t-1", "cells": [fs.Cell()],
                                   "rows": pd.DataFrame({"place": [0], "loss": [1.0]}), "provenance": {}},
    "sweep.Store.hold": lambda: {"self": store(), "mark": None},
    "sweep.Store.check_held": lambda: {"self": store()},
    "sweep.Store.write": lambda: {"self": (own := store()), "path": own.root / "t-1" / "a.json", "content": b"{}"},
    "sweep.Store.load": lambda: {"self": store(), "cells": [fs.Cell()], "table": "t-1"},
    "sweep.Store.provenance": lambda: {"self": store(), "table": "t-1"},
    "sweep.Store.footers": lambda: {"self": store(), "table": "t-1"},
    # data
    "data.Dataset": lambda: {field.name: getattr(data(), field.name) for field in fields(data())},
    "data.Dataset.flat": lambda: {"self": data()}, "data.Dataset.to": lambda: {"self": data(), "device": "cpu"},
    "data.Dataset.subset": lambda: {"self": data(), "train": 3},
    "data.load_dataset": lambda: {"name": "digits"}, "data.read_mnist": lambda: {"folder": mnist_folder()},
    # kinds
    "kinds.Kind": lambda: {field.name: getattr(kind(), field.name) for field in fields(kind())},
    "kinds.register": lambda: {"kind": kind(f"kind {next(NUMBERS)}")},
    "kinds.unregister": lambda: {"name": registered()},
    # theory
    "theory.correlation_map": lambda: {"activation": "tanh", "c": 0.5, "weight_var": 1.5},
    "theory.critical_weight_var": lambda: {"activation": "tanh"},
    "theory.edge_of_chaos": lambda: {"activation": "tanh"},
    "theory.expected_rank": lambda: {"width": 10, "depth": 5},
    "theory.fuss_catalan_density": lambda: {"x": 0.5, "depth": 3}, "theory.fuss_catalan_edge": lambda: {"depth": 3},
    "theory.fuss_catalan_moment": lambda: {"k": 2, "depth": 3},
    "theory.highway": lambda: {**LAWS, "gate_bias": -1.0},
    "theory.highway_limit": lambda: {"activation": "tanh", "gate_bias": -1.0, "weight_var": 1.0},
    "theory.highway_log_volume": lambda: {"activation": "tanh", "gate_bias": -1.0, "weight_var": 1.0},
    "theory.length_map": lambda: {"activation": "tanh", "q": 1.0, "weight_var": 1.0},
    "theory.log_input_gradient_norm": lambda: NORM, "theory.log_jacobian_norm": lambda: NORM,
    "theory.log_weight_gradient_norm": lambda: NORM, "theory.squared_jacobian_norm": lambda: NORM,
    "theory.mean_squared": lambda: NORM, "theory.second_moment": lambda: NORM,
    "theory.lyapunov_exponents": lambda: {"width": 5}, "theory.lyapunov_variance": lambda: {"width": 5},
    "theory.sum_log_singular_values": lambda: {"width": 5, "depth": 4},
    "theory.mean_field": lambda: {"activation": "tanh", "weight_var": 1.5},
    "theory.mean_log_square": lambda: {"log_bulk": np.array([-1.0]), "log_mode": np.array([0.5])},
    "theory.mean_mode": lambda: {"net": "highway", "activation": "relu", "depth": 5},
    "theory.plain": lambda: LAWS, "theory.residual_net": lambda: LAWS,
    "theory.product_log_singular_values": lambda: {"quantile": 0.5, "carry": np.full(3, 0.5), "gain": np.full(3, 0.5)},
    "theory.random_walk_drift": lambda: {"activation": "relu", "width": 10, "gain": 1.4},
    "theory.random_walk_gain": lambda: {"activation": "relu", "width": 10},
    "theory.residual_edge": lambda: {"depth": 3, "carry": 0.9, "gain": 0.1},
    "theory.residual_largest_exponent": lambda: {"width": 10, "carry": 0.9, "gain": 0.1},
    "theory.residual_lyapunov_exponents": lambda: {"quantile": 0.5, "carry": 0.9, "gain": 0.1},
    "theory.residual_squared_gain": lambda: {"quantile": 0.5, "carry": 0.9, "gain": 0.1},
    "theory.shattered_correlation": lambda: {"net": "plain", "depth": 5},
    "theory.spectrum_edge": lambda: {"activation": "linear", "depth": 3},
    "theory.spectrum_variance": lambda: {"activation": "linear", "depth": 3},
    "theory.suggest_gate_bias": lambda: {"depth": 10},
    # predictions
    "predictions.backward_slopes": lambda: {"flow": flow()}, "predictions.layer_gains": lambda: {"cell": cell_row()},
    "predictions.layer_theory": lambda: {"cell": cell_row()},
    "predictions.through_training": lambda: through_training(),
    "predictions.weight_var": lambda: {"init": "he_normal", "gain": None, "activation": "relu", "width": 10},
    "predictions.with_predicted_correlations": lambda: {"rows": correlations()},
    "predictions.with_predicted_moments": lambda: {"rows": measured("body_moments")},
    "predictions.with_predicted_norms": lambda: {"flow": flow()},
    "predictions.with_predicted_slopes": lambda: {"slopes": predictions.backward_slopes(flow()), "flow": flow()},
    "predictions.with_predicted_spectra": lambda: {"spectra": spectra(), "flow": flow()},
    "predictions.with_predicted_statistics": lambda: {"spectra": spectra(), "flow": flow()},
    # paper
    "paper.best_settings_claims": lambda: {"loss": searched()},
    "paper.class_claims": lambda: {"by_class": measured("gate_routing_by_class")},
    "paper.conv_table": lambda: {"frame": conv_runs()},
    "paper.figure_1_claims": lambda: {"loss": searched(), "top": 2, "deepest": measured("training_loss"),
                                      "trains_below": 0.1},
    "paper.lesion_claims": lambda: {"lesions": measured("lesions"), "samples": 30},
    "paper.routing_claims": lambda: {"routing": measured("gate_routing")},
    "paper.training_claims": lambda: {"training_loss": measured("training_loss"), "accuracy": measured("accuracy"),
                                      "item": "figure 2"},
    # plots
    "plots.condition_by_depth": lambda: {"frame": spectra()}, "plots.conv_training": lambda: {"frame": conv_runs()},
    "plots.each": lambda: {"frames": {"a": spectra()}, "name": "one", "plot": plots.spectrum_by_depth},
    "plots.area_table": lambda: {"areas": areas_of_kept()},
    "plots.best_settings": lambda: {"loss": searched()},
    "plots.figure_1": lambda: {"frame": searched()},
    "plots.gate_activity": lambda: {"frame": measure.gate_activity(highway(), x()).frame},
    "plots.gate_routing": lambda: {"routing": measured("gate_routing")},
    "plots.gate_routing_by_class": lambda: {"by_class": measured("gate_routing_by_class")},
    "plots.gradient_around_circle": lambda: {"frame": measured("gradient_around_circle", points=16)},
    "plots.gradient_by_layer": lambda: {"frame": flow()},
    "plots.gradient_correlation": lambda: {"frame": correlations()},
    "plots.gradient_correlation_by_depth": lambda: {"frame": correlations()},
    "plots.gradient_flow": lambda: {"frame": measure.gradient_flow(model(), x(), y()).frame},
    "plots.highway_edge": lambda: {"nets": kept_nets("highway map"),
                                   "edges": rates.highway_edge(kept_nets("highway map"))},
    "plots.highway_recursion": lambda: {"frame": measured("body_moments")},
    "plots.highway_spectrum": lambda: {"spectra": spectra(), "flow": flow()},
    "plots.lesions": lambda: {"frame": measured("lesions")},
    "plots.lyapunov_exponents": lambda: {"frame": spectra()},
    "plots.predicted_against_trained": lambda: {"scores": judged.scored(kept_nets("plain", "highway"))},
    "plots.rate_window": lambda: {"windows": rates.windows(kept_nets("plain", "highway"))},
    "plots.roc": lambda: {"scores": judged.scored(kept_nets("plain", "highway"))},
    "plots.save": lambda: {"figures": {"a": plots.spectrum_by_depth(spectra())}, "frames": {"a": flow()},
                           "folder": "figures"},
    "plots.slope_by_depth": lambda: {"frame": flow()}, "plots.slope_gap_by_depth": lambda: {"frame": flow()},
    "plots.spectra_through_training": lambda: {"statistics": predictions.through_training(**through_training())},
    "plots.spectrum": lambda: {"frame": measure.jacobian_spectrum(model(), x()).frame},
    "plots.spectrum_by_depth": lambda: {"frame": spectra(), "statistics": statistics()},
    "plots.spectrum_by_route": lambda: {"frame": measured("spectrum_by_route")},
    "plots.spectrum_statistic_by_depth": lambda: {"statistics": statistics(), "statistic": "mean_log"},
    "plots.trainability": lambda: trainability_frames(),
    "plots.trainability_map": lambda: {"frame": measured("accuracy").query("net == 'plain'").assign(gain=1.5)},
    "plots.training_curve": lambda: {"loss": measured("training_loss")},
    "plots.training_curves": lambda: {"loss": measured("training_loss")},
    "plots.training_heat_map": lambda: {"frame": fs.GradientMonitor.load(monitor_folder())},
    "plots.which_runs_train": lambda: {"loss": searched()},
}

# --- bad calls -------------------------------------------------------------------------------------------------------


def outcome(function: Callable, arguments: dict) -> str:
    """"fine", "refused", "raw: ...", or "hang"."""
    def late(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            found = function(**arguments)
            if isinstance(found, contextlib.AbstractContextManager):
                with found:
                    pass
    except TimeoutError:
        return "hang"
    except READABLE as error:
        return "refused" if "\n" not in str(error) else f"raw: several lines, {error}"
    except BaseException as error:
        return f"raw: {type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    return "fine"


def test_every_public_callable_has_a_good_call():
    """Of the table above, which also names nothing else."""
    assert set(GOOD) == set(CALLABLES)


@pytest.mark.slow
@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(CALLABLES))
def test_bad_arguments_are_refused_or_taken(tmp_path, monkeypatch, name):
    """Beside arguments that are right: the call ends within seconds, in a result or in a line that names the fault."""
    monkeypatch.chdir(tmp_path)
    function = CALLABLES[name]
    assert outcome(function, GOOD[name]()) == "fine"
    wrong = {}
    for argument in dict.fromkeys([*arguments_of(function), *(key for key in GOOD[name]() if key != "self")]):
        for words, bad in BAD.items():
            found = outcome(function, GOOD[name]() | {argument: bad()})
            if found not in ("fine", "refused"):
                wrong[f"{argument}={words}"] = found
    assert not wrong
