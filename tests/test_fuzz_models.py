"""Random modules of everything that a module may do: each number is plain autograd's, or the call says why it is none.

A model is a tree: leaves map width to width, joins combine smaller trees.  The twin that knows the truth is proved on
closed forms first.
"""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from any_module import (
    Called,
    Of,
    Reversal,
    StraightThrough,
    Surrogate,
    half_detached,
    hook_on_tensor,
    rms_in_float32,
    without_gradient,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from slow_twin import assert_flow_right, assert_spectrum_right, by_product, flow_of, jacobians_of
from torch import Tensor, nn
from torch.nn import functional as F

from flowstudy import gradient_flow, jacobian_spectrum
from flowstudy.nets import HighwayBlock, PlainBlock, ResidualBlock

CLASSES = 3


# --- what trees are made of ------------------------------------------------------------------------------------------


class Weights(nn.Module):
    """Two weights that no layer holds."""

    def __init__(self, width: int):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.randn(width, width) / width**0.5) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(F.linear(torch.tanh(x @ self.a), self.b))


class OwnPlain(PlainBlock):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class OwnHighway(HighwayBlock):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.transform_gate(x)


class OwnResidual(ResidualBlock):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x + torch.sin(self.affine(x))


def linear(width: int, out: int | None = None) -> nn.Linear:
    return nn.Linear(width, out or width)


def in_place(h: Tensor) -> Tensor:
    h.mul_(1.5)
    h = torch.sin(h)
    h += 0.1
    return h.mul_(2.0)


def noise(h: Tensor) -> Tensor:
    return h + 0.1 * torch.randn_like(h) * h


LEAVES = {
    "linear": linear,
    "relu": lambda w: nn.Sequential(linear(w), nn.ReLU()),
    "wide": lambda w: nn.Sequential(linear(w, w + 2), nn.Tanh(), linear(w + 2, w)),
    "layer norm": lambda w: nn.Sequential(linear(w), nn.LayerNorm(w, eps=0.1), nn.GELU()),  # 1e-5: of two a step
    "elementwise": lambda w: Of(lambda x: x.sin() + F.leaky_relu(x, 0.2).square() / 4),
    "functional": Weights,
    "frozen": lambda w: linear(w).requires_grad_(False),
    "in place": lambda w: Of(lambda a, x: in_place(a(x)), linear(w)),
    "plain": lambda w: PlainBlock(linear(w), "tanh"),
    "highway": lambda w: HighwayBlock(linear(w, 2 * w), "tanh"),
    "residual": lambda w: ResidualBlock(linear(w), "relu"),
    "own plain": lambda w: OwnPlain(linear(w), "tanh"),
    "own highway": lambda w: OwnHighway(linear(w, 2 * w), "tanh"),
    "own residual": lambda w: OwnResidual(linear(w), "tanh"),
    "straight-through": lambda w: Of(lambda a, x: StraightThrough.apply(a(x)), linear(w)),
    "reversal": lambda w: Of(lambda a, x: Reversal.apply(a(x)), linear(w)),
    "surrogate": lambda w: Of(lambda a, x: Surrogate.apply(a(x)), linear(w)),
    "hook on a tensor": lambda w: Of(lambda a, x: hook_on_tensor(a(x)), linear(w)),
    "dropout": lambda w: Of(lambda a, x: F.dropout(a(x), 0.3, training=True), linear(w)),
    "random slope": lambda w: Of(lambda a, x: F.rrelu(a(x), training=True), linear(w)),
    "noise": lambda w: Of(lambda a, x: noise(a(x)), linear(w)),
    "float32": lambda w: Of(lambda a, x: a(rms_in_float32(x)), linear(w)),
}


def hooked(register: str, hook):
    """The tree with a hook on it."""
    def join(w: int, tree: nn.Module) -> nn.Module:
        getattr(tree, register)(hook)
        return tree
    return join


def aside(context):
    """The tree times 1 + features that a layer makes out of the loss's sight."""
    def join(w: int, tree: nn.Module) -> nn.Module:
        return Of(lambda tree, hidden, x: tree(x) * (1 + context(hidden, x)), tree, nn.Sequential(linear(w), nn.Tanh()))
    return join


def looks(tree: nn.Module, x: Tensor) -> Tensor:
    """Branches that a symbolic trace or a pass without gradients would take otherwise."""
    h = tree(x)
    h = 1.5 * h if h.requires_grad and torch.is_grad_enabled() else -h
    return h if type(h) is Tensor and not hasattr(h, "node") else 2 * h


