"""A short trial: each learning rate learns as a plain PyTorch loop does, and nobody else notices."""

import copy
import math
import random
import sys
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from cases import CLASSES, FEATURES, Awkward, assert_same, batch, build, fingerprint
from torch import Tensor, nn
from torch.nn import functional as F

from flowstudy.trainability.trials.optimizers import OPTIMIZERS
from flowstudy.trainability.trials.race import Clock
from flowstudy.trainability.trials.rates import USUAL_RATES
from flowstudy.trainability.trials.trial import Trial, orders, run_trial

SAMPLES, BATCH, STEPS = 100, 16, 24
# float32 against float32 in another order: 24 steps of roundings of 6e-8 in the weights, which a large rate amplifies.
ROUNDING = 1e-4

PYTORCH = {
    "sgd": torch.optim.SGD, "momentum": partial(torch.optim.SGD, momentum=0.9),
    "adam": torch.optim.Adam, "adamw": torch.optim.AdamW,
}
GOOD_RATE = {"sgd": 0.3, "momentum": 0.03, "adam": 0.003, "adamw": 0.003}


def learnable(samples: int = SAMPLES) -> tuple[Tensor, Tensor]:
    """The label is the largest of the first five features."""
    x, _ = batch(samples)
    return x, x[:, :CLASSES].argmax(1)


def small_net() -> nn.Module:
    return build("HighwayNet-tanh-L9")


def batch_norm_net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(FEATURES, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 20), nn.BatchNorm1d(20),
                         nn.ReLU(), nn.Linear(20, CLASSES))


def dropout_net() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(FEATURES, 20), nn.ReLU(), nn.Dropout(0.2), nn.Linear(20, CLASSES))


def tried(model: nn.Module, x: Tensor, y: Tensor, loss="cross_entropy", optimizer: str = "sgd", **settings) -> Trial:
    settings = {"steps": STEPS, "batch_size": BATCH} | settings
    return run_trial("try", model, x, y, loss, optimizer=optimizer, **settings)


def plain_loop(model: nn.Module, x: Tensor, y: Tensor, optimizer: str, rate: float, steps: int = STEPS,
               warm_up: int = 0) -> tuple[float, float]:
    """Loss and accuracy after the same batches, as anyone would write it."""
    model = copy.deepcopy(model).train()
    steppers = PYTORCH[optimizer](model.parameters(), lr=rate)
    order, looked_at = orders(len(x), BATCH, steps, 0)
    for step, index in enumerate(order):
        for group in steppers.param_groups:
            group["lr"] = rate * min(1, (step + 1) / warm_up) if warm_up else rate
        steppers.zero_grad()
        F.cross_entropy(model(x[index]), y[index]).backward()
        steppers.step()
    with torch.no_grad():
        outputs = torch.cat([model(x[index]) for index in looked_at])
    targets = y[looked_at.flatten()]
    return F.cross_entropy(outputs, targets).item(), (outputs.argmax(1) == targets).double().mean().item()


# --- it learns as PyTorch does ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("warm_up", [0, 10])
@pytest.mark.parametrize("optimizer", PYTORCH)
@pytest.mark.parametrize("net, can_stack", [(small_net, True), (batch_norm_net, False)])
def test_each_rate_learns_as_a_plain_loop_does(net, can_stack, optimizer, warm_up):
    """Two rates at once, and one alone: the loss is that of torch.optim on the same batches, to rounding."""
    model, (x, y), rate = net(), learnable(), GOOD_RATE[optimizer]
    expected, share = plain_loop(model, x, y, optimizer, rate, warm_up=warm_up)
    alone = tried(model, x, y, optimizer=optimizer, rates=[rate], warm_up=warm_up)
    both = tried(model, x, y, optimizer=optimizer, rates=[rate, rate / 1000], warm_up=warm_up)
    assert both.stacked is can_stack and not alone.stacked
    assert expected < 0.9 * alone.loss_at_start
    for trial in (alone, both):
        assert trial.best.learning_rate == rate and trial.best.steps == STEPS
        assert math.isclose(trial.best.loss, expected, rel_tol=ROUNDING)
        assert math.isclose(trial.best.accuracy, share, abs_tol=1e-9)


