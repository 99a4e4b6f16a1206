"""One layer: closed gates copy, open gates are plain layers, and in between the paper's equation holds."""

import math

import pytest
import torch
from cases import assert_same
from torch import nn
from torch.testing import assert_close

from flowstudy.nets import ACTIVATIONS, HighwayBlock, PlainBlock

WIDTH = 6
CLOSED = (-torch.inf, -1e4)  # exp(-1e4) is 0 in float64 as well
DTYPES = (torch.float32, torch.float64)
AFFINES = {
    "linear": (lambda outputs: nn.Linear(WIDTH, outputs), (11, WIDTH)),
    "conv2d": (lambda outputs: nn.Conv2d(WIDTH, outputs, 3, padding=1), (3, WIDTH, 5, 4)),
}


def block_and_input(affine: str, activation: str = "tanh", gate_bias: float = -1.0, dtype=torch.float64):
    torch.manual_seed(0)
    make, shape = AFFINES[affine]
    return HighwayBlock(make(2 * WIDTH), activation, gate_bias).to(dtype), torch.randn(shape, dtype=dtype)


def halves(block: HighwayBlock) -> list[nn.Module]:
    """H's and T's affine maps as two ordinary modules, each with its own copy of the weights."""
    kind = "linear" if isinstance(block.affine, nn.Linear) else "conv2d"
    parts = [AFFINES[kind][0](WIDTH).to(block.affine.weight.dtype) for _ in range(2)]
    for part, rows in zip(parts, (slice(None, WIDTH), slice(WIDTH, None)), strict=True):
        part.load_state_dict({name: value[rows] for name, value in block.affine.state_dict().items()})
    return parts


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gate_bias", CLOSED)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("affine", AFFINES)
def test_closed_gate_copies_every_bit(affine, activation, gate_bias, dtype):
    """T = 0: the output is the input, over 60 decades of magnitude, whatever H is."""
    block, x = block_and_input(affine, activation, gate_bias, dtype)
    x = x * 10.0 ** torch.linspace(-30, 2, x.numel(), dtype=dtype).view(x.shape)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gate_bias", CLOSED)
@pytest.mark.parametrize("affine", AFFINES)
def test_closed_gate_has_the_identity_as_jacobian(affine, gate_bias, dtype):
    """T = 0: the Jacobian is exactly I, so a loss gradient reaches the input unchanged; the weights get exactly 0."""
    block, x = block_and_input(affine, gate_bias=gate_bias, dtype=dtype)
    flat = torch.func.jacrev(lambda one: block(one.view_as(x)).flatten())(x.flatten())
    assert torch.equal(flat, torch.eye(x.numel(), dtype=dtype))
    x.requires_grad_()
    error_signal = torch.randn_like(x)
    block(x).backward(error_signal)
    assert torch.equal(x.grad, error_signal)
    assert all(not p.grad.any() for p in block.parameters())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("affine", AFFINES)
def test_open_gate_is_the_plain_block(affine, activation):
    """T = 1: the block is the plain block of H's weights; only the order of summation may differ, hence 1e-14."""
    block, x = block_and_input(affine, activation, torch.inf)
    assert_close(block(x), PlainBlock(halves(block)[0], activation)(x), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("affine", AFFINES)
def test_highway_block_is_the_papers_equation(affine):
    """Output, gate and gradients are those of y = H T + x (1 - T) written with two separate affine maps."""
    block, x = block_and_input(affine)
    plain, gate = halves(block)
    mine, slow = x.clone().requires_grad_(), x.clone().requires_grad_()
    t = torch.sigmoid(gate(slow))
    y = torch.tanh(plain(slow)) * t + slow * (1 - t)
    close = {"rtol": 1e-13, "atol": 1e-14}  # some tens of roundings of numbers of order 1
    assert_close(block(mine), y, **close)
    assert_close(block.transform_gate(mine), t, **close)
    y.square().sum().backward()
    block(mine).square().sum().backward()
    assert_close(mine.grad, slow.grad, **close)
    for name in ("weight", "bias"):
        fused = torch.cat([getattr(part, name).grad for part in (plain, gate)])
        assert_close(getattr(block.affine, name).grad, fused, **close)


@pytest.mark.parametrize("affine", AFFINES)
def test_highway_block_splits_its_channels_whatever_comes_before(affine):
    """One sample without a sample axis, and samples under vmap, are rows of the batch's output."""
    block, x = block_and_input(affine)
    assert_close(block(x[0]), block(x)[0], rtol=1e-13, atol=1e-14)
    assert_close(torch.func.vmap(block)(x), block(x), rtol=1e-13, atol=1e-14)


def test_set_gate_bias_moves_the_gate_alone():
    """The gate bias is a view of the fused bias: the gate follows it, H's bias and all weights stay."""
    block, x = block_and_input("linear")
    before = {name: value.clone() for name, value in block.state_dict().items()}
    values = torch.linspace(-3, 1, WIDTH, dtype=torch.float64)
    block.set_gate_bias(values)
    assert torch.equal(block.gate_bias, values)
    before["affine.bias"][WIDTH:] = values
    assert_same(before, dict(block.state_dict()))
    assert_close(block.transform_gate(torch.zeros_like(x)), torch.sigmoid(values).expand_as(x))


@pytest.mark.parametrize("name, formula", {
    "relu": lambda h: max(h, 0.0),
    "tanh": math.tanh,
    "sigmoid": lambda h: 1 / (1 + math.exp(-h)),
    "linear": lambda h: h,
    "gelu": lambda h: h * 0.5 * math.erfc(-h / math.sqrt(2)),  # x Phi(x): the erf form, not the tanh approximation
    "hard_tanh": lambda h: min(max(h, -1.0), 1.0),
    "erf": math.erf,
}.items())
def test_activations_are_what_their_names_say(name, formula):
    """Each activation equals its textbook formula to rounding."""
    h = torch.linspace(-4, 4, 33, dtype=torch.float64)
    assert_close(ACTIVATIONS[name](h), torch.tensor([formula(v) for v in h.tolist()], dtype=torch.float64),
                 rtol=1e-14, atol=1e-15)


def test_activation_table_is_covered():
    """Every activation of the library stands in the table above."""
    table = test_activations_are_what_their_names_say.pytestmark[0].args[1]
    assert {name for name, _ in table} == set(ACTIVATIONS)


def test_block_errors():
    """An unknown activation and a gate bias that is no number are refused in one line."""
    with pytest.raises(ValueError, match=r"PlainBlock: `activation` must be one of relu, .*, got 'rleu'"):
        PlainBlock(nn.Linear(2, 2), "rleu")
    with pytest.raises(ValueError, match=r"HighwayBlock: `gate_bias` must be a number, got nan"):
        HighwayBlock(nn.Linear(2, 4), "tanh", torch.nan)


def test_a_blocks_gates_begin_where_the_paper_says():
    """b_T = -1 where none is given (section 2.2 names -1 and -3), of every unit; H's half of the bias stays."""
    torch.manual_seed(0)
    affine = nn.Linear(WIDTH, 2 * WIDTH)
    before = affine.bias.detach().clone()
    assert HighwayBlock(affine).gate_bias.tolist() == [-1.0] * WIDTH
    assert torch.equal(affine.bias[:WIDTH], before[:WIDTH])
