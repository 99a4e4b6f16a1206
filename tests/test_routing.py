"""How trained gates route: lesions in one pass are lesions one by one, and each claim is the number it says."""

import numpy as np
import pandas as pd
import pytest
import torch
from cases import CLASSES, FEATURES
from torch import nn
from torch.nn.utils import parametrizations
from torch.testing import assert_close

from flowstudy import plots
from flowstudy.measure import gate_activity, lesion, lesion_losses
from flowstudy.nets import HighwayBlock, HighwayNet, initialize
from flowstudy.paper import claims
from flowstudy.sweep import grid, run

SAMPLES = 1203  # more than one chunk, and an uneven last one


def trained_like(activation: str = "tanh", depth: int = 7) -> tuple[HighwayNet, torch.Tensor, torch.Tensor]:
    """A net whose layers all matter: open gates, large weights."""
    net = initialize(HighwayNet(FEATURES, 9, depth, CLASSES, activation, gate_bias=0.0), "he_normal", seed=1, gain=2.0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, FEATURES, generator=generator)
    return net, x, torch.randint(CLASSES, (SAMPLES,), generator=generator)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("depth", [2, 7])
def test_all_lesions_in_one_pass_are_lesions_one_by_one(activation, depth, monkeypatch):
    """The same errors, to the sample, and the same loss to float64's rounding, as closing one layer after the other:
    of samples that go through in parts of 5, the last one smaller."""
    assert SAMPLES % 5
    monkeypatch.setattr("flowstudy.measure.lesions.CHUNK", 5)
    net, x, y = trained_like(activation, depth)
    net, x = net.double(), x.double()
    error, loss = lesion_losses(net, x, y)
    assert len(error) == depth
    for row, layer in enumerate([None, *range(2, depth + 1)]):
        with lesion(net, [] if layer is None else layer), torch.no_grad():
            logits = net(x)
        assert error[row].item() == (logits.argmax(-1) != y).double().mean().item()
        assert loss[row].item() == pytest.approx(nn.functional.cross_entropy(logits, y).item(), rel=1e-12)
    assert loss.unique().numel() == depth


def test_closed_layers_are_not_missed():
    """Where all gates are closed every lesion leaves the net as it is; where one is, that lesion: to rounding, as
    neighbours in one product may be summed in another order."""
    net, x, y = trained_like()
    net.blocks[2].set_gate_bias(-torch.inf)  # layer 4
    _, loss = lesion_losses(net.double(), x.double(), y)
    assert_close(loss[3], loss[0], rtol=1e-13, atol=0)
    assert ((loss[[1, 2, 4, 5, 6]] - loss[0]).abs() > 1e-6 * loss[0]).all()
    net.set_gate_bias(-torch.inf)
    _, loss = lesion_losses(net, x.double(), y)
    assert_close(loss, loss[:1].expand(7), rtol=1e-13, atol=0)


class Doubled(HighwayBlock):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("change", [
    lambda net: setattr(net.blocks[1], "__class__", Doubled),
    lambda net: net.blocks[1].register_forward_hook(lambda _module, _args, output: output * 2),
    lambda net: net.blocks[1].affine.register_forward_hook(lambda _module, _args, output: output * 2),
    lambda net: parametrizations.weight_norm(net.blocks[1].affine),
    lambda net: net.register_forward_hook(lambda _module, _args, output: output * 2),
])
def test_other_nets_lesions_are_refused(change):
    """A net that does not compute what the one pass over all lesions computes gets a line, not numbers."""
    net, x, y = trained_like()
    change(net)
    with pytest.raises(ValueError, match=r"^lesion_losses: `net` must be a HighwayNet of HighwayBlocks"):
        lesion_losses(net, x, y)


