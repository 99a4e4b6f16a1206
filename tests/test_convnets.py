"""Training by the authors' recipes: schedules, runs that survive kills, nets that diverge."""

import contextlib
import math
import socket
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from flowstudy.data import Dataset, load_dataset
from flowstudy.data.augment import INPUTS
from flowstudy.nets import ConvNet, initialize_as_authors, mnist_conv_net
from flowstudy.paper.conv_nets import CIFAR_RATE, MNIST_RATE, PUBLISHED, conv_table
from flowstudy.plots import conv_training
from flowstudy.plots.message import message_of
from flowstudy.plots.style import NETS
from flowstudy.train import (
    CIFAR_RECIPE,
    MNIST_RECIPE,
    Recipe,
    conv_grid,
    load_images,
    train_conv,
    train_conv_nets,
    train_conv_study,
)
from flowstudy.train.convolutional import runs as conv_runs
from flowstudy.train.convolutional.recipe import share_classified
from flowstudy.train.convolutional.sgd import nesterov_sgd

RECIPE = replace(MNIST_RECIPE, epochs=4, drops=(2,), batch_size=20, crop=True)


def data(samples: int = 50) -> Dataset:
    """Labels that a net can tell: the brighter row."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(10, (samples,), generator=generator)
    x = torch.rand(samples, 1, 28, 28, generator=generator) / 2
    x[torch.arange(samples), 0, 4 + 2 * y] += 0.5
    return Dataset("made up", x, y, x[:20], y[:20], 10)


@pytest.fixture(autouse=True)
def exact_convolutions() -> Iterator[None]:
    """On a GPU: float32 throughout, and the same bits each time."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


def net(seed: int = 0) -> ConvNet:
    return initialize_as_authors(mnist_conv_net(4), seed)


def test_schedules_are_the_papers():
    """Rates by epoch of both solver files: steps at 60,000 and 120,000 of 180,000, and 100,000, 150,000 and 175,000."""
    mnist = [MNIST_RECIPE.rate(epoch) for epoch in (0, 99, 100, 199, 200, 299)]
    cifar = [CIFAR_RECIPE.rate(epoch) for epoch in (0, 199, 200, 299, 300, 349, 350, 399)]
    assert mnist == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4], rel=1e-12)
    assert cifar == pytest.approx([2.5e-2] * 2 + [2.5e-3] * 2 + [2.5e-4] * 2 + [2.5e-5] * 2, rel=1e-12)
    assert (MNIST_RECIPE.epochs, CIFAR_RECIPE.epochs) == (300, 400)
    assert (MNIST_RECIPE.learning_rate, CIFAR_RECIPE.learning_rate) == (MNIST_RATE, CIFAR_RATE)


