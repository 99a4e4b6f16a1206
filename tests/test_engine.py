"""Running a plan: right rows in the plan's order, nothing computed twice, whole plans refused before work starts."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from pandas.testing import assert_frame_equal

from flowstudy.data import load_dataset
from flowstudy.measure import gradient_flow, jacobian_spectrum
from flowstudy.measure.gradients.statistics import STATISTICS
from flowstudy.nets import HighwayNet, PlainNet, initialize
from flowstudy.sweep import Cell, cells_to_nets, engine, grid, run
from flowstudy.sweep.cells import CELL_FIELDS
from flowstudy.sweep.looks import table as measurements
from flowstudy.train import RecordAt

SAMPLES = 40
SMALL = {"width": 5, "train_samples": SAMPLES, "batch_size": 16}
PLAN = grid(net=["highway", "plain"], depth=[3, 2], seed=range(3), epochs=2, **SMALL)
MEASURED = {
    "training_loss": ["epoch", "loss", "diverged"],
    "gradient_flow": ["layer", *STATISTICS],
    "jacobian_spectrum": ["sample", "rank", "log_singular_value"],
}


@pytest.fixture
def call(tmp_path):
    """`run` on the CPU into a store of this test's own, on few samples."""
    def small_run(cells, **options):
        samples = {} if options.get("measure", "training_loss") == "training_loss" else {"samples": 2}
        return run(cells, **({"store": tmp_path / "results", "device": "cpu", "progress": False} | samples | options))

    return small_run


@pytest.fixture
def computed(monkeypatch) -> list[Cell]:
    """The cells that a measurement was asked for, in order."""
    asked: list[Cell] = []

    def watch(measurement):
        @functools.wraps(measurement)  # with its signature, from which `run` takes the options
        def watched(moment, *arguments, **options):
            asked.extend(moment.cells)
            return measurement(moment, *arguments, **options)

        return watched

    for name, measurement in list(engine.MEASUREMENTS.items()):
        monkeypatch.setitem(engine.MEASUREMENTS, name, watch(measurement))
    return asked


def net_of(cell: Cell) -> torch.nn.Module:
    if cell.net == "plain":
        net = PlainNet(64, cell.width, cell.depth, 10, cell.activation)
    else:
        net = HighwayNet(64, cell.width, cell.depth, 10, cell.activation, cell.gate_bias)
    return initialize(net, cell.init, seed=cell.seed, gain=cell.gain)


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    data = load_dataset("digits")
    return data.x_train[:SAMPLES].flatten(1), data.y_train[:SAMPLES]


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", MEASURED)
def test_frame_is_tidy_and_in_the_plans_order(call, measure):
    """Every field of the cell, its key, then what was measured; cells in the plan's order whatever was grouped."""
    frame = call(PLAN, measure=measure)
    assert list(frame.columns) == ["cell", *MEASURED[measure], *CELL_FIELDS]
    assert frame["cell"].drop_duplicates().tolist() == [cell.key for cell in PLAN]
    first = MEASURED[measure][0]
    expected = {"training_loss": [0, 1, 2], "gradient_flow": [1, 2, 3], "jacobian_spectrum": [0] * 5 + [1] * 5}[measure]
    assert frame[frame["cell"] == PLAN[0].key][first].tolist() == expected


def test_loss_at_epoch_0_is_the_nets_own(call):
    """Before training the stored loss is the cross-entropy of the net that the cell describes: float32 rounding."""
    x, y = digits()
    frame = call(PLAN)
    for cell in PLAN:
        stored = frame[(frame["cell"] == cell.key) & (frame["epoch"] == 0)]["loss"].item()
        assert stored == pytest.approx(torch.nn.functional.cross_entropy(net_of(cell)(x), y).item(), rel=1e-5)


def test_measurements_at_initialisation_are_those_of_each_net(call):
    """With 0 epochs, rows are `gradient_flow`'s and `jacobian_spectrum`'s of the net built by hand."""
    plan = grid(net=["plain", "highway"], depth=3, seed=range(2), activation="relu", **SMALL)
    (x, y), flow, spectrum = digits(), call(plan, measure="gradient_flow", samples=7), call(
        plan, measure="jacobian_spectrum", samples=2, part="all")
    for cell in plan:
        mine = flow[flow["cell"] == cell.key].reset_index(drop=True)
        own = gradient_flow(net_of(cell), x[:7], y[:7]).frame
        assert_frame_equal(mine[MEASURED["gradient_flow"]], own[MEASURED["gradient_flow"]], rtol=1e-10)
        log_s = spectrum[spectrum["cell"] == cell.key]["log_singular_value"].to_numpy().reshape(2, 10)
        np.testing.assert_allclose(log_s, jacobian_spectrum(net_of(cell), x[:2]).log_singular_values, atol=1e-10)


