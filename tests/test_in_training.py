"""Looking at nets while they train: the same nets as in shorter runs, trained once, and nothing lost by a kill."""

import functools

import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal

from flowstudy.sweep import grid, run
from flowstudy.sweep.cells_to_nets import stack_of
from flowstudy.sweep.looks import in_training
from flowstudy.sweep.workers import memory, tasks
from flowstudy.train import Checkpoint, RecordAt, loop
from flowstudy.train.stacks.compiled.compiler import CHOICE
from flowstudy.train.stacks.fully_connected import StackedFullyConnected

SMALL = {"width": 5, "depth": 3, "train_samples": 120, "batch_size": 40, "learning_rate": 0.3}
PLAN = {**SMALL, "net": ["plain", "highway"], "seed": range(3)}


def compared(rows: pd.DataFrame, measured: str) -> pd.DataFrame:
    order = [name for name in ("net", "seed", "layer") if name in rows]
    return rows.sort_values(order)[measured].reset_index(drop=True)


@pytest.mark.parametrize("measure, column", [("gradient_flow", "log10_error_signal_norm"),
                                             ("accuracy", "train_accuracy")])
def test_a_moment_of_a_run_is_the_end_of_a_shorter_one(measure, column, tmp_path):
    """Rows at epochs 0, 1, 3 and updates 2, 9 (the last) say so; those at an epoch are a shorter run's, to the bit."""
    at = RecordAt(epochs=[0, 1, -1], steps=[2, 9])
    rows = run(grid(**PLAN, epochs=3), measure=measure, at=at, store=tmp_path, progress=False)
    assert sorted(set(zip(rows["step"], rows["epoch"], strict=True))) == [(0, 0), (2, 2 / 3), (3, 1), (9, 3)]
    for epochs in (0, 1, 3):
        alone = run(grid(**PLAN, epochs=epochs), measure=measure, store=tmp_path, progress=False)
        assert "step" not in alone
        then = rows[rows["epoch"] == epochs]
        assert compared(then, column).notna().any()
        assert compared(then, column).equals(compared(alone, column))


def test_a_mapping_says_when_as_well(tmp_path):
    """What a YAML file can hold is the same table as a RecordAt."""
    cells = grid(**SMALL, epochs=2)
    rows = run(cells, measure="accuracy", at=RecordAt(epochs=[0, 2]), store=tmp_path, progress=False)
    assert_frame_equal(run(cells, measure="accuracy", at={"epochs": [0, 2]}, store=tmp_path, progress=False), rows)
    assert len(list(tmp_path.glob("accuracy-*"))) == 1
    with pytest.raises(ValueError, match=r"^run: `at` must be a RecordAt"):
        run(cells, measure="accuracy", at=3, store=tmp_path)


@pytest.mark.parametrize("measure", ["gradient_flow", "accuracy"])
def test_nets_looked_at_in_parts_have_their_own_rows(measure, tmp_path, monkeypatch):
    """Three trained nets, looked at two at a time: each one's rows are those of a run of it alone."""
    cells, call = grid(**SMALL, seed=range(3), epochs=1), functools.partial(run, measure=measure, progress=False)
    alone = [call([cell], store=tmp_path / str(cell.seed)) for cell in cells]
    monkeypatch.setattr(in_training, "LOOKED_AT_ONCE", 2)
    assert_frame_equal(call(cells, store=tmp_path / "together"), pd.concat(alone, ignore_index=True))


def test_several_measurements_share_one_training(tmp_path, monkeypatch):
    """Each frame is that of a run of its own; every net makes its updates once; what is stored is not made again."""
    monkeypatch.setenv(CHOICE, "torch")
    steps, step = [], StackedFullyConnected.step
    monkeypatch.setattr(StackedFullyConnected, "step",
                        lambda nets, *batch: (steps.append(len(nets)), step(nets, *batch)))
    cells, at = grid(**PLAN, epochs=2), RecordAt(epochs=[0, 2])
    measures = ["training_loss", "gradient_flow", "jacobian_spectrum"]
    call = functools.partial(run, at=at, device="cpu", progress=False)  # a GPU replays steps without calling them
    frames = call(cells, measure=measures, samples=3, store=tmp_path / "one")
    assert sum(steps) == 6 * 2 * 3 and list(frames) == measures
    for measure, frame in frames.items():
        options = {} if measure == "training_loss" else {"at": at, "samples": 3}
        own = run(cells, measure=measure, store=tmp_path / "own", device="cpu", progress=False, **options)
        assert_frame_equal(own, frame)
    steps.clear()
    for measure in measures[1:]:
        assert_frame_equal(call(cells, measure=measure, samples=3, store=tmp_path / "one"), frames[measure])
    assert not steps