@pytest.mark.parametrize("optimizer", PYTORCH)
def test_stacked_learns_as_one_after_the_other(optimizer, monkeypatch):
    """On the whole grid but its wildest rates, where rounding grows without bound."""
    model, (x, y), rates = small_net(), learnable(), USUAL_RATES[optimizer][:6]
    stacked = tried(model, x, y, optimizer=optimizer, rates=rates)
    monkeypatch.setattr(sys.modules[run_trial.__module__], "can_stack", lambda *_: False)
    apart = tried(model, x, y, optimizer=optimizer, rates=rates)
    assert stacked.stacked and not apart.stacked
    pd.testing.assert_frame_equal(stacked.frame, apart.frame, rtol=ROUNDING)


def test_loss_and_accuracy_at_the_start_are_those_of_the_model():
    """On the samples that are looked at; a learning rate of 0 keeps them."""
    model, (x, y) = small_net(), learnable()
    trial = tried(model, x, y, rates=[0.0])
    index = orders(SAMPLES, BATCH, STEPS, 0)[1].flatten()
    assert len(index) == len(index.unique()) == SAMPLES // BATCH * BATCH
    output = model(x[index])
    for loss, share in ((trial.loss_at_start, trial.accuracy_at_start), (trial.best.loss, trial.best.accuracy)):
        assert math.isclose(loss, F.cross_entropy(output, y[index]).item(), rel_tol=1e-6)
        assert math.isclose(share, (output.argmax(1) == y[index]).double().mean().item())


def test_batches_are_whole_epochs_in_new_orders():
    """Every sample once before any a second time, and another seed another order."""
    order, _ = orders(10, 4, 5, seed=3)
    flat = order.flatten()
    assert order.shape == (5, 4) and sorted(flat[:10].tolist()) == sorted(flat[10:].tolist()) == list(range(10))
    assert not torch.equal(flat[:10], flat[10:])
    assert not torch.equal(order, orders(10, 4, 5, seed=4)[0])


def test_token_losses_and_squared_errors_learn():
    """Outputs (sample, class, token) with labels (sample, token); and targets that are no classes."""
    x, _ = batch(SAMPLES)
    torch.manual_seed(0)
    tokens = nn.Sequential(nn.Linear(FEATURES, 6), nn.Unflatten(1, (3, 2)))
    trial = tried(tokens, x, (x[:, :2] > 0).long(), optimizer="adam")
    assert trial.best.loss < 0.5 * trial.loss_at_start and trial.best.accuracy > 0.8
    line = tried(nn.Linear(FEATURES, 1), x, x.sum(1, keepdim=True).double(), loss="mse")
    assert line.best.loss < 0.1 * line.loss_at_start and math.isnan(line.best.accuracy)
    own = tried(nn.Linear(FEATURES, 1), x, x.sum(1, keepdim=True), loss=lambda output, y: (output - y).abs().mean())
    assert own.best.loss < 0.5 * own.loss_at_start and math.isnan(own.accuracy_at_start)


# --- which rates go on -----------------------------------------------------------------------------------------------


def go_on(losses: dict[float, float], count: int) -> dict[float, float]:
    """The `count` lowest losses, and what is within 5 % of the lowest."""
    finite = {rate: loss for rate, loss in losses.items() if math.isfinite(loss)}
    cut = max(sorted(finite.values())[:count][-1], 1.05 * min(finite.values()))
    return {rate: loss for rate, loss in finite.items() if loss <= cut}


@pytest.mark.parametrize("net", [small_net, batch_norm_net, dropout_net])
def test_halving_leaves_a_rate_as_it_is_alone(net):
    """Who goes on follows from trials of one rate, whose losses at a quarter, a half and the end are the race's."""
    model, (x, y) = net(), learnable()
    trial = tried(model, x, y, optimizer="momentum")
    running, last = list(USUAL_RATES["momentum"]), {}
    for steps, count in ((6, 4), (12, 2), (24, 8)):
        losses = {rate: tried(model, x, y, optimizer="momentum", rates=[rate], steps=steps).frame.loss[0]
                  for rate in running}
        last |= {rate: (steps, loss) for rate, loss in losses.items()}
        running = list(go_on(losses, count))
    for row in trial.frame[~trial.frame.diverged].itertuples():
        steps, loss = last[row.learning_rate]
        assert row.steps == steps and math.isclose(row.loss, loss, rel_tol=ROUNDING)
    assert trial.complete and set(trial.frame.steps[~trial.frame.diverged]) == {6, 12, 24}


