"""Every kind of net, and one made up in this file, works in all packages; parts that a kind lacks are declared."""

from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import flowstudy as fs
from flowstudy import names, predictions
from flowstudy.kinds import KINDS, Kind, register, unregister
from flowstudy.measure.models import layer_rules
from flowstudy.nets import ACTIVATIONS, initialize
from flowstudy.nets.fully_connected import FullyConnected
from flowstudy.nets.initialize import FORWARDS
from flowstudy.plots.style import with_family
from flowstudy.predictions import theories
from flowstudy.predictions.theories import BodyTheory
from flowstudy.train.stacks import fully_connected
from flowstudy.train.stacks.fully_connected import trains_by_hand


class ScaledBlock(nn.Module):
    """y = x / 2 + activation(affine(x))"""

    def __init__(self, affine: nn.Module, activation: str):
        super().__init__()
        self.affine, self.activation = affine, activation

    def forward(self, x: Tensor) -> Tensor:
        return x / 2 + ACTIVATIONS[self.activation](self.affine(x))


class ScaledNet(FullyConnected):
    def __init__(self, in_features: int, width: int, depth: int, out_features: int, activation: str):
        super().__init__(in_features, width, depth, out_features, activation,
                         lambda: ScaledBlock(nn.Linear(width, width), activation))


TOY = Kind(name="scaled", label="half residual", net=ScaledNet, block=ScaledBlock, width=12, gate_bias=None,
           stacked=None, jacobian=None, theory=None)


@pytest.fixture(autouse=True)
def toy() -> Iterator[None]:
    register(TOY)
    yield
    unregister(TOY.name)


@pytest.fixture
def measured(tmp_path: Path) -> Callable[..., pd.DataFrame]:
    return lambda plan, measure, **options: fs.run(plan, measure=measure, store=tmp_path, progress=False, **options)


NAMES = [*KINDS, TOY.name]
every_kind = pytest.mark.parametrize("name", NAMES)


def cells(name: str, **changed: object) -> list[fs.Cell]:
    return fs.grid(**{"net": name, "depth": 4, "width": 9, "activation": "tanh", "init": "he_normal",
                      "train_samples": 200, "seed": range(3)} | changed)


def build(cell: fs.Cell, **how: object) -> nn.Module:
    net = KINDS[cell.net].net(64, cell.width, cell.depth, 10, cell.activation)
    if cell.gate_bias is not None:
        net.set_gate_bias(cell.gate_bias)
    return initialize(net, cell.init, seed=cell.seed, **how)


def test_what_a_kind_has_not_is_declared():
    """No field has a default: a kind that forgets its rule, its stacked layer or its theory does not exist."""
    assert all(field.default is MISSING and field.default_factory is MISSING for field in fields(Kind))
    with pytest.raises(TypeError, match="theory"):
        Kind(name="forgetful", label="", net=ScaledNet, block=ScaledBlock, width=1, gate_bias=None, stacked=None,
             jacobian=None)
    with pytest.raises(ValueError, match="no other kind"):
        register(TOY)


@pytest.mark.parametrize("kind", [TOY, *KINDS.values()], ids=lambda kind: kind.name)
def test_a_kind_that_goes_leaves_nothing_behind(kind):
    """Every room's table is again what it was, whatever the kind has; while it is there, each has what it has."""
    class Block(ScaledBlock):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    class Net(ScaledNet):
        pass

    def tables() -> list[dict | set]:
        return [table.copy() for table in (KINDS, names.LABELS, FORWARDS, fully_connected.NETS, fully_connected.LAYERS,
                                           layer_rules.BLOCK_RULES, theories.THEORIES)]

    before = tables()
    register(replace(kind, name="passing", net=Net, block=Block))
    grown = [len(now) - len(old) for now, old in zip(tables(), before, strict=True)]
    unregister("passing")
    assert grown == [1, 1, 1, 1, kind.stacked is not None, kind.jacobian is not None, 1]
    assert tables() == before


@every_kind
def test_a_cell_has_the_kinds_defaults(name):
    cell, kind = fs.Cell(net=name), KINDS[name]
    assert (cell.width, cell.gate_bias) == (kind.width, kind.gate_bias)
    if kind.gate_bias is None:
        with pytest.raises(ValueError, match=f"`gate_bias` must be left out of {name} nets"):
            fs.Cell(net=name, gate_bias=-1.0)