@pytest.mark.parametrize("measure, options, message", [
    (["training_loss", "body_moments"], {}, "must be of nets in training .*, got 'body_moments'"),
    (["training_loss", "accuracy"], {"samples": 3}, "none of training_loss, accuracy takes `samples`"),
    ([], {}, "must name at least one")])
def test_measurements_that_cannot_share_are_refused(measure, options, message, tmp_path):
    with pytest.raises((ValueError, TypeError), match=f"^run: .*{message}"):
        run(grid(**SMALL), measure=measure, store=tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_stacks_are_as_large_as_memory_allows(tmp_path, monkeypatch):
    """With room for two nets, groups of five train in parts, and the rows are the same."""
    cells = grid(**SMALL, seed=range(5), epochs=2)
    whole = run(cells, store=tmp_path / "whole", device="cpu", progress=False)
    one = memory.bytes_per_net(stack_of(cells[:1], tasks.load("digits", 120, torch.device("cpu"))),
                               tasks.load("digits", 120, torch.device("cpu")), 40)
    monkeypatch.setattr(memory, "free_bytes", lambda _device: 2.5 * one / memory.SHARE)
    assert_frame_equal(run(cells, store=tmp_path / "parts", device="cpu", progress=False), whole)
    assert len(list((tmp_path / "parts").glob("training_loss-*/*.parquet"))) == 3
    assert len(list((tmp_path / "whole").glob("training_loss-*/*.parquet"))) == 1


def test_memory_that_torch_holds_unused_is_free(monkeypatch):
    """Of 80 GB another process has 30 and torch 40, 25 of them unused: 10 + 25 are free."""
    for name, answer in {"mem_get_info": (10, 80), "memory_reserved": 40, "memory_allocated": 15}.items():
        monkeypatch.setattr(torch.cuda, name, lambda _device, answer=answer: answer)
    assert memory.free_bytes(torch.device("cuda")) == 35.0


class Stopped(BaseException):
    """As a signal would: no `except Exception` holds it up."""


@pytest.mark.parametrize("nets_at_once", [20, 1])
@pytest.mark.parametrize("measure, at", [("training_loss", None), ("gradient_flow", RecordAt(epochs=[0, 1, 2, 3]))])
def test_a_stopped_run_goes_on_in_the_middle_of_a_group(measure, at, nets_at_once, tmp_path, monkeypatch):
    """Rows are those of a run that was not stopped, fewer updates are made again than had been made, no checkpoint is
    left: also where the second run groups the cells otherwise, and cannot use it."""
    monkeypatch.setattr(loop, "SEGMENT", 0.0)
    monkeypatch.setattr(loop.Run, "first_segment", 1)
    options = {"measure": measure, "device": "cpu", "progress": False} | ({"at": at} if at else {})
    cells = grid(**PLAN, epochs=3)
    whole = run(cells, store=tmp_path / "whole", **options)
    save, saves = Checkpoint.save, []

    def save_and_stop(checkpoint: Checkpoint, state: dict) -> None:
        save(checkpoint, state)
        saves.append(state["done"])
        if len(saves) == 7:
            raise Stopped

    monkeypatch.setattr(Checkpoint, "save", save_and_stop)
    with pytest.raises(Stopped):
        run(cells, store=tmp_path / "cut", checkpoint_every=0.0, **options)
    assert sorted(path.suffix for path in (tmp_path / "cut" / "checkpoints").glob("*/*")) == [".before", ".pt"]
    steps, step = [], StackedFullyConnected.step
    monkeypatch.setattr(StackedFullyConnected, "step", lambda nets, *batch: (steps.append(1), step(nets, *batch)))
    monkeypatch.setattr(Checkpoint, "save", save)
    again = run(cells, store=tmp_path / "cut", nets_at_once=nets_at_once, **options)
    assert_frame_equal(again, whole)
    assert not list((tmp_path / "cut" / "checkpoints").glob("*/*"))
    if nets_at_once == 20:
        chunks = 2 * 1  # of the two groups; the first was stopped after 7 of its 9 updates
        assert len(steps) <= chunks * 2 * 9 - 7