ONE = {
    "residual": lambda w, tree: Of(lambda tree, x: x + tree(x), tree),
    "times": lambda w, tree: Of(lambda tree, x: torch.sigmoid(x) * tree(x), tree),
    "twice": lambda w, tree: Of(lambda tree, x: tree(torch.tanh(tree(x))), tree),
    "half detached": lambda w, tree: Of(lambda tree, x: half_detached(tree(x)), tree),
    "no_grad aside": aside(without_gradient),
    "detached aside": aside(lambda hidden, x: hidden(x).detach()),
    "forward hook": hooked("register_forward_hook", lambda module, args, output: 3 * output),
    "pre-hook": hooked("register_forward_pre_hook", lambda module, args: (torch.tanh(args[0]),)),
    "backward hook": hooked("register_full_backward_hook", lambda module, before, after: (0.5 * before[0],)),
    "looks": lambda w, tree: Of(looks, tree),
    "called": lambda w, tree: Called(lambda tree, x: tree(x), tree),
}
TWO = {
    "chain": lambda w, *trees: nn.Sequential(*trees),
    "sum": lambda w, one, two: Of(lambda one, two, x: one(x) + two(x), one, two),
    "gated": lambda w, one, two: Of(lambda one, two, x: torch.sigmoid(one(x)) * two(x), one, two),
    "concatenated": lambda w, one, two: Of(lambda one, two, a, x: a(torch.cat([one(x), two(x)], 1)),
                                           one, two, linear(2 * w, w)),
}

TREES = st.recursive(
    st.sampled_from(sorted(LEAVES)),
    lambda tree: st.tuples(st.sampled_from(sorted(ONE)), tree) | st.tuples(st.sampled_from(sorted(TWO)), tree, tree),
    max_leaves=4)
CHAINS = st.lists(TREES, min_size=1, max_size=6).map(lambda trees: ("chain", *trees))
RECIPES = st.tuples(CHAINS, st.integers(2, 6), st.integers(2, 4), st.integers(0, 99))  # width, samples, seed


def grown(tree, width: int) -> nn.Module:
    if isinstance(tree, str):
        return LEAVES[tree](width)
    join, *parts = tree
    return (ONE | TWO)[join](width, *(grown(part, width) for part in parts))


def built(recipe) -> tuple[nn.Module, Tensor, Tensor]:
    """The model, a batch of inputs and its labels."""
    tree, width, samples, seed = recipe
    torch.manual_seed(seed)
    return (nn.Sequential(grown(tree, width), linear(width, CLASSES)), torch.randn(samples, width),
            torch.arange(samples) % CLASSES)


# --- the law ---------------------------------------------------------------------------------------------------------


def check_flow(recipe, dtype: str) -> None:
    model, x, y = built(recipe)
    torch.manual_seed(1)
    found = gradient_flow(model, x, y)
    torch.manual_seed(1)
    assert_flow_right(found, flow_of(model, x, y, F.cross_entropy), dtype, cancelled=True)


def check_spectrum(recipe, dtype: str) -> None:
    model, x, _ = built(recipe)
    torch.manual_seed(1)
    found = jacobian_spectrum(model, x)
    torch.manual_seed(1)
    as_product = by_product(model, x)
    torch.manual_seed(1)
    true = jacobians_of(model.eval(), x)
    assert_spectrum_right(found, true, dtype)
    if as_product is not None:
        assert_spectrum_right(as_product, true, dtype)


CHECKS = {"gradient_flow": check_flow, "jacobian_spectrum": check_spectrum}


def outcome(call: str, recipe) -> str:
    """Right, or refused in the call's own words; all else raises."""
    try:
        CHECKS[call](recipe, "float32" if "float32" in str(recipe) else "float64")
    except (ValueError, TypeError) as error:
        if str(error).startswith(f"{call}: "):
            return "refused"
        raise
    return "right"


def assert_right(call: str, examples: int) -> None:
    outcomes: Counter[str] = Counter()

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None,
              suppress_health_check=list(HealthCheck))
    @given(RECIPES)
    def try_one(recipe) -> None:
        outcomes[outcome(call, recipe)] += 1

    try_one()
    assert outcomes["refused"] <= 0.1 * outcomes.total()


