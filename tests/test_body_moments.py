"""Moments of signals and Jacobians through the body: exact identities, a slow twin, theory beside them."""

import itertools
import math
import random
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from any_module import Of
from torch import nn
from torch.nn.utils import parametrizations

import flowstudy as fs
from flowstudy import plots, theory
from flowstudy.measure.body_moments import body_moments, two_inputs
from flowstudy.nets import HighwayBlock, PlainBlock
from flowstudy.plots.message import caption_of, number
from flowstudy.predictions.body import predicted_moments, with_predicted_moments
from flowstudy.torch_settings import one_thread

MOMENTS = ["q", "m", "c", "chi", "mean_squared", "P", "mean_squared_without_largest", "P_without_largest",
           "gradient_correlation"]


def body(net: str, activation: str, width: int, layers: int, scheme: str = "he_normal", *, gate_bias: float = -1.0,
         seed: int = 0, gain: float | None = None) -> nn.Sequential:
    def block() -> nn.Module:
        if net == "highway":
            return HighwayBlock(nn.Linear(width, 2 * width), activation, gate_bias)
        return PlainBlock(nn.Linear(width, width), activation)

    return fs.initialize(nn.Sequential(*(block() for _ in range(layers))), scheme, seed=seed, gain=gain)


# --- measured, exactly -----------------------------------------------------------------------------------------------


def twin(blocks: nn.Sequential, x: torch.Tensor) -> dict[str, float]:
    """Of the last layer, by autograd's Jacobians and svdvals; shares no code with the library."""
    def jacobians(function: nn.Module, at: torch.Tensor) -> np.ndarray:
        return np.stack([torch.autograd.functional.jacobian(function, one).numpy() for one in at])

    whole, last = jacobians(blocks, x), jacobians(blocks[-1], blocks[:-1](x))
    y, width = blocks(x).detach().numpy(), x.shape[1]
    squares = np.linalg.svd(whole[0], compute_uv=False)**2
    rest = squares[1:]
    return {"q": (y**2).mean(), "m": y.mean(), "c": y[0] @ y[1] / np.sqrt(y[0] @ y[0] * (y[1] @ y[1])),
            "chi": (last**2).sum() / (2 * width), "mean_squared": squares.mean(),
            "P": (squares**2).mean() / squares.mean()**2, "mean_squared_without_largest": rest.mean(),
            "P_without_largest": (rest**2).mean() / rest.mean()**2,
            "gradient_correlation": (whole[0] * whole[1]).sum() / np.sqrt((whole**2).sum((1, 2)).prod())}


@pytest.mark.parametrize(("net", "activation"), itertools.product(["highway", "plain"], ["tanh", "relu"]))
def test_moments_are_those_of_autograds_jacobians(net, activation):
    """Every layer, width 8, to rounding; the gradient correlation, from 40,000 directions, to 4.5 times 1/200.

    Were J of rank 1, it would be the sample correlation of that many pairs; otherwise it is of more.
    """
    blocks, x = body(net, activation, 8, 4).double(), two_inputs(8, 1.3, 0.2, 0.4, seed=1)
    frame = body_moments(blocks, x, probes=40_000)
    assert frame["layer"].tolist() == [1, 2, 3, 4]
    for layer, row in frame.iterrows():
        expected = twin(blocks[:layer + 1], x)
        for name in MOMENTS[:-1]:
            assert row[name] == pytest.approx(expected[name], rel=1e-9, abs=1e-12), name
        assert row["gradient_correlation"] == pytest.approx(expected["gradient_correlation"], abs=4.5 / 200)