@pytest.mark.parametrize("measure", ["training_loss", "gradient_flow"])
def test_rows_do_not_depend_on_how_many_nets_run_at_once(tmp_path, call, measure):
    """One net at a time, three, or all: the same rows, to float32's rounding grown over two epochs."""
    frames = [call(PLAN, measure=measure, nets_at_once=size, store=tmp_path / str(size)) for size in (1, 3, 20)]
    for frame in frames[1:]:
        assert_frame_equal(frame, frames[0], rtol=1e-4, atol=1e-6)


def test_rows_do_not_depend_on_the_activations_of_others(tmp_path, call):
    """Searches mix activations: trained in one stack, each cell's rows are to the last bit those of the cell alone."""
    plan = grid(net="highway", depth=3, activation=["tanh", "gelu", "relu"], seed=range(2), epochs=2, **SMALL)
    plan = plan[::2] + plan[1::2]  # no two of one activation beside each other
    assert len(engine.groups(plan, 20)) == 1
    frames = call(plan, measure=["training_loss", "gradient_flow", "jacobian_spectrum"])
    for cell in plan:
        alone = call([cell], measure=list(frames), store=tmp_path / cell.key)
        for measure, frame in frames.items():
            own = frame[frame["cell"] == cell.key].reset_index(drop=True)
            if measure == "training_loss":
                assert_frame_equal(own, alone[measure], check_exact=True)
            else:
                assert_frame_equal(own, alone[measure], rtol=1e-9, atol=1e-11)


def test_diverging_cell_is_a_row_like_others(call):
    """A cell that diverges is stored: nan from the epoch it is marked with; its neighbours are finite."""
    # linear: a ReLU net may die instead, with a finite loss
    plan = grid(net="plain", activation="linear", depth=3, learning_rate=[0.1, 1e6], momentum=0.0, epochs=3, **SMALL)
    frame = call(plan)
    tame, wild = (frame[frame["cell"] == cell.key] for cell in plan)
    assert tame["loss"].notna().all() and (tame["diverged"] == -1).all()
    first = wild["diverged"].iloc[0]
    assert first >= 1
    assert (wild["loss"].isna() == (wild["epoch"] >= first)).all()


# --- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", MEASURED)
def test_a_second_call_computes_nothing(call, computed, measure):
    """What is stored is read: the same frame, no measurement, no data set, whatever the order of the plan."""
    frame = call(PLAN, measure=measure)
    assert len(computed) == len(PLAN)
    computed.clear()
    assert_frame_equal(call(PLAN, measure=measure), frame, check_exact=True)
    backwards = call(PLAN[::-1], measure=measure)
    assert backwards["cell"].drop_duplicates().tolist() == [cell.key for cell in PLAN[::-1]]
    assert computed == []


def test_only_what_is_missing_is_computed(call, computed):
    """A longer plan computes its new cells alone; a cell that is listed twice is computed once."""
    call(PLAN[:4])
    computed.clear()
    call([*PLAN[2:7], *PLAN[2:7]])
    assert computed == PLAN[4:7]


def test_a_killed_run_goes_on_where_it_stopped(tmp_path, call, monkeypatch):
    """Stopped after two groups, then run again: the first groups are not computed again, and every bit is the same."""
    whole = call(PLAN, nets_at_once=2, store=tmp_path / "whole")
    measurement, done = measurements.training_loss, []

    def stopped(moment, data):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(moment.cells)
        return measurement(moment, data)

    monkeypatch.setitem(engine.MEASUREMENTS, "training_loss", stopped)
    with pytest.raises(KeyboardInterrupt):
        call(PLAN, nets_at_once=2)
    rest = []
    monkeypatch.setitem(engine.MEASUREMENTS, "training_loss",
                        lambda moment, data: rest.extend(moment.cells) or measurement(moment, data))
    assert_frame_equal(call(PLAN, nets_at_once=2), whole, check_exact=True)
    assert sorted(cell.key for cell in [*itertools.chain(*done), *rest]) == sorted(cell.key for cell in PLAN)


def test_measurements_and_options_do_not_mix(call, computed):
    """Another measurement or option is another result; a default that is spelt out is the same."""
    plan = PLAN[:2]
    few, more = (call(plan, measure="gradient_flow", samples=samples) for samples in (2, 3))
    assert not few["activation_mean"].equals(more["activation_mean"])
    assert_frame_equal(call(plan, measure="gradient_flow", samples=2), few, check_exact=True)
    body = call(plan, measure="jacobian_spectrum")
    assert_frame_equal(call(plan, measure="jacobian_spectrum", part="body"), body, check_exact=True)
    assert len(call(plan)) == 2 * 3
    assert computed == plan * 4