@pytest.mark.parametrize("call", CHECKS)
def test_a_few_random_models(call):
    """40 of them; a tenth at most is refused, in a sentence that begins with the call's name."""
    assert_right(call, 40)


@pytest.mark.slow
@pytest.mark.parametrize("call", CHECKS)
def test_many_random_models(call):
    """500 of them."""
    assert_right(call, 500)


EACH = [*LEAVES, *((join, "wide") for join in ONE), *((join, "residual", "wide") for join in TWO)]


@pytest.mark.parametrize("call", CHECKS)
@pytest.mark.parametrize("tree", EACH, ids=str)
def test_each_part_by_itself(tree, call):
    """Nothing is refused here: each leaf and each join alone, and in the midst of a chain."""
    for recipe in ((tree, 3, 2, 0), (("chain", "relu", tree, "linear"), 4, 3, 1)):
        assert outcome(call, recipe) == "right"


# --- the twin is right -----------------------------------------------------------------------------------------------


def half_of_square(output: Tensor, _y: None) -> Tensor:
    return output.square().sum() / 2


def test_twin_of_a_linear_net_is_its_matrices():
    """L = |B A x|^2 / 2 of one sample: dL/d(Ax) = B^T BAx, dL/dA = B^T BAx x^T, a product of vectors; J = B A."""
    model, x = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)).double(), torch.randn(1, 3)
    a, b = (layer.weight.detach().numpy() for layer in model)
    column = x[0].double().numpy()
    error = b.T @ b @ a @ column
    flow = flow_of(model, x, None, half_of_square)
    assert [row.module for row in flow.rows] == ["0", "1"] and {row.kind for row in flow.rows} == {"value"}
    expected = [np.linalg.norm(error), np.linalg.norm(b @ a @ column)]
    np.testing.assert_allclose([row.error for row in flow.rows], expected, rtol=1e-13)
    np.testing.assert_allclose([row.weight_gradient for row in flow.rows],
                               np.multiply(expected, [np.linalg.norm(column), np.linalg.norm(a @ column)]), rtol=1e-13)
    np.testing.assert_allclose(flow.input_gradient, np.linalg.norm(a.T @ error), rtol=1e-13)
    np.testing.assert_allclose(jacobians_of(model, x), [b @ a], rtol=1e-13)


def test_twin_tells_no_gradient_from_a_gradient_of_zero():
    """Under no_grad or frozen it is none, behind a dead ReLU zero; only what the loss does not see has no error."""
    dead = linear(3)
    nn.init.constant_(dead.bias, -1e3)
    model = nn.Sequential(ONE["no_grad aside"](3, nn.Sequential(linear(3), LEAVES["frozen"](3))), dead, nn.ReLU())
    flow = flow_of(model, torch.rand(2, 3), None, half_of_square)
    assert [row.kind for row in flow.rows] == ["zero", "none", "none", "zero"]
    assert [row.error for row in flow.rows[:2] + flow.rows[3:]] == [0.0] * 3 and math.isnan(flow.rows[2].error)


@pytest.mark.parametrize("tree, factor", [("reversal", -0.7), (("forward hook", "linear"), 3.0), ("linear", 1.0),
                                          (("backward hook", "linear"), 0.5), (("called", "linear"), 1.5)])
def test_twin_sees_what_changes_a_gradient(tree, factor):
    """Each multiplies the Jacobian of its linear layer by a number."""
    torch.manual_seed(0)
    model = grown(tree, 3)
    (weight,) = (p.detach().double().numpy() for p in model.parameters() if p.ndim == 2)
    np.testing.assert_allclose(jacobians_of(model, torch.randn(2, 3)), [factor * weight] * 2, rtol=1e-13)


def test_twin_follows_weights_without_a_layer():
    """L = |sin(tanh(x a) b^T)|^2 / 2: the rows are the two products, in order, named as their weights."""
    torch.manual_seed(0)
    model, x = Weights(3).double(), torch.randn(2, 3, dtype=torch.float64)
    one = x @ model.a
    two = torch.tanh(one) @ model.b.mT
    errors = torch.autograd.grad(torch.sin(two).square().sum() / 2, (one, two))
    flow = flow_of(model, x, None, half_of_square)
    assert [row.module for row in flow.rows] == ["a", "b"]
    np.testing.assert_allclose([row.error for row in flow.rows], [e.norm().item() for e in errors], rtol=1e-13)