@every_kind
def test_critical_weights_know_the_blocks_activation(name):
    """He et al. 2015: weight_var 2 for ReLU, so that ten thousand draws have that variance to 4 standard errors."""
    net = build(fs.Cell(net=name, depth=2, width=100, activation="relu", init="critical"))
    weight = net.blocks[0].affine.weight[:100]
    assert 100 * weight.var().item() == pytest.approx(2, abs=4 * 2 * 2e-4**0.5)


@every_kind
def test_a_stack_trains_as_the_nets_alone(name, measured, tmp_path):
    """By hand where the kind has a stacked layer, else by vmap: the losses of each net alone, to float32's rounding."""
    plan = cells(name, epochs=2, batch_size=50, learning_rate=0.05)
    together = measured(plan, "training_loss")
    alone = pd.concat([fs.run([cell], measure="training_loss", store=tmp_path / cell.key, progress=False)
                       for cell in plan])
    assert together["loss"].to_numpy() == pytest.approx(alone["loss"].to_numpy(), rel=1e-5)
    assert together.groupby("cell")["loss"].last().lt(together.groupby("cell")["loss"].first()).all()
    assert trains_by_hand(build(plan[0])) == (KINDS[name].stacked is not None)


@every_kind
def test_the_product_of_layers_is_the_jacobian(name):
    """Factors in closed form where the kind has a rule, else pulled back; ln s as of the matrix written out."""
    net, x = build(cells(name)[0]), torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    product, dense = (fs.jacobian_spectrum(net, x, method=method) for method in ("product", "dense"))
    assert product.factors == 5
    both = [spectrum.log_singular_values[:, :9].numpy() for spectrum in (product, dense)]  # 10 outputs of 9 units
    assert both[0] == pytest.approx(both[1], abs=1e-9)
    if KINDS[name].jacobian is not None:
        block, h = net.blocks[0].double(), torch.randn(4, 9, dtype=torch.float64)
        true = torch.func.vmap(torch.func.jacrev(block))(h)
        own = KINDS[name].jacobian(block.activation, h, block.affine(h).detach(), block.affine.weight.detach())
        assert torch.allclose(own, true, rtol=1e-12, atol=1e-14)


@every_kind
def test_plots_call_it_by_its_label(name, measured):
    panel = with_family(measured(cells(name)[:1], "gradient_flow"))["panel"]
    assert panel.unique() == [f"{KINDS[name].label} tanh"]


@every_kind
def test_predictions_have_a_number_or_say_that_they_have_none(name, measured):
    """Where the kind has a theory every join has numbers, else every join runs and has none, marked not valid."""
    plan = cells(name, width=30)
    flow = measured(plan, "gradient_flow")
    spectra = measured(plan, "jacobian_spectrum")
    moments = measured(plan, "body_moments")
    correlation = measured(plan, "gradient_correlation", points=16)
    statistics = predictions.with_predicted_statistics(spectra, flow)
    norms = predictions.with_predicted_norms(flow)
    joins = [norms[norms["layer"] < norms["depth"]],  # theory starts at the measured norm of the last layer
             statistics[statistics["statistic"] == "log_mean_square"],
             predictions.with_predicted_spectra(spectra, flow),
             predictions.with_predicted_moments(moments),
             predictions.with_predicted_correlations(correlation)]
    for rows in joins:
        assert len(rows)
        if KINDS[name].theory is None:
            assert rows["predicted"].isna().all()
            assert not rows.get("valid", pd.Series(False)).any()
    if KINDS[name].theory is not None:
        known = [rows["predicted"].notna().any() for rows in joins]
        assert known == [True, True, name != "plain", True, True]  # a plain tanh net's whole law has no closed form


def test_a_kind_without_a_theory_has_no_predictions():
    """Of nothing: no quantity has a number, in no layer, and no law is claimed for its spectrum."""
    cell, none = pd.Series({"net": "plain", "depth": 4}), BodyTheory()
    frames = [none.layers(cell, 3, 1.0, 1.0, 0.0, 0.0), none.correlations(cell, 3, 1.0, 1.0, 0.0, 0.5, 0.0)]
    assert all(len(frame) == 3 and frame.isna().all(axis=None) for frame in frames)
    assert list(none.moments(cell, 3, 1.0, 1.0, 0.0, 0.5, 0.0).columns) == ["layer"]
    numbers = [none.carried(cell, 1.0, np.ones(3)), none.independent_masks(cell, 2.0), *none.exact_step(cell, 1.0),
               none.rank(cell), none.mean_log(cell, 1.0, frames[0]), none.relative_variance(cell, frames[0])]
    assert np.isnan(numbers).all()
    assert not any((none.carries, none.covers_orthogonal, none.first_order, none.is_free_product(cell)))
