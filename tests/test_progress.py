"""The bar counts nets, moves within an epoch, and says beforehand what takes long; text where nobody watches."""

import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from tqdm import tqdm

import flowstudy as fs
from flowstudy import progress
from flowstudy.progress import NetBar, is_watched
from flowstudy.sweep import engine
from flowstudy.sweep.workers import forecast
from flowstudy.sweep.workers.tasks import VERSION, Task, load
from flowstudy.train import MNIST_RECIPE, conv_grid
from flowstudy.train.convolutional import runs

SMALL = {"width": 3, "train_samples": 40, "batch_size": 10}


def test_nets_are_nets(tmp_path, capsys):
    """6 nets of 3 epochs end as 6 of 6, in several groups, and when they are found in part in the store."""
    cells = fs.grid(depth=[2, 4], seed=range(3), epochs=3, **SMALL)
    fs.run(cells[:1], store=tmp_path, device="cpu", progress=False)
    fs.run(cells, store=tmp_path, device="cpu")
    said = re.split(r"[\r\n]+", capsys.readouterr().err.strip())
    assert said[0].startswith("training_loss:   0%|") and said[0].endswith(", 0 of 5 nets")
    assert said[-1].startswith("training_loss: 100%|") and said[-1].endswith(", 5 of 5 nets") and " left" in said[-1]


def test_the_bar_moves_within_epochs_and_by_cost(tmp_path, monkeypatch):
    """Every part of a task counts once, nets as nets, cost as net-epochs times layers; steps are less than an epoch."""
    bars, steps = [], []

    class Watched(NetBar):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            bars.append(self)

        def advance(self, nets: float, cost: float) -> None:
            steps.append((nets, cost))
            super().advance(nets, cost)

    monkeypatch.setattr(engine, "NetBar", Watched)
    monkeypatch.setattr("flowstudy.train.loop.Run.first_segment", 1)
    fs.run(fs.grid(depth=[2, 4], seed=range(3), epochs=2, **SMALL), store=tmp_path, device="cpu", progress=False)
    nets, costs = (sum(column) for column in zip(*steps, strict=True))
    assert nets == pytest.approx(6) and costs == pytest.approx(3 * 2 * (2 + 4)) and bars[0].bar.total == 36
    assert min(nets for nets, _ in steps if nets) < 3 / 2   # three nets, half of their epochs


def test_text_where_a_notebook_runs_by_itself_and_a_widget_where_it_is_watched(monkeypatch):
    """A terminal has no IPython kernel; papermill and nbconvert run cells that nobody can answer."""
    assert not is_watched() and isinstance(progress.progress_bar(total=1, disable=True), tqdm)

    def in_notebook(**content):
        shell = SimpleNamespace(kernel=object(), get_parent=lambda: {"content": content})
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
        return is_watched()

    monkeypatch.setattr(progress, "find_spec", lambda _name: object())
    assert in_notebook(allow_stdin=True) and not in_notebook(allow_stdin=False) and not in_notebook()
    monkeypatch.setattr(progress, "find_spec", lambda _name: None)
    assert not in_notebook(allow_stdin=True)   # no ipywidgets: text, without a warning
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert not is_watched()


def task(*cells: fs.Cell) -> Task:
    return Task(cells, "nowhere", (("table", None, {}),), "cpu", VERSION)


@pytest.mark.usefixtures("annotations_unchecked")   # stand-ins for tasks and recipes
def test_what_takes_long_is_told_before_it_starts(monkeypatch):
    """Worked by hand; at the limit of a minute it is told, below it and where timing fails nothing is."""
    shallow = fs.grid(depth=2, seed=range(5), epochs=15, **SMALL)
    deep = fs.grid(depth=4, seed=range(5), epochs=30, **SMALL)[:5]
    monkeypatch.setattr(forecast, "seconds_per_update", lambda *_args: 10.0)
    tasks = [task(*shallow), task(*deep)]
    assert forecast.forecast(tasks, load) == ""
    monkeypatch.setattr(forecast, "LONG", 100)
    # the largest: 30 epochs of 4 updates, 10 s each, 1200 s; the other has a quarter of its layers x updates
    assert forecast.forecast(tasks, load) == "about 0:25:00 expected"
    # side by side .75 of that, but never less than the largest alone
    assert forecast.forecast(tasks, load, side_by_side=True) == "about 0:20:00 expected"
    assert forecast.forecast(tasks * 2, load, side_by_side=True) == "about 0:37:30 expected"
    monkeypatch.setattr(forecast, "WORTH", 1500)
    assert forecast.forecast(tasks, load) == "about 0:25:00 expected"
    monkeypatch.setattr(forecast, "WORTH", 1501)
    assert forecast.forecast(tasks, load) == ""
    monkeypatch.setattr(forecast, "seconds_per_update", lambda *_args: 1 / 0)
    assert forecast.forecast(tasks, load) == ""


def test_an_update_is_timed_on_copies():
    """The stack is as it was, and the time is positive."""
    from flowstudy.sweep.cells_to_nets import stack_of
    from flowstudy.sweep.looks.in_training import settings_of
    from flowstudy.train.loop import seconds_per_update

    cells = fs.grid(depth=3, seed=range(2), epochs=1, **SMALL)
    data = load("digits", 40, torch.device("cpu"))
    nets = stack_of(cells, data)
    before = {name: value.clone() for name, value in nets.state.items()}
    assert seconds_per_update(nets, data, settings_of(cells, data, "float32")) > 0
    assert all(value.equal(before[name]) for name, value in nets.state.items())


@pytest.mark.usefixtures("annotations_unchecked")   # stand-ins for tasks and recipes
def test_a_study_of_several_recipes_has_one_bar(monkeypatch):
    """Its length is all the epochs of all of them."""
    lengths = []
    monkeypatch.setattr(runs, "progress_bar", lambda **options: lengths.append(options["total"]) or tqdm(disable=True))
    monkeypatch.setattr(runs, "load_images", lambda *_args, **_options: None)
    monkeypatch.setattr(runs, "train_each", lambda grid, _data, recipe, _store, _bar: pd.DataFrame(
        {"n": [len(grid) * recipe.epochs]}))
    recipes = [replace(MNIST_RECIPE, epochs=epochs) for epochs in (3, 5)]
    done = runs.train_conv_study({"digits": ["A"], "mnist": ["A", "B"]}, ["plain"], range(2), recipes, size=32)
    assert lengths == [done["n"].sum()] == [(len(conv_grid(["A"], ["plain"], range(2))) * 3) * 8]


@pytest.mark.parametrize("asked, speaks", [({}, True), ({"progress": True}, True), ({"progress": False}, False)])
def test_convolutional_nets_have_a_bar_unless_it_is_declined(asked, speaks, monkeypatch, capsys):
    data = load("digits", 40, torch.device("cpu"))
    monkeypatch.setattr(runs, "load_images", lambda *_args, **_options: data)
    monkeypatch.setattr(runs, "train_each", lambda *_args: pd.DataFrame({"epoch": [1]}))
    for train in (lambda: runs.train_conv_nets(conv_grid(["mnist_16"], ["plain"], [0]), data, MNIST_RECIPE, **asked),
                  lambda: runs.train_conv_study({"digits": ["mnist_16"]}, ["plain"], [0], [MNIST_RECIPE], size=28,
                                                **asked)):
        train()
        assert ("convolutional nets" in capsys.readouterr().err) == speaks