def test_rows_are_the_measurements_of_each_net(tmp_path):
    """What `run` stores after training is gate_activity's and lesion_losses' of the net as it is then."""
    cells = grid(net="highway", depth=4, width=6, gate_bias=[-1.0, -3.0], seed=range(2), epochs=1, train_samples=50)
    wanted = ["gate_routing", "gate_routing_by_class", "lesions"]
    frames = run(cells, measure=wanted, store=tmp_path, progress=False)
    untrained = run(grid(net="highway", depth=4, width=6, gate_bias=-1.0, train_samples=50), measure="gate_routing",
                    store=tmp_path, progress=False)
    assert (untrained["trained_gate_bias"] == untrained["gate_bias"]).all()
    routing = frames["gate_routing"]
    assert (routing["trained_gate_bias"] != routing["gate_bias"]).any()
    assert routing.groupby("cell").size().unique() == [3 * 6]
    assert frames["gate_routing_by_class"].groupby(["cell", "layer", "unit"]).size().unique() == [10]
    assert frames["lesions"].groupby("cell")["layer"].apply(list).map(tuple).unique().tolist() == [(0, 2, 3, 4)]
    with pytest.raises(ValueError, match=r"^run: `net` must be 'highway' .* to measure lesions, got 'plain'"):
        run(grid(net="plain", depth=4, width=6), measure="lesions", store=tmp_path, progress=False)


def routing_frame(layers: int = 20, units: int = 4) -> pd.DataFrame:
    places = pd.MultiIndex.from_product([range(2, layers + 2), range(units)], names=["layer", "unit"])
    rows = places.to_frame(index=False)
    return rows.assign(cell="a", depth=layers + 1, activation="tanh", dataset="digits", epochs=1, gate_bias=-2.0,
                       trained_gate_bias=-2.0 - 0.1 * rows["layer"], activity=0.3,
                       single_activity=np.where(rows["unit"] == 0, 0.9, 0.1),
                       single_output=np.minimum(rows["layer"], 6))


def test_claims_are_the_numbers_they_say():
    """All biases fell by a tenth of the layer's number; one unit in four is open; outputs stop at layer 6."""
    found = claims.routing_claims(routing_frame()).set_index("quantity")["ours"]
    assert found["share of gate biases that fell in training"] == 1
    assert found["mean change of the gate biases"] == pytest.approx(-0.1 * np.mean(range(2, 22)))
    assert found["share of one sample's gates above 0.5"] == 0.25
    assert found["share of the change of a sample's block outputs in the first 15 layers"] == 1
    assert found["rank correlation over layers of depth and mean gate bias"] == pytest.approx(-1)
    assert np.isnan(found["rank correlation over layers of mean gate bias and mean activity"])


@pytest.mark.parametrize("power, early", [(1, 13 * 3), (2, 13 * 9)])
def test_share_of_change_is_of_the_steps_up_to_layer_15(power, early):
    """Layers 2 to 21: steps of 3 to layers 3..15, of 1 to layers 16..21, the sign of no account."""
    steps = np.array([3.0] * 13 + [-1.0] * 6)
    rows = routing_frame().assign(single_output=np.repeat(np.cumsum([0, *steps]), 4))
    kind = {1: "change", 2: "squared change"}[power]
    found = claims.routing_claims(rows).set_index("quantity").loc[
        f"share of the {kind} of a sample's block outputs in the first 15 layers"]
    assert found["ours"] == pytest.approx(early / (early + 6))
    assert found["note"].startswith("holds")


def test_lesion_and_class_claims():
    layers = [0, *range(2, 51)]
    error = [0.01 if layer == 0 else 0.5 if layer <= 15 else 0.0101 if layer < 50 else 0.0099 for layer in layers]
    found = claims.lesion_claims(pd.DataFrame({"cell": "a", "layer": layers, "error": error}), 60_000)
    ours = found.set_index("quantity")["ours"]
    assert ours["share of layers whose lesion adds less than 0.10% to the error"] == pytest.approx(35 / 49)
    assert ours["share of layers whose lesion adds nothing at all to the error"] == pytest.approx(1 / 49)
    assert ours["mean error without one of layers 2 to 15"] == pytest.approx(0.5)
    assert found["note"].str.startswith("holds here: early layers matter").sum() == 1
    by_class = pd.DataFrame({"layer": layers[1:], "difference": [1.0 if layer <= 15 else 0.1 for layer in layers[1:]]})
    found = claims.class_claims(by_class)
    assert found["ours"].tolist() == pytest.approx([1.0, 14 / (14 + 3.5)])
    assert found["note"].iloc[0].startswith("holds") and "no share" in found["note"].iloc[1]
    small = by_class.assign(difference=np.where(by_class["layer"] <= 15, 0.05, 1.0))  # early ones do not show
    assert claims.class_claims(small)["note"].iloc[0].startswith("does not hold")