class Doubled(PlainBlock):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Swapped(HighwayBlock):
    """The gate is open where its parent's is closed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, t = self.affine(x).chunk(2, -1)
        return torch.lerp(torch.tanh(h), x, torch.sigmoid(t))


class ScaledLinear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * super().forward(x)


def hooked(block: nn.Module) -> nn.Module:
    block.register_forward_hook(lambda _module, _args, output: output * output)
    return block


UNKNOWN = {
    "subclass": lambda: Doubled(nn.Linear(8, 8), "tanh"),
    "subclass of highway": lambda: Swapped(nn.Linear(8, 16), "tanh", -1.0),
    "subclass inside": lambda: PlainBlock(ScaledLinear(8, 8), "tanh"),
    "hook": lambda: hooked(PlainBlock(nn.Linear(8, 8), "tanh")),
    "weight norm": lambda: PlainBlock(parametrizations.weight_norm(nn.Linear(8, 8)), "tanh"),
    "layer norm": lambda: nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.ReLU(inplace=True)),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_a_layer_that_is_no_known_one_has_its_own_jacobian(kind):
    """What looks like a known layer and computes something else is measured as what it computes; x stays."""
    torch.manual_seed(0)
    blocks, x = nn.Sequential(*(UNKNOWN[kind]() for _ in range(3))).double(), two_inputs(8, 1.3, 0.2, 0.4, seed=1)
    before = x.clone()
    frame = body_moments(blocks, x)
    assert torch.equal(x, before)
    expected = twin(blocks, x)
    for name in MOMENTS[:-1]:
        assert frame.iloc[-1][name] == pytest.approx(expected[name], rel=1e-9, abs=1e-12), name


def test_closed_gates_are_the_identity():
    """T = 0 copies the signal and its gradient: nothing changes in any layer, exactly."""
    x = two_inputs(20, 2.0, 0.5, 0.3)
    frame = body_moments(body("highway", "tanh", 20, 5, gate_bias=-math.inf), x)
    assert frame[["chi", "mean_squared", "P"]].to_numpy() == pytest.approx(np.ones((5, 3)), abs=1e-12)
    assert frame[["q", "m", "c", "gradient_correlation"]].to_numpy() == pytest.approx(
        np.tile([2.0, 0.5, 0.3, 1.0], (5, 1)), abs=1e-12)


def test_moments_stay_in_range_where_the_jacobian_does_not():
    """Orthogonal linear layers of scale 1/2, 700 of them: m_1 = 4^-700 is below float64's range; P is 1 to rounding."""
    blocks = body("plain", "linear", 6, 700, "orthogonal", gain=0.5)
    frame = body_moments(blocks, two_inputs(6), every=300)
    assert frame["layer"].tolist() == [1, 300, 600, 700]
    assert frame["mean_squared"].tolist() == [pytest.approx(0.25, rel=1e-6), pytest.approx(4.0**-300, rel=1e-4),
                                              0.0, 0.0]
    assert frame["P"].to_numpy() == pytest.approx(np.ones(4), abs=1e-6)  # float32 weights, 700 of them at random
    assert frame["gradient_correlation"].to_numpy() == pytest.approx(np.ones(4))


def test_inputs_have_the_given_moments():
    """Mean square, mean and cosine of both, exactly; opposite vectors too."""
    for q, m, c in ((1.0, 0.0, 0.5), (2.0, 0.6, 0.5), (1.0, 0.0, -1.0), (0.7, -0.3, 1.0)):
        x = two_inputs(50, q, m, c, seed=3).numpy()
        assert (x**2).mean(1) == pytest.approx([q, q]) and x.mean(1) == pytest.approx([m, m])
        assert x[0] @ x[1] / 50 == pytest.approx(q * c)


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), one_thread():
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == before


DRAWS = {
    "torch": lambda: torch.rand(()),
    "numpy": lambda: torch.tensor(np.random.rand()),  # noqa: NPY002  the global state is what models draw from
    "random": lambda: torch.tensor(random.random()),
}


class RandomScale(nn.Module):
    """y = s x, s drawn in every call, in eval mode too."""

    def __init__(self, draw: Callable[[], torch.Tensor]):
        super().__init__()
        self.draw = draw

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.draw() * x


@pytest.mark.parametrize("source", DRAWS)
@pytest.mark.usefixtures("annotations_unchecked")  # they are checked on an item that `random` picks
def test_blocks_that_draw_are_measured_in_one_pass_of_theirs(source):
    """The Jacobian s I is that of the outputs s x, so that q grows by chi; layers draw on; the states stay."""
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    frame = body_moments([RandomScale(DRAWS[source]) for _ in range(4)], two_inputs(6, q=2.0))
    assert random.getstate() == states[0] and np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    # Two inputs of one q, each with a scale of its own: after the first layer they differ, and chi is a plain mean.
    assert frame["q"][0] == pytest.approx(2.0 * frame["chi"][0], rel=1e-12)
    assert frame["chi"].nunique() == 4