def test_rates_that_are_level_all_go_on():
    """Four rates at which nothing happens: none is ahead, all make all steps."""
    trial = tried(small_net(), *learnable(), rates=[0.0, 1e-9, 0.0, 1e-9])
    assert (trial.frame.steps == STEPS).all() and trial.complete


@pytest.mark.parametrize("net, stacked", [(small_net, True), (dropout_net, False)])
def test_a_rate_that_diverges_is_data(net, stacked):
    """It leaves at once, its neighbours go on; the squared loss of 1e20 times too long a step is infinite."""
    x, y = learnable()
    trial = tried(net(), x, F.one_hot(y, CLASSES).float(), loss="mse", rates=[1e20, 0.03])
    assert trial.stacked is stacked
    assert trial.frame.diverged.tolist() == [True, False] and math.isnan(trial.frame.loss[0])
    assert trial.frame.steps[0] < 3 and trial.frame.steps[1] == STEPS
    assert trial.best.learning_rate == 0.03 and trial.best.loss < trial.loss_at_start


def test_where_all_diverge_there_is_no_best():
    """Also at the start: a model that puts out infinity makes no step."""
    class Infinite(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * math.inf

    trial = tried(Infinite(FEATURES, CLASSES), *learnable())
    assert trial.best is None and trial.frame.diverged.all() and (trial.frame.steps == 0).all()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_net_that_sees_nothing_stays_at_chance(optimizer):
    """All inputs alike, labels in equal shares: no rate gets below ln C, the entropy of the labels, on all samples."""
    y = torch.arange(SAMPLES) % CLASSES
    trial = tried(small_net(), torch.ones(SAMPLES, FEATURES), y, optimizer=optimizer, batch_size=SAMPLES, steps=40)
    assert trial.best.loss == pytest.approx(math.log(CLASSES), abs=0.05)
    assert trial.best.loss > math.log(CLASSES) - 1e-6


# --- the time ---------------------------------------------------------------------------------------------------------


def test_no_time_leaves_everything_out():
    """No step is made, every row says so, and the losses are those of the start."""
    trial = tried(small_net(), *learnable(), seconds=0.0)
    assert not trial.complete and trial.frame.left_out.all() and (trial.frame.steps == 0).all()
    assert (trial.frame.loss == trial.loss_at_start).all()


@pytest.mark.parametrize("seconds, left_out", [(12.0, [True, True]), (50.0, [False, True])])
@pytest.mark.parametrize("net", [small_net, batch_norm_net])
def test_time_that_runs_out_leaves_the_rest_out(net, seconds, left_out, monkeypatch):
    """The clock stops it after some steps: what was reached is that of a trial of so many steps."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(sys.modules[run_trial.__module__], "LOOKED_AT", BATCH)  # which no limit makes fewer
    monkeypatch.setattr(Clock, "taken", lambda _clock: float(next(ticks)))
    model, (x, y) = net(), learnable()
    trial = tried(model, x, y, optimizer="momentum", seconds=seconds, rates=[0.001, 0.1])
    assert not trial.complete and trial.frame.left_out.tolist() == left_out
    for row in trial.frame.itertuples():
        assert 0 < row.steps < STEPS
        alone = tried(model, x, y, optimizer="momentum", rates=[row.learning_rate], steps=row.steps)
        assert math.isclose(row.loss, alone.best.loss, rel_tol=ROUNDING)


def test_expected_seconds_are_told_before_the_rest_starts(capsys):
    tried(small_net(), *learnable(), seconds=1000.0, progress=True)
    told = capsys.readouterr().err
    assert "s expected for 24 steps at 8 learning rates (" in told and "gets ahead), of at most 1000 s\n" in told
    assert "24/24" in told
    tried(small_net(), *learnable())
    assert capsys.readouterr().err == ""


# --- nobody else notices ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_the_model_and_the_random_states_are_left_alone(training, annotations_unchecked):
    """Running statistics, dropout, a frozen layer, a hook, a gradient; beartype draws from Python's random state."""
    torch.manual_seed(3)
    model, before_random = Awkward().train(training), random.getstate()
    before, flushed = fingerprint(model), sys.float_info.min * 0.5
    tried(model, *learnable(), optimizer="adam")
    assert_same(before, fingerprint(model))
    assert random.getstate() == before_random
    assert sys.float_info.min * 0.5 == flushed > 0   # numbers below the smallest normal one count again


class Drawing(nn.Linear):
    """Draws from torch's, numpy's and Python's generators."""

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.rand(()) + random.random() + np.random.rand()  # noqa: NPY002  the global state is what it draws from
        return super().forward(x) * noise


@pytest.mark.parametrize("net", [small_net, dropout_net, lambda: Drawing(FEATURES, CLASSES)])
def test_a_seed_decides_everything(net, device, annotations_unchecked):
    """Twice the same, on a CPU to the last bit, whatever the global states are; another seed differs."""
    model, (x, y) = net().to(device), (part.to(device) for part in learnable())
    before = random.getstate(), fingerprint(model)
    first = tried(model, x, y)
    assert random.getstate() == before[0]
    assert_same(before[1], fingerprint(model))
    torch.manual_seed(99), random.seed(99), np.random.seed(99)  # noqa: NPY002  the states that must not matter
    pd.testing.assert_frame_equal(first.frame, tried(model, x, y).frame, atol=0,
                                  rtol=0 if device == "cpu" else ROUNDING)
    assert not first.frame.loss.equals(tried(model, x, y, seed=1).frame.loss)


def test_frozen_weights_stay_and_inference_mode_does_not_matter():
    """A frozen body with a trainable read-out is the read-out on fixed features."""
    model, (x, y) = small_net(), learnable()
    model.requires_grad_(False).readout.requires_grad_(True)
    features = []
    model.readout.register_forward_pre_hook(lambda _module, args: features.append(args[0]))
    model(x)
    expected = tried(copy.deepcopy(model.readout), features[0], y, rates=[0.3]).best.loss
    model.readout._forward_pre_hooks.clear()
    with torch.inference_mode():
        trial = tried(model, x * 1, y * 1, rates=[0.3, 0.001])
    assert trial.stacked and math.isclose(trial.best.loss, expected, rel_tol=ROUNDING)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change, error, text", [
    ({"y": None}, ValueError, "try: `y` must be given for a trial, got None. Training needs targets."),
    ({"optimizer": "rmsprop"}, ValueError, "try: `optimizer` must be one of sgd, momentum, adam, adamw, got 'rmsprop'"),
    ({"y": torch.zeros(3, dtype=torch.int64)}, ValueError, "`y` must have one target per sample, got (3,) for 100"),
    ({"y": torch.full((SAMPLES,), 7)}, ValueError, "`y` must hold labels from 0 to 4"),
    ({"steps": 0}, ValueError, "`steps` must be an integer of at least 1, got 0."),
    ({"seconds": -1.0}, ValueError, "`seconds` must be at least 0, got -1.0. None is no limit."),
    ({"rates": [0.1, math.nan]}, ValueError, "`rates[1]` must be at least 0 and finite, got nan"),
    ({"loss": lambda output, _y: output.mean(1)}, ValueError, "`loss` must return a tensor of shape (), got (16,)"),
    ({"model": small_net().requires_grad_(False)}, ValueError, "`model` must have a parameter that requires"),
])
def test_refusals_say_what_to_do(change, error, text, annotations_unchecked):
    x, y = learnable()
    arguments = {"model": small_net(), "x": x, "y": y} | change
    with pytest.raises(error) as caught:
        tried(**arguments)
    assert text in str(caught.value)


def test_every_optimizer_has_rates():
    assert OPTIMIZERS.keys() == USUAL_RATES.keys() == PYTORCH.keys()