# --- plans that cannot be run ----------------------------------------------------------------------------------------

WRONG = {
    "one cell": (TypeError, Cell(), {}, r"`cells` must be a sequence of Cell, got one Cell\. Pass \[cell\]"),
    "nothing": (ValueError, [], {}, r"`cells` must hold at least one Cell, got none"),
    "not a cell": (TypeError, [Cell(), "plain"], {}, r"`cells` must be a sequence of Cell, got str at 1"),
    "measure": (ValueError, [Cell()], {"measure": "loss"}, r"`measure` must be one of training_loss, .*, got 'loss'"),
    "option": (TypeError, [Cell()], {"samples": 3}, r"training_loss takes precision, got `samples`"),
    "options": (TypeError, [Cell()], {"measure": "jacobian_spectrum", "sample": 3}, r".* takes .*, got `sample`"),
    "samples": (ValueError, [Cell()], {"measure": "gradient_flow", "samples": 0}, r"`samples` must be between 1 and"),
    "more samples": (ValueError, [Cell(), Cell(train_samples=50)], {"measure": "gradient_flow"},
                     r"`samples` must be between 1 and the training set's size, 50, got 100"),
    "part": (ValueError, [Cell()], {"measure": "jacobian_spectrum", "part": "bdy"},
             r"`part` must be one of all, body, got 'bdy'\. Did you mean 'body'"),
    "lesions of a plain net": (ValueError, [Cell(net="highway"), Cell()], {"measure": "lesions"},
                               r"`net` must be 'highway' with depth of at least 2 .*, got 'plain' of depth 10"),
    "gates of one layer": (ValueError, [Cell(net="highway", depth=1)], {"measure": ["accuracy", "gate_routing"]},
                           r"`net` must be 'highway' with depth of at least 2 .*, got 'highway' of depth 1"),
    "sample": (ValueError, [Cell(net="highway")], {"measure": "gate_routing", "sample": 1500},
               r"`sample` must be an integer from 0 to 1499, got 1500"),
    "precision": (ValueError, [Cell()], {"precision": "tf33"}, r"`precision` must be one of float32, tf32, got 'tf33'"),
    "two inputs": (ValueError, [Cell()], {"measure": "body_moments", "m0": "a"}, r"`m0` must be a finite number, got"),
    "at": (ValueError, [Cell(epochs=2)], {"measure": "accuracy", "at": RecordAt(epochs=(3,))},
           r"`at` must lie within every cell's training, got epoch 3 for one with `epochs` 2"),
    "device": (ValueError, [Cell()], {"device": "abacus"}, r"`device` must be 'auto' or a device that torch sees"),
    "no such gpu": (ValueError, [Cell()], {"device": "cuda:99"}, r"`device` must be 'auto' or .*got 'cuda:99'"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.usefixtures("annotations_unchecked")
def test_wrong_plans_are_refused_before_work_starts(tmp_path, monkeypatch, case):
    """One readable line; no net is built or trained, and no folder made."""
    kind, cells, options, message = WRONG[case]
    monkeypatch.setattr(cells_to_nets, "nets_of", lambda *_: pytest.fail("a net was built"))
    with pytest.raises(kind, match=f"^run: {message}") as caught:
        run(cells, **({"store": tmp_path / "results", "device": "cpu", "progress": False} | options))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "results").exists()


# --- the rest --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", MEASURED)
def test_progress_adds_up(call, monkeypatch, measure):
    """The bar ends at its total, of nets and of net-epochs times layers, for cells that train and cells that do not."""
    bars = []

    class Bar(engine.NetBar):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            bars.append(self)

    monkeypatch.setattr(engine, "NetBar", Bar)
    plan = [*PLAN[:4], *grid(depth=2, seed=range(2), **SMALL)]
    call(plan, measure=measure, progress=True)
    [bar] = bars
    assert bar.done == pytest.approx(bar.nets) == pytest.approx(6)
    cost = sum(2 * cell.depth for cell in PLAN[:4]) + 2 * 2
    assert bar.bar.n == pytest.approx(bar.bar.total) and bar.bar.total == cost


def test_groups_are_of_one_structure_and_size():
    """Groups partition the plan's cells, each of one structure and at most the asked size, in the plan's order."""
    plan = [*PLAN, *PLAN[:3], *grid(depth=7, seed=range(5), gate_bias=[-1.0, -2.0], net="highway")]
    groups = engine.groups(plan, 4)
    flat = [cell for group in groups for cell in group]
    assert sorted(cell.key for cell in flat) == sorted({cell.key for cell in plan})
    assert all(1 <= len(group) <= 4 and len({cell.structure for cell in group}) == 1 for group in groups)
    assert len(groups) == 4 + math.ceil(10 / 4)  # 4 structures of 3 cells, one of 10