BAD = {
    "every": (lambda: body_moments(body("plain", "tanh", 5, 1), two_inputs(5), every=0), "`every` must be an integer"),
    "none": (lambda: body_moments(nn.Sequential(), two_inputs(5)), "`blocks` must hold at least one layer, got none"),
    "size": (lambda: body_moments([nn.Linear(5, 4)], two_inputs(5)), "`blocks` must be fully connected layers"),
    "images": (lambda: body_moments([nn.Conv2d(1, 1, 3)], two_inputs(5)), "`blocks` must be fully connected layers"),
    "tuple": (lambda: body_moments([nn.LSTM(5, 5)], two_inputs(5)), "`blocks` must be fully connected layers"),
    "wider": (lambda: body_moments([nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(4, 5))], two_inputs(5)),
              "got Sequential( (0): Linear(in_features=5"),
    "width": (lambda: two_inputs(2), "`width` must be at least 3, got 2"),
    "q": (lambda: two_inputs(5, q=1.0, m=1.0), "`q` must be finite and above m^2 = 1, got 1.0"),
    "c": (lambda: two_inputs(5, m=0.9, c=0.0), "`c` must be between 2 m^2 / q - 1 = 0.62 and 1, got 0.0"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_say_what_is_wrong(case):
    call, message = BAD[case]
    with pytest.raises(ValueError) as caught:
        call()
    assert message in str(caught.value) and "\n" not in str(caught.value)


# --- in a plan, beside theory ----------------------------------------------------------------------------------------


def run(cells: list[fs.Cell], store: object, **options: object) -> pd.DataFrame:
    return fs.run(cells, measure="body_moments", store=store, device="cpu", progress=False, **options)


def test_rows_are_those_of_each_net_alone(tmp_path):
    """Weights are drawn once for cells that share them: each row is still its own net's."""
    cells = fs.grid(seed=range(2), net="highway", depth=4, width=9, gate_bias=[-1.0, -3.0], init="glorot_normal")
    frame = run(cells, tmp_path, m0=0.2)
    for cell in cells:
        net = fs.HighwayNet(64, 9, 4, 10, "tanh", cell.gate_bias)
        fs.initialize(net, "glorot_normal", seed=cell.seed)
        own = body_moments(net.blocks, two_inputs(9, m=0.2, seed=cell.seed), seed=cell.seed)
        mine = frame[frame["cell"] == cell.key]
        np.testing.assert_array_equal(mine[["layer", *MOMENTS]].to_numpy(), own[["layer", *MOMENTS]].to_numpy())
    with pytest.raises(ValueError, match=r"^run: `epochs` must be 0 to measure body_moments, got 1. Leave it out"):
        run(fs.grid(net="plain", depth=3, width=9, epochs=1), tmp_path)


WIDTH, DEPTH = 300, 9
PLAN = [cell for net, activation, init, biases in (
    ("highway", "tanh", "glorot_normal", [-1.0, -3.0]), ("highway", "relu", "he_normal", [-2.0]),
    ("plain", "tanh", "glorot_normal", [None]), ("plain", "relu", "he_normal", [None]))
    for cell in fs.grid(seed=range(8), net=net, activation=activation, init=init, gate_bias=biases, depth=DEPTH,
                        width=WIDTH)]


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> pd.DataFrame:
    return run(PLAN, tmp_path_factory.mktemp("store"), every=4)


def test_wide_nets_agree_with_theory(measured):
    """|z| < 4.5 beyond an allowance of 2 layers / width of the prediction, the order of finite width; plain ReLU nets'
    P is biased by layers^2 / width as well (`theory.second_moment` has it exactly), m by the same share of sqrt(q)."""
    rows = with_predicted_moments(measured)
    assert (rows["standard_error"] > 0).all()
    meant = rows[rows["predicted"].notna()]
    assert set(meant["quantity"]) == set(MOMENTS)
    root = rows[rows["quantity"] == "q"].set_index(["net", "activation", "gate_bias", "layer"])["predicted"]**0.5
    for row in meant.itertuples():
        size = root[row.net, row.activation, row.gate_bias, row.layer] if row.quantity == "m" else row.predicted
        growth = (row.depth - 1 if row.net == "plain" and row.quantity == "P" else 2) * row.layer
        gap = abs(row.measured - row.predicted) - growth / WIDTH * abs(np.max(size))
        assert gap < 4.5 * row.standard_error, row


def test_predictions_stand_beside_what_they_predict(measured):
    """z by hand; of a ReLU net, theory speaks about all singular values but the largest."""
    rows = with_predicted_moments(measured)
    one = rows[(rows["gate_bias"] == -3) & (rows["layer"] == 8) & (rows["quantity"] == "chi")].iloc[0]
    own = measured[(measured["gate_bias"] == -3) & (measured["layer"] == 8)]["chi"]
    assert one["measured"] == pytest.approx(own.mean()) and one["standard_error"] == pytest.approx(own.sem())
    assert one["predicted"] == pytest.approx(theory.highway("tanh", 8, -3.0, 1.0)["chi"].iloc[-1])
    assert one["z"] == pytest.approx((own.mean() - one["predicted"]) / own.sem())
    relu = rows[(rows["gate_bias"] == -2) & (rows["layer"] == 8)].set_index("quantity")["predicted"]
    assert relu[["P", "mean_squared"]].isna().all()  # the outlier's are not predicted
    assert relu["P_without_largest"] == pytest.approx(theory.highway("relu", 8, -2.0, 2.0, 2.0)["P"].iloc[-1])


def test_predictions_of_known_nets(tmp_path):
    """Linear Gaussian layers: chi = 1, P = 1 + layer; chi = 2 where residual. Orthogonal gates have no theory here."""
    plan = fs.grid(net="plain", activation="linear", init="lecun_normal", depth=4, width=9)
    plan += fs.grid(net="residual", activation="linear", init="lecun_normal", depth=4, width=9)
    plan += fs.grid(net="highway", init="orthogonal", depth=4, width=9)
    rows = with_predicted_moments(run(plan, tmp_path))
    linear = rows[rows["net"] == "plain"].pivot(index="layer", columns="quantity", values="predicted")
    assert linear["chi"].to_numpy() == pytest.approx(np.ones(3)) and linear["P"].to_numpy() == pytest.approx([2, 3, 4])
    residual = rows[(rows["net"] == "residual") & (rows["quantity"] == "mean_squared")]
    assert residual["predicted"].to_numpy() == pytest.approx([2, 4, 8])
    assert rows.loc[rows["net"] == "highway", "predicted"].isna().all()


@pytest.mark.parametrize("net, activation, mode", [("residual", "relu", True), ("highway", "relu", True),
                                                   ("residual", "tanh", False), ("plain", "relu", False)])
def test_of_nets_with_a_mean_mode_all_singular_values_but_the_largest_are_predicted(net, activation, mode):
    """A kind that carries, and an activation with a mean: then, and only then, one value grows beyond the others."""
    cell = pd.Series({"net": net, "init": "he_normal", "gain": math.nan, "gate_bias": -2.0, "bias_var": 0.0, "depth": 5,
                      "activation": activation, "width": 9, "q0": 1.0, "m0": 0.5, "c0": 0.6})
    found = predicted_moments(cell).dropna(subset="predicted")["quantity"]
    spectral = {"mean_squared"} if net == "residual" else {"mean_squared", "P"}
    expected = {f"{name}_without_largest" for name in spectral} if mode else spectral
    assert {name for name in found if name.startswith(("mean_squared", "P"))} == expected


def test_recursion_figure_draws_theory_and_what_was_measured(measured):
    """Lines are predictions, dots means; the caption has the largest gap."""
    figure = plots.highway_recursion(measured[(measured["activation"] == "tanh")])
    rows = with_predicted_moments(measured[measured["activation"] == "tanh"])
    chi = rows[(rows["quantity"] == "chi") & (rows["gate_bias"] == -1)]
    ax = next(ax for ax in figure.axes if "gain" in ax.get_title())
    assert list(ax.lines[0].get_ydata()[[0, 3, 7]]) == list(chi["predicted"])
    assert list(ax.lines[1].get_ydata()) == list(chi["measured"])
    cosines = rows[rows["quantity"].isin(["c", "gradient_correlation"]) & rows["valid"]]
    largest = (cosines["measured"] - cosines["predicted"]).abs().max()
    assert f"off their lines by {number(largest)} at most in cosines" in caption_of(figure)


def test_spectrum_figure_divides_by_the_root_mean_square(tmp_path):
    """Closed gates: all singular values 1, predicted 1; relative to their rms they stay 1."""
    plan = fs.grid(net="highway", init="glorot_normal", gate_bias=-math.inf, depth=3, width=9)
    options = {"store": tmp_path, "device": "cpu", "progress": False}
    figure = plots.highway_spectrum(fs.run(plan, measure="jacobian_spectrum", **options),
                                    fs.run(plan, measure="gradient_flow", **options))
    raw, relative = figure.axes
    assert raw.lines[0].get_ydata() == pytest.approx(np.zeros(9), abs=1e-12)
    assert raw.lines[1].get_ydata() == pytest.approx([0, 0], abs=1e-12)
    assert relative.lines[0].get_ydata() == pytest.approx(np.zeros(9), abs=1e-12)


@pytest.mark.parametrize("dead", [lambda h: 0 * h, torch.Tensor.detach])
def test_behind_a_layer_without_a_jacobian_all_is_nan(dead):
    """J = 0: its mean square is 0 there, and what is made of its shape, or of J further on, is no number."""
    torch.manual_seed(0)
    blocks = [nn.Linear(6, 6), Of(lambda h: 1 + dead(h)), nn.Linear(6, 6)]
    frame = body_moments(blocks, torch.randn(2, 6)).set_index("layer")
    columns = ["P", "P_without_largest", "gradient_correlation"]
    assert frame["mean_squared"][2] == 0 and math.isnan(frame["mean_squared"][3])
    assert np.isfinite(frame.loc[1, columns]).all() and frame.loc[[2, 3], columns].isna().all(axis=None)
    assert np.isfinite(frame[["q", "m", "c"]]).all(axis=None)


@pytest.mark.parametrize("context", [torch.inference_mode, lambda: torch.device("meta")])
def test_the_context_of_the_call_does_not_matter(context):
    """Inside as outside."""
    torch.manual_seed(0)
    blocks, x = [nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6))], torch.randn(2, 6)
    with context():
        inside = body_moments(blocks, x)
    assert inside.equals(body_moments(blocks, x))