def test_a_lesion_claim_that_does_not_hold_says_so_and_few_samples_have_a_wide_margin():
    """Late layers that matter as early ones do; 100 samples, of which 10 % are wrong: two binomial standard errors."""
    frame = pd.DataFrame({"cell": "a", "layer": [0, *range(2, 51)], "error": [0.1] + [0.5] * 49})
    found = claims.lesion_claims(frame, 100)
    assert found["note"].str.startswith("does not hold here: early layers matter").sum() == 1
    wide = 2 * np.sqrt(0.1 * 0.9 / 100)
    assert found["quantity"].str.contains(f"less than {wide:.2%}", regex=False).sum() == 1


def test_claims_on_training_are_means_of_the_last_epoch_and_join_to_one_table():
    """Two nets that learnt for three epochs: no number of the authors' beside them, as there is after 400 of MNIST by
    nets of a depth that their tables have; the rows of several tables are counted through."""
    curve = pd.DataFrame({"cell": list("aabb"), "epoch": [0, 3, 0, 3], "loss": [2.3, 0.5, 2.3, 0.25]}).assign(
        net="highway", depth=50, dataset="mnist")
    whole, accuracy = curve.replace({"epoch": {3: 400}}), pd.DataFrame({"test_accuracy": [0.5, 1.0]})
    for frame, paper in ((whole, 6.8e-6), (whole.assign(dataset="digits"), None), (whole.assign(depth=30), None)):
        assert claims.training_claims(frame, accuracy, "figure 2")["paper"].dropna().tolist() == [paper] * bool(paper)
    found = claims.training_claims(curve, pd.DataFrame({"test_accuracy": [0.5, 1.0]}), "figure 2")
    assert found["ours"].tolist() == [0.375, 0.75] and found["paper"].isna().all()
    joined = claims.concat([found, found.iloc[:1]])
    assert joined.index.tolist() == [0, 1, 2] and joined["ours"].tolist() == [0.375, 0.75, 0.375]


def test_pictures_show_every_layer_and_unit():
    routing = routing_frame()
    figure = plots.gate_routing(routing)
    assert [ax.get_title() for ax in figure.axes[:4]] == [title for title, *_ in plots.routing.ROUTING.values()]
    drawn = figure.axes[0].collections[0].get_array()
    assert_close(torch.tensor(np.asarray(drawn)), torch.tensor(routing.pivot(
        index="layer", columns="unit", values="trained_gate_bias").to_numpy()))
    frame = pd.DataFrame({"cell": "a", "depth": 4, "activation": "tanh", "gate_bias": -2.0, "layer": [0, 2, 3, 4],
                          "error": [0.1, 0.5, 0.2, 0.1], "dataset": "digits"})
    line, intact = plots.lesions(frame).axes[0].lines
    assert line.get_xdata().tolist() == [2, 3, 4] and line.get_ydata().tolist() == pytest.approx([50, 20, 10])
    assert intact.get_ydata()[0] == pytest.approx(10)


def test_gates_of_a_class_differ_from_all():
    """The differences, weighted by the size of the classes, add up to nothing: float64 rounding."""
    net, x, y = trained_like()
    by_class = gate_activity(net, x, y).by_class
    weight = by_class["class"].map(pd.Series(y.numpy()).value_counts())
    sums = (by_class["difference"] * weight).groupby([by_class["layer"], by_class["unit"]]).sum()
    assert sums.abs().max() < 1e-10


def test_two_layers_are_enough(tmp_path):
    """The first is plain; the one highway layer is looked at, and closed."""
    cells = grid(net="highway", depth=2, width=5, train_samples=30)
    routing = run(cells, measure="gate_routing", store=tmp_path, device="cpu", progress=False)
    closed = run(cells, measure="lesions", store=tmp_path, device="cpu", progress=False)
    assert set(routing["layer"]) == {2} and list(closed["layer"]) == [0, 2]