def test_an_epoch_is_its_steps_written_out(device):
    """Without dropout and crops: batches in the order of the seed, the last one smaller, loss weighted by samples."""
    mine, slow, recipe = net().eval().to(device), net(), replace(RECIPE, crop=False, epochs=1)
    for module in (*mine.modules(), *slow.modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    ready = INPUTS[recipe.inputs](data())
    history = train_conv(mine, data().to(device), recipe, seed=7)
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
        torch.testing.assert_close(p.cpu(), q, rtol=0, atol=1e-6)  # memory layout changes the order of summation
    assert history.loss == pytest.approx([sum(losses) / 50], rel=1e-5)
    right = (slow.eval()(ready.x_test).argmax(1) == ready.y_test).double().mean().item()
    assert history.test_accuracy == [right] == [share_classified(mine.cpu(), ready.x_test, ready.y_test)]


class Counting(torch.nn.Module):
    """A net without dropout that Python has a part in: `way` says which."""

    def __init__(self, way: str):
        super().__init__()
        self.net, self.way, self.calls = net(), way, 0
        self.readout = self.net.readout
        for module in self.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        self.register_buffer("seen", torch.zeros(()))
        if way == "hook":
            self.readout.register_forward_hook(self.count)

    def count(self, *_: object) -> None:
        self.calls += 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.way == "replaced buffer":
            self.seen = self.seen + 1
        elif self.way == "buffer":
            self.seen += 1
        elif self.way == "waits" and x.max() > 0:
            self.calls += 1
        return self.net(x)


@pytest.mark.parametrize("way", ["hook", "replaced buffer", "buffer", "waits"])
def test_a_net_that_needs_the_host_is_trained_step_by_step(way, device):
    """A CUDA graph would not call it; buffers that are changed in place are the graph's too."""
    recipe, ended = replace(RECIPE, crop=False), {}
    for place in ("cpu", device):
        mine = Counting(way).to(place)
        ended[str(place)] = train_conv(mine, data().to(place), recipe, seed=7), mine
    (here, on_host), (there, other) = ended["cpu"], ended[str(device)]
    assert there.loss == pytest.approx(here.loss, rel=1e-5) and there.test_accuracy == here.test_accuracy
    assert (other.seen.item(), other.calls) == (on_host.seen.item(), on_host.calls)


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_killed_run_ends_with_the_same_bits(after, device, tmp_path):
    """Killed after any epoch, the rate dropped or not: weights, losses and accuracies of the whole run, dropout and
    crops among them; the process's own random state stays out of it."""
    whole, samples = net().to(device), data().to(device)
    history = train_conv(whole, samples, RECIPE, seed=5)
    done: list[int] = []

    def tick() -> None:
        done.append(1)
        if len(done) == after:
            raise Killed

    with pytest.raises(Killed):
        train_conv(net().to(device), samples, RECIPE, seed=5, checkpoint=tmp_path / "run.pt", seconds=0.0, tick=tick)
    torch.manual_seed(99)
    resumed, ticks = net().to(device), []
    assert train_conv(resumed, samples, RECIPE, seed=5, checkpoint=tmp_path / "run.pt",
                      tick=lambda: ticks.append(1)) == history
    assert len(ticks) == RECIPE.epochs - after
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_finished_run_leaves_its_result_alone(tmp_path):
    """Neither the state before it, nor what a killed writer left: also where it was killed after its last write."""
    def kept() -> set[str]:
        return {path.name for path in tmp_path.iterdir()}

    history = train_conv(net(), data(), RECIPE, seed=5, checkpoint=tmp_path / "run.pt", seconds=0.0)
    assert kept() == {"run.pt"}
    (tmp_path / "run.pt.before").write_bytes(b"earlier")
    (tmp_path / f".run.pt.{socket.gethostname()}.{2**22 + 1}.0123abcd.tmp").write_bytes(b"half")
    assert train_conv(net(), data(), RECIPE, seed=5, checkpoint=tmp_path / "run.pt") == history
    assert kept() == {"run.pt"}


def test_another_run_does_not_take_the_file(tmp_path):
    """Another seed, recipe, start or number of samples is another run: its checkpoint is set aside, with a warning."""
    recipe = replace(RECIPE, epochs=1, crop=False)
    runs = [(0, 0, recipe, 20), (3, 0, recipe, 20), (3, 1, recipe, 20), (3, 1, replace(recipe, momentum=0.5), 20),
            (3, 1, replace(recipe, momentum=0.5), 10)]  # each differs from the one before in one thing
    for number, (seed, start, how, samples) in enumerate(runs):
        told = pytest.warns(UserWarning, match="belongs to another run") if number else contextlib.nullcontext()
        with told:
            history = train_conv(net(start), data(samples), how, seed=seed, checkpoint=tmp_path / "run.pt")
        assert history == train_conv(net(start), data(samples), how, seed=seed)


def test_training_leaves_the_process_its_random_state():
    """Order, crops and dropout come from the run's own seed."""
    trained, samples = net(), data(20)
    state = torch.random.get_rng_state()
    train_conv(trained, samples, replace(RECIPE, epochs=1), seed=5)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_an_accuracy_is_of_all_samples_however_many_go_through_at_once(monkeypatch):
    samples, trained = data(20), net()
    right = (trained.eval()(samples.x_test).argmax(1) == samples.y_test).double().mean().item()
    monkeypatch.setattr("flowstudy.train.convolutional.recipe.EVALUATION_BATCH", 7)
    assert share_classified(trained, samples.x_test, samples.y_test) == right > 0


def test_a_diverged_net_is_a_result(tmp_path):
    """It ends where its loss is not finite, and says so; again when it is asked for again."""
    recipe = replace(RECIPE, learning_rate=1e30)
    for _ in range(2):
        history = train_conv(net(), data(), recipe, checkpoint=tmp_path / "run.pt")
        assert history.diverged == len(history.loss) - 1 == 0
        assert not math.isfinite(history.loss[-1]) and math.isnan(history.test_accuracy[-1])


def test_runs_are_kept_and_do_not_depend_on_each_other(tmp_path):
    """A run alone is the same run among others; what the store has is not trained again; losses fall."""
    recipe = Recipe("pixels_over_256", 0.02, (), 8, batch_size=10)
    runs = conv_grid(["mnist_16"], ["highway", "plain"], [0, 3])
    frame = train_conv_nets(runs, data(), recipe, store=tmp_path, progress=False)
    ends = frame.groupby(["net", "block", "seed"])["loss"]
    assert list(ends.groups) == sorted(runs) and (ends.last() < ends.first()).all()
    alone = train_conv_nets(runs[-1:], data(), recipe, progress=False)
    assert alone.equals(frame.tail(8).reset_index(drop=True))
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt")}
    assert len(written) == len(runs)
    assert train_conv_nets(runs, data(), recipe, store=tmp_path, progress=False).equals(frame)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt")} == written


def test_several_data_sets_and_recipes_are_one_frame(monkeypatch):
    """Each part is what its own call gives; a name that does not exist is found before anything trains."""
    loaded = []

    def images(name: str, size: int, **options: object) -> Dataset:
        loaded.append(name)
        return replace(data(), name=name)

    monkeypatch.setattr(conv_runs, "load_images", images)
    recipes = [replace(RECIPE, epochs=1, learning_rate=rate) for rate in (0.01, 0.001)]
    frame = train_conv_study({"one": ["mnist_16"], "two": ["mnist_16"]}, ["plain"], iter([0, 1]), recipes,
                             size=28, progress=False)
    assert loaded == ["one", "two"]
    parts = [train_conv_nets(conv_grid(["mnist_16"], ["plain"], [0, 1]), images(name, 28), recipe, progress=False)
             for name in ("one", "two") for recipe in recipes]
    assert frame.equals(pd.concat(parts, ignore_index=True))
    assert frame["learning_rate"].tolist() == [0.01, 0.01, 0.001, 0.001] * 2
    loaded.clear()
    with pytest.raises(ValueError, match=r"got 'mnist_64'"):
        train_conv_study({"one": ["mnist_16"], "two": ["mnist_64"]}, ["plain"], [0], recipes, size=28)
    assert loaded == []


def test_enlarged_digits_are_the_same_images():
    """8 x 8 to 28 x 28: linear between the pixels' centres, first along rows, then along columns (numpy's interp)."""
    small, large = load_dataset("digits"), load_images("digits", 28, train_samples=5, device="cpu")
    assert large.x_train.shape == (5, 1, 28, 28) and large.x_test.shape == (len(small.x_test), 1, 28, 28)
    centres = (np.arange(28) + 0.5) * 8 / 28 - 0.5
    slow = small.x_train[:5].numpy()
    for axis in (2, 3):
        slow = np.apply_along_axis(lambda line: np.interp(centres, np.arange(8), line), axis, slow)
    np.testing.assert_allclose(large.x_train, slow, rtol=0, atol=1e-6)


def test_grey_images_for_nets_that_want_colours():
    grey, coloured = (load_images("digits", 32, channels=c, train_samples=5, device="cpu") for c in (None, 3))
    assert torch.equal(coloured.x_train, grey.x_train.repeat(1, 3, 1, 1))
    assert torch.equal(coloured.x_test, grey.x_test.repeat(1, 3, 1, 1))


@pytest.mark.parametrize("there, asked, rule", [(3, 1, "must be 3"), (3, 4, "must be 3"), (1, 0, "must be at least 1")])
def test_channels_that_cannot_be_made_are_refused(monkeypatch, there, asked, rule):
    x, y = torch.zeros(2, there, 8, 8), torch.zeros(2, dtype=torch.int64)
    monkeypatch.setattr(conv_runs, "load_dataset", lambda name, device: Dataset(name, x, y, x, y, 10))
    with pytest.raises(ValueError, match=rf"^load_images: `channels` {rule} for made_up, got {asked}\."):
        load_images("made_up", 8, channels=asked, device="cpu")


def results(dataset: str = "mnist") -> pd.DataFrame:
    """Two seeds of a highway net, and a plain one that diverged."""
    rows = [("mnist_16", "highway", seed, 38_986, epoch, 1 / epoch, accuracy)
            for seed, last in ((0, 0.993), (1, 0.995)) for epoch, accuracy in ((1, 0.9), (2, last))]
    rows.append(("mnist_16", "plain", 0, 37_586, 1, math.nan, math.nan))
    columns = ["net", "block", "seed", "parameters", "epoch", "loss", "test_accuracy"]
    return pd.DataFrame(rows, columns=columns).assign(dataset=dataset, learning_rate=0.01)


def test_table_has_the_last_epoch_beside_the_paper():
    """Mean and standard deviation of the last epoch; nothing published for plain nets, nor for other data."""
    highway, plain = conv_table(results()).to_dict("records")
    assert highway["ours"] == pytest.approx(99.4) and highway["paper"] == 99.4 and highway["item"] == "table 1"
    assert "mean of 2 seeds, standard deviation 0.14, after epoch 2" in highway["note"]
    assert math.isnan(plain["ours"]) and math.isnan(plain["paper"]) and "1 diverged" in plain["note"]
    assert conv_table(results("digits"))["paper"].isna().all()
    assert conv_table(results().assign(learning_rate=0.001))["paper"].isna().all()


def test_figure_shows_every_run_and_the_papers_error():
    """A colour for each block, and the published error of that net as a line."""
    loss, error = conv_training(results()).axes
    highway, plain = NETS["highway"], NETS["plain"]
    assert [line.get_color() for line in loss.lines[:3]] == [highway, highway, plain]
    assert 100 - PUBLISHED["table 1", "mnist", "mnist_16"] in [line.get_ydata()[0] for line in error.lines]
    assert len(conv_training(results("digits")).axes[1].lines) == 4
    both = conv_training(pd.concat([results(), results("digits")]))
    assert [len(ax.lines) for ax in both.axes] == [4, 5, 4, 4] and "digits" in both.axes[3].get_title()


def test_figure_says_how_long_each_twin_was_trained_where_they_differ():
    """Of each run its own last epoch."""
    frame = results()
    plain = frame[frame["block"] == "plain"]
    longer = pd.concat([frame[frame["block"] == "highway"],
                        *[plain.assign(epoch=epoch, loss=1.0, test_accuracy=0.9 + epoch / 100) for epoch in (1, 2, 3)]])
    said, alike = (message_of(conv_training(rows)).replace("\N{NO-BREAK SPACE}", " ")
                   for rows in (longer, longer[longer["epoch"] < 3]))
    assert said.endswith("0.6 % with gates after 2 epochs and 7 % without after 3 epochs.")
    assert alike.endswith("0.6 % with gates and 8 % without.")


def test_unknown_nets_are_refused():
    with pytest.raises(ValueError, match=r"conv_grid: `net\[0\]` must be one of mnist_8, .*, got 'mnist_64'\."):
        conv_grid(["mnist_64"], ["plain"], [0])
