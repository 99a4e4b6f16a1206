"""Training by the authors' recipes: schedules, runs that survive kills, nets that diverge."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from flowstudy.nets import ConvNet, initialize_as_authors, mnist_conv_net
from flowstudy.train import Dataset
from flowstudy.train.augment import INPUTS
from flowstudy.train.convnets import CIFAR_RECIPE, MNIST_RECIPE, Recipe, accuracy, train_conv, train_conv_seeds
from flowstudy.train.sgd import nesterov_sgd

RECIPE = replace(MNIST_RECIPE, epochs=4, drops=(2,), batch_size=20, crop=True)


def data(samples: int = 50) -> Dataset:
    """Labels that a net can tell: the brighter row."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(10, (samples,), generator=generator)
    x = torch.rand(samples, 1, 28, 28, generator=generator) / 2
    x[torch.arange(samples), 0, 4 + 2 * y] += 0.5
    return Dataset("made up", x, y, x[:20], y[:20], 10)


def net(seed: int = 0) -> ConvNet:
    return initialize_as_authors(mnist_conv_net(4), seed)


def test_schedules_are_the_papers():
    """Rates by epoch of both solver files: steps at 60,000 and 120,000 of 180,000, and 100,000, 150,000 and 175,000."""
    mnist = [MNIST_RECIPE.rate(epoch) for epoch in (0, 99, 100, 199, 200, 299)]
    cifar = [CIFAR_RECIPE.rate(epoch) for epoch in (0, 199, 200, 299, 300, 349, 350, 399)]
    assert mnist == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4], rel=1e-12)
    assert cifar == pytest.approx([2.5e-2] * 2 + [2.5e-3] * 2 + [2.5e-4] * 2 + [2.5e-5] * 2, rel=1e-12)
    assert (MNIST_RECIPE.epochs, CIFAR_RECIPE.epochs) == (300, 400)


def test_an_epoch_is_its_steps_written_out():
    """Without dropout and crops: batches in the order of the seed, the last one smaller, loss weighted by samples."""
    mine, slow, recipe = net().eval(), net(), replace(RECIPE, crop=False, epochs=1)
    for module in (*mine.modules(), *slow.modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    ready = INPUTS[recipe.inputs](data())
    history = train_conv(mine, data(), recipe, seed=7)
    optimizer = nesterov_sgd(slow, recipe.learning_rate)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(7 * 1_000_003))
    losses = []
    for index in order.split(20):
        loss = F.cross_entropy(slow(ready.x_train[index]), ready.y_train[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses += [loss.item()] * len(index)
    for p, q in zip(mine.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)  # memory layout changes the order of summation
    assert history.loss == pytest.approx([sum(losses) / 50], rel=1e-5)
    right = (slow.eval()(ready.x_test).argmax(1) == ready.y_test).double().mean().item()
    assert history.test_accuracy == [right] == [accuracy(mine, ready.x_test, ready.y_test)]


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_killed_run_ends_with_the_same_bits(after, tmp_path):
    """Killed after any epoch, the rate dropped or not: weights, losses and accuracies of the whole run, dropout and
    crops among them; the process's own random state stays out of it."""
    whole = net()
    history = train_conv(whole, data(), RECIPE, seed=5)
    done: list[int] = []

    def tick() -> None:
        done.append(1)
        if len(done) == after:
            raise Killed

    with pytest.raises(Killed):
        train_conv(net(), data(), RECIPE, seed=5, checkpoint=tmp_path / "run.pt", seconds=0.0, tick=tick)
    torch.manual_seed(99)
    resumed, ticks = net(), []
    assert train_conv(resumed, data(), RECIPE, seed=5, checkpoint=tmp_path / "run.pt",
                      tick=lambda: ticks.append(1)) == history
    assert len(ticks) == RECIPE.epochs - after
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_another_run_does_not_take_the_file(tmp_path):
    """Another seed, recipe or start is another run: its checkpoint is set aside, with a warning."""
    recipe = replace(RECIPE, epochs=1)
    train_conv(net(), data(), recipe, checkpoint=tmp_path / "run.pt")
    with pytest.warns(UserWarning, match="belongs to another run"):
        history = train_conv(net(1), data(), recipe, checkpoint=tmp_path / "run.pt")
    assert history == train_conv(net(1), data(), recipe)


def test_a_diverged_net_is_a_result(tmp_path):
    """It ends where its loss is not finite, and says so; again when it is asked for again."""
    recipe = replace(RECIPE, learning_rate=1e30)
    for _ in range(2):
        history = train_conv(net(), data(), recipe, checkpoint=tmp_path / "run.pt")
        assert history.diverged == len(history.loss) - 1 == 0
        assert not math.isfinite(history.loss[-1]) and math.isnan(history.test_accuracy[-1])


def test_it_learns_and_seeds_are_runs_of_their_own(tmp_path):
    """Rows per seed and epoch; a second call reads what the first has kept; losses fall."""
    recipe = Recipe("pixels_over_256", 0.02, (), 12, batch_size=10)
    frame = train_conv_seeds(lambda: mnist_conv_net(8), data(), recipe, [0, 3], tmp_path)
    assert frame.groupby("seed")["epoch"].max().to_dict() == {0: 12, 3: 12}
    first, last = (frame.groupby("seed")["loss"].nth(i).to_numpy() for i in (0, -1))
    assert (last < first).all()
    ticks: list[int] = []
    again = train_conv_seeds(lambda: mnist_conv_net(8), data(), recipe, [0, 3], tmp_path, tick=lambda: ticks.append(1))
    assert again.equals(frame) and not ticks
