"""Singular values of long products: every one right against extended precision; rank, isometry and mates exact."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import mp_reference
import pytest
import torch
from structured_products import structured_product, wild_product
from torch import Tensor
from torch.testing import assert_close

from flowstudy.measure.numerics.products import cholesky_step, one_sided_jacobi, product_error, recorded_step
from flowstudy.measure.numerics.products.batched_qr import by_size, cholesky_qr, householder_qr, pivoted_qr
from flowstudy.measure.numerics.products.factor_pieces import Mixing, tame_pieces
from flowstudy.measure.numerics.products.graded_jacobi import DEAD, flip, graded_singular_values
from flowstudy.measure.numerics.products.product_svd import begin, partial_product_svd, product_svd, spectrum
from flowstudy.torch_settings import one_thread


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=draws(seed))


def uniform(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=draws(seed))


def gaussian(width: int, depth: int, seed: int = 0) -> list[Tensor]:
    return list(normal(depth, width, width, seed=seed) / width**0.5)


def tanh_like(width: int, depth: int, seed: int = 0) -> list[Tensor]:
    slope = uniform(depth, width, 1, seed=seed + 1).square()   # in (0, 1], some nearly saturated
    return list(slope * normal(depth, width, width, seed=seed) / width**0.5)


def highway_like(width: int, depth: int, seed: int = 0) -> list[Tensor]:
    gate = torch.sigmoid(normal(depth, width, 1, seed=seed + 1) - 1.0)
    return list(torch.diag_embed(1 - gate.squeeze(-1)) + gate * normal(depth, width, width, seed=seed) / width**0.5)


def relu_like(width: int, depth: int, seed: int = 0) -> list[Tensor]:
    live = (uniform(depth, width, 1, seed=seed + 1) < 0.7).double()
    return list(live * normal(depth, width, width, seed=seed) * (2 / width) ** 0.5)


def orthogonal(width: int, depth: int, seed: int = 0) -> list[Tensor]:
    return list(torch.linalg.qr(normal(depth, width, width, seed=seed)).Q)


def ill_conditioned(width: int, depth: int, seed: int = 0) -> list[Tensor]:
    u, _, v = torch.linalg.svd(normal(depth, width, width, seed=seed))
    return list(u * torch.logspace(0, -6, width, dtype=torch.float64) @ v)


def saturated(width: int, depth: int, seed: int = 0) -> list[Tensor]:
    slope = 10.0 ** (-20 * uniform(depth, width, 1, seed=seed + 1))   # far beyond eps within one layer
    return list(slope * normal(depth, width, width, seed=seed) / width**0.5)


def ascending(width: int, depth: int, seed: int = 0) -> list[Tensor]:
    sizes = torch.diag(torch.logspace(-3, 0, width, dtype=torch.float64))
    return [sizes + 1e-9 * noise for noise in gaussian(width, depth, seed)]


def jordan(width: int, depth: int, seed: int = 0) -> list[Tensor]:
    return [torch.eye(width, dtype=torch.float64) + torch.diag(torch.ones(width - 1, dtype=torch.float64), 1)] * depth


def against_reference(factors: list[Tensor], device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Errors of the finite log values, and the errors claimed; the ranks must agree."""
    expected, got = mp_reference.log_singular_values(factors), product_svd([a.to(device) for a in factors])
    values, claimed, finite = got.log_singular_values.cpu(), got.log_error.cpu(), expected.isfinite()
    assert torch.equal(values.isfinite(), finite)
    assert int(got.rank) == int(finite.sum())
    return (values - expected)[finite].abs(), claimed[finite]


# name, factors, tolerance. The last four: eps times the sensitivity of the product itself to its factors
CASES = [
    ("linear 12", lambda: gaussian(12, 200), 1e-10),
    ("linear 16", lambda: gaussian(16, 200), 1e-10),
    ("linear shallow", lambda: gaussian(12, 10), 1e-10),
    ("tanh 12", lambda: tanh_like(12, 200), 1e-10),
    ("tanh 16", lambda: tanh_like(16, 200), 1e-10),
    ("highway 12", lambda: highway_like(12, 200), 1e-10),
    ("highway 16", lambda: highway_like(16, 200), 1e-10),
    ("relu", lambda: relu_like(20, 30), 1e-10),
    ("relu deep", lambda: relu_like(16, 200), 1e-10),
    ("saturated", lambda: saturated(12, 30), 1e-10),
    ("784-like to 10", lambda: [normal(8, 40, seed=1), *gaussian(8, 30), normal(5, 8, seed=2)], 1e-10),
    ("bottleneck", lambda: [*gaussian(10, 20), normal(4, 10, seed=1), normal(9, 4, seed=2), *gaussian(9, 20)], 1e-10),
    ("ascending", lambda: ascending(12, 60), 1e-10),
    ("condition 1e6", lambda: ill_conditioned(12, 40), 1e-7),
    ("Jordan", lambda: jordan(12, 60), 1e-8),
]


HARD = ("saturated", "784-like to 10", "bottleneck", "ascending", "condition 1e6", "Jordan", "relu")
ON_CUDA = [pytest.param(*case[1:], "cuda", marks=pytest.mark.gpu, id=f"{case[0]}, cuda") for case in CASES
           if case[0] in HARD]


@pytest.mark.parametrize(("factors", "tolerance", "device"),
                         [*(pytest.param(*case[1:], "cpu", id=case[0]) for case in CASES), *ON_CUDA])
def test_every_singular_value_agrees_with_extended_precision(factors, tolerance, device):
    """And within log_error, which covers rounding and not much more."""
    error, claimed = against_reference(factors(), device)
    assert error.max() < tolerance
    assert (error <= claimed).all()
    assert claimed.max() < 1e3 * tolerance


def untrue_claims(seeds: range, eps: float) -> Counter:
    """Kinds of products with a value outside its stated error; a value far outside, or a wrong zero, fails at once."""
    untrue = Counter()
    for seed in seeds:
        kind, factors = structured_product(seed)
        got = product_svd([a if eps < 1e-10 else a.float() for a in factors], eps=eps)
        expected = mp_reference.log_singular_values(factors)
        assert got.log_singular_values.shape == expected.shape, (kind, seed)
        known = ~got.log_singular_values.isnan()
        assert int(got.below_floor) == int((~known).sum())
        assert got.log_error[~known].isinf().all()
        values, expected, claimed = got.log_singular_values[known], expected[known], got.log_error[known]
        error = torch.where(values == expected, 0.0, (values - expected).abs())
        assert (error <= torch.maximum(10 * claimed, claimed + 1e-3)).all(), (kind, seed)
        untrue[kind] += bool((error > claimed).any())
    return untrue


def test_structured_products_are_right_within_their_stated_error_or_not_given():
    """42 of 28 kinds, against exact integers."""
    assert untrue_claims(range(42), 2.0**-52).total() == 0


@pytest.mark.slow
def test_stated_errors_are_true_in_99_of_100_structured_products():
    """500 more: none far outside, no value that is not zero called zero, at most 5 outside the stated error."""
    untrue = untrue_claims(range(42, 542), 2.0**-52)
    assert untrue.total() <= 5, untrue


def test_errors_travel_through_a_factor_as_perturbation_theory_says():
    """R (I + T) R^-1 = I + R T R^-1 of two directions: on its diagonal what each adds to its log size, below it the
    angle; and the rounding of R's rows adds to both."""
    r = torch.tensor([[3.0, 2.0], [0.0, 0.5]], dtype=torch.float64)
    lean, before = 7.0, torch.tensor([[11.0, 13.0]], dtype=torch.float64)
    noise, inverse = torch.tensor([[0.3, 0.2]]).double(), torch.tensor([[5.0, 4.0]]).double()
    t = torch.tensor([[0.0, 0.0], [lean, 0.0]], dtype=torch.float64)
    moved = (r @ t @ torch.linalg.inv(r)).square()
    angle, variance = product_error.propagated(t.square()[None], before, r[None], noise, inverse,
                                               torch.zeros(1, 2, dtype=torch.bool), 1e-16)
    assert_close(variance[0], before[0] + moved.diagonal() + (noise * inverse)[0].square(), rtol=1e-14, atol=0)
    assert_close(angle[0, 1, 0], moved[1, 0] + (noise[0, 1] * inverse[0, 0]) ** 2, rtol=1e-14, atol=0)
    assert (angle[0].triu() == 0).all()


def test_a_direction_that_a_bottleneck_takes_away_leaves_its_error_with_those_that_stay():
    """R of one row: what leaned towards the second direction comes back into the first, T_21 r_12 / r_11."""
    r = torch.tensor([[[3.0, 2.0]]], dtype=torch.float64)
    t = torch.tensor([[[0.0, 0.0], [7.0, 0.0]]], dtype=torch.float64)
    nothing = torch.zeros(1, 1, dtype=torch.float64)
    angle, variance = product_error.propagated(t.square(), torch.tensor([[11.0, 13.0]]).double(), r, nothing, nothing,
                                               torch.zeros(1, 1, dtype=torch.bool), 1e-16)
    assert_close(variance, torch.tensor([[11.0 + (7.0 * 2 / 3) ** 2]], dtype=torch.float64), rtol=1e-14, atol=0)
    assert (angle == 0).all()


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 0, 1), (2, 1, 0)])
def test_the_order_of_directions_changes_neither_values_nor_errors(order):
    """A product Q diag(2^e) U with known errors, its directions permuted: the same product, so the same answer."""
    state, *_ = begin("test", [normal(3, 3, seed=0)], None, (), None, 1e-6, 0)
    state = replace(state, untouched=~state.untouched, exponents=torch.tensor([[20.0, 9.0, 0.0]]).double(),
                    angle=torch.tensor([[[0.0, 0.0, 0.0], [2.0**22, 0.0, 0.0], [2.0**10, 2.0**20, 0.0]]]).double(),
                    variance=torch.tensor([[1.0, 100.0, 1e4]]).double())
    p = list(order)
    permuted = replace(state, q=state.q[..., p], exponents=state.exponents[:, p], u=state.u[:, p],
                       angle=state.angle[:, p][..., p], variance=state.variance[:, p])
    one, other = (spectrum(each, (), 3) for each in (state, permuted))
    assert_close(one.log_singular_values, other.log_singular_values, rtol=1e-12, atol=1e-12)
    assert_close(one.log_error, other.log_error, rtol=1e-9, atol=0)
    assert one.log_error.diff().min() > 0


@pytest.mark.slow
def test_stated_errors_hold_for_factors_known_in_float32():
    """The factors rounded to float32, against the unrounded ones; sizes beyond float32's range are left out."""
    inside = [seed for seed in range(560) if all((a.abs().max() < 1e30) and (a[a != 0].abs() > 1e-30).all()
                                                for a in structured_product(seed)[1])]
    assert len(inside) > 300
    untrue = untrue_claims(inside, 2.0**-23)
    assert untrue.total() <= len(inside) // 100, untrue


QRS = {"cholesky": lambda a: cholesky_qr(a, a.mT @ a, (a == 0).all(-2)), "householder": householder_qr,
       "pivoted": lambda a: pivoted_qr(a, torch.zeros(a.shape[0], a.shape[-1], dtype=torch.float64))}


@pytest.mark.parametrize("route", list(QRS))
def test_qr_routes_factor_and_the_limits_of_cholesky_are_told(route):
    """Q R = A P and Q^T Q = I, to eps kappa^2 for Cholesky, which is not safe if singular or badly conditioned."""
    a = torch.stack([normal(12, 8, seed=3), normal(12, 8, seed=4) * torch.logspace(0, -9, 8, dtype=torch.float64),
                     normal(12, 1, seed=5).expand(12, 8), torch.zeros(12, 8, dtype=torch.float64)])
    a[0, :, 5] = 0.0
    q, r, *more = QRS[route](a)
    if route == "cholesky":
        assert more[0].tolist() == [True, False, False, True]
        q, r, a = q[more[0]], r[more[0]], a[more[0]]
    else:
        assert_close(q.mT @ q, torch.eye(8, dtype=torch.float64).expand(4, 8, 8), rtol=0, atol=1e-14)
    if route == "pivoted":
        a = a.gather(-1, more[0].unsqueeze(-2).expand_as(a))
    assert_close(q @ r, a, rtol=0, atol=1e-14)
    assert (r.tril(-1) == 0).all()


def test_tiny_rows_keep_their_digits_with_pivoted_columns_and_not_without():
    """Rows sorted by size are not enough: Cox & Higham 1998 ask for column pivoting and the usual sign as well."""
    a = torch.tensor([[1e-14, 1.0], [2e-14, 3.0], [1e-8, 1e-8], [2e-8, -1e-8]], dtype=torch.float64)[None]
    def lost(q, r, order):
        return float(((a[..., order] - q @ r).abs().amax(-1) / a.abs().amax(-1)).max())
    q, r, order = pivoted_qr(a, torch.zeros(1, 2, dtype=torch.float64))
    assert order.tolist() == [[1, 0]]
    assert lost(q, r, order[0]) < 1e-15
    assert lost(*householder_qr(a), torch.arange(2)) > 1e-10
    assert by_size(a).tolist() == [[1, 0, 3, 2]]
    keep = torch.diag(torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64))
    error, claimed = against_reference([torch.eye(2, dtype=torch.float64), a[0], keep])
    # The rounding of the large rows, 3 eps, leans the small direction, of 1e-8, out of the product: 16 * 3 eps / 1e-8.
    assert (error <= claimed).all() and claimed.max() < 1e-6


def test_the_pieces_of_a_wild_factor_multiply_to_it_exactly():
    """Rows and columns over the whole range of float64, subnormal numbers and zeros included."""
    a = normal(2, 6, 5, seed=0) * 10.0 ** (300 * (2 * uniform(2, 6, 1, seed=1) - 1))
    a[0, 2], a[1, :, 3], a[0, 1, 1] = 0.0, 0.0, 5e-324
    exponent = torch.zeros(2, 1, 1, dtype=torch.float64)
    for piece in tame_pieces(a):
        if isinstance(piece, Mixing):
            mantissa, own = torch.frexp(piece.matrix)
            exponent = exponent + own + piece.shift[:, None, None]
        else:
            assert (piece.exponents[piece.exponents.isfinite()] >= -400).all()
            exponent = exponent + (piece.exponents.unsqueeze(-1) if piece.exponents.shape[-1] == 6
                                   else piece.exponents.unsqueeze(-2))
    expected, whole = torch.frexp(a)
    live = a != 0
    assert torch.equal(mantissa[live], expected[live])
    assert torch.equal(exponent.expand_as(a)[live], whole[live].double())


def test_the_careful_route_gives_the_same_values(monkeypatch):
    """The routes differ by rounding only, so the choice between them, member by member, is no choice of answer."""
    factors = tanh_like(16, 100)
    expected = product_svd(factors)
    monkeypatch.setattr(cholesky_step, "cholesky_qr", lambda *arguments: (*(found := cholesky_qr(*arguments))[:2],
                                                                          found[2] & False))
    assert_close(product_svd(factors).log_singular_values, expected.log_singular_values,
                               rtol=0, atol=1e-10)


@pytest.mark.parametrize("make", [gaussian, tanh_like, highway_like])
def test_sum_of_logs_is_the_log_volume_at_depth_1000(make):
    """sum log s = sum log |det A_l|, exactly."""
    factors = make(64, 1000)
    rows = torch.stack(factors).abs().amax(-1, keepdim=True)   # taken apart: plain QR is not accurate row by row
    volume = torch.linalg.qr(torch.stack(factors) / rows, mode="r").R.diagonal(0, -2, -1).abs().log().sum()
    volume = volume + rows.log().sum()
    got = product_svd(factors)
    assert abs(got.log_singular_values.sum() - volume) < 1e-8
    assert (got.log_singular_values.diff() <= 0).all()


def test_orthogonal_factors_at_depth_1000_are_isometric():
    assert product_svd(orthogonal(64, 1000)).log_singular_values.abs().max() < 1e-10


@pytest.mark.parametrize("block", [None, 1, 3])
def test_identity_factors_give_exactly_zero(block):
    """Closed highway gates: J = I to the bit, so every log is 0.0; a mate that is not the identity changes nothing."""
    eye = torch.eye(32, dtype=torch.float64)
    assert (product_svd([eye] * 100, block=block).log_singular_values == 0).all()
    mixed = [torch.stack([eye, a]) for a in gaussian(32, 20)]
    assert (product_svd(mixed, block=block).log_singular_values[0] == 0).all()
    assert (product_svd([lambda x: x] * 5, columns=7, block=block).log_singular_values == 0).all()


def test_masks_without_mixing_give_the_exact_rank_and_isometry():
    """Diagonal masks: the rank is the number of units live in every layer, not the smallest count; live ones keep 1."""
    masks = (uniform(30, 5, 40, seed=0) < 0.97).double()
    got = product_svd(torch.diag_embed(masks).unbind(0))
    assert torch.equal(got.rank, masks.prod(0).sum(-1).long())
    assert got.log_singular_values[got.log_singular_values.isfinite()].abs().max() < 1e-14


def test_relu_rank_is_the_smallest_live_count():
    factors = [torch.stack(pair) for pair in zip(relu_like(64, 40, 1), relu_like(64, 40, 2), strict=True)]
    live = torch.stack([(a != 0).any(-1).sum(-1) for a in factors]).amin(0)
    got = product_svd(factors)
    assert torch.equal(got.rank, live)
    assert torch.equal(got.log_singular_values.isfinite().sum(-1), live)
    assert got.log_singular_values[got.log_singular_values.isfinite()].min() > -300   # no rounding noise among them


@pytest.mark.parametrize("spoil", [
    lambda a: a.index_copy(0, torch.tensor([3]), a[[5]]),                       # two equal rows
    lambda a: a.index_copy(1, torch.tensor([3]), a[:, [5]]),                    # two equal columns
    lambda a: torch.linalg.svd(a).U * torch.tensor([1.0] * 19 + [0.0]).double() @ torch.linalg.svd(a).Vh,
], ids=["rows", "columns", "svd"])
def test_a_singular_factor_costs_exactly_one_value(spoil, device):
    """Not resolved, wherever in the chain the factor stands: no zero of the factor says that the value is zero."""
    for place in (0, 4, 9):
        factors = gaussian(20, 10, seed=place)
        factors[place] = spoil(factors[place])
        got = product_svd([a.to(device) for a in factors])
        assert got.rank == 19 and got.below_floor == 1
        assert got.log_singular_values[-1].isnan() and got.log_error[-1] == math.inf


@pytest.mark.parametrize("spoil", [
    lambda a: a.index_fill(1, torch.tensor([2]), 0.0),                                    # a dead input
    lambda a: a.index_fill(0, torch.tensor([2]), 0.0),                                    # a dead unit
    lambda a: torch.block_diag(a[:12, :11], a[12:, 11:]),                                 # 11 inputs of 12 units
], ids=["input", "unit", "blocks"])
def test_zeros_of_a_factor_cost_exactly_one_value(spoil, device):
    """-inf: exactly zero, by the places of the zeros alone."""
    for place in (0, 4, 9):
        factors = gaussian(20, 10, seed=place)
        factors[place] = spoil(factors[place])
        got = product_svd([a.to(device) for a in factors])
        assert got.rank == 19 and got.below_floor == 0
        assert got.log_singular_values[-1] == -math.inf and got.log_error[-1] == 0


def test_what_may_be_smaller_than_an_unresolved_value_is_not_given():
    """diag(1, 1e-3, 1e-20), rotated: the smallest is anywhere below 1e-16. Then a factor takes the second to 1e-30."""
    q, p = (torch.linalg.qr(normal(3, 3, seed=i)).Q for i in (0, 1))
    hidden = q * torch.tensor([1.0, 1e-3, 1e-20]).double() @ p
    got = product_svd([hidden])
    assert got.rank == 2 and got.below_floor == 1
    direction = torch.linalg.svd(hidden).U[:, 1]
    outer = torch.outer(direction, direction)
    got = product_svd([hidden, torch.eye(3, dtype=torch.float64) - outer + 1e-14 * outer, normal(3, 3, seed=2)])
    assert got.rank == 1 and got.below_floor == 2


def test_an_ill_conditioned_factor_is_right_within_its_stated_error():
    """10**0, 10**-2 ... 10**-14, rotated on both sides: the last two are known to a third and to 0.3 % or better."""
    q, p = (torch.linalg.qr(normal(8, 8, seed=i)).Q for i in (0, 1))
    factors = [q * 10.0 ** (-2.0 * torch.arange(8, dtype=torch.float64)) @ p, torch.linalg.qr(normal(8, 8, seed=2)).Q]
    error, claimed = against_reference(factors)
    assert len(error) == 8 and (error <= claimed).all() and claimed[-2] < 0.03


def test_rank_of_a_singular_factor_holds_in_every_one_of_many_draws():
    """Two equal rows among 12 Gaussian ones, 3000 times: none takes rounding for rank."""
    factors = [normal(3000, 12, 12, seed=i) for i in range(3)]
    factors[1][:, 3] = factors[1][:, 5]
    got = product_svd(factors)
    assert (got.rank == 11).all() and (got.below_floor == 1).all()


def test_zero_factor_has_rank_zero():
    got = product_svd([*gaussian(6, 3), torch.zeros(6, 6, dtype=torch.float64), *gaussian(6, 3)])
    assert int(got.rank) == 0 and (got.log_singular_values == -math.inf).all()


def test_mates_do_not_matter_and_nan_stays_at_home():
    """A member alone, among others, beside NaN, infinite and zero mates: bit for bit with a fixed block."""
    factors = [normal(4, 24, 24, seed=i) / 5 for i in range(30)]
    alone = product_svd([a[:1] for a in factors], block=1)
    factors[7][1, 3, 3], factors[8][2, 0, 0], factors[9][3] = math.nan, math.inf, 0.0
    got = product_svd(factors, block=1)
    assert got.log_singular_values[1:3].isnan().all() and got.log_error[1:3].isnan().all()
    assert got.rank.tolist() == [24, -1, -1, 0]
    assert_close(got.log_singular_values[0], alone.log_singular_values[0], rtol=0, atol=1e-12)
    healthy = [torch.where(a.isfinite(), a, 0.1) for a in factors]   # same shapes, so the same kernels
    assert torch.equal(product_svd(healthy, block=1).log_singular_values[0], got.log_singular_values[0])
    assert_close(product_svd(factors).log_singular_values[0], alone.log_singular_values[0],
                               rtol=0, atol=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_the_routes_of_mates_do_not_matter_with_a_fixed_block(seed):
    """Narrowing ReLU nets, in which some members go by the careful route: the same bits beside NaN."""
    widths = [12, 10, 10, 10, 10, 10, 5]
    factors = [normal(6, out, inputs, seed=seed + 10 * i) * (uniform(6, out, 1, seed=seed + 10 * i + 5) < 0.6)
               for i, (inputs, out) in enumerate(pairwise(widths))]
    spoiled = [torch.where(torch.arange(6)[:, None, None] // 2 == 1, math.nan, a) for a in factors]
    expected, got = product_svd(factors, block=1), product_svd(spoiled, block=1)
    mates = [0, 1, 4, 5]
    assert torch.equal(got.log_singular_values[mates], expected.log_singular_values[mates])
    assert_close(got.log_error[mates], expected.log_error[mates], rtol=1e-6, atol=0)
    assert got.rank[2:4].tolist() == [-1, -1] and got.below_floor[2:4].tolist() == [0, 0]


@pytest.mark.slow
def test_powers_of_two_shift_the_logs_and_nothing_overflows():
    """A_l -> 2**k_l A_l adds sum k_l log 2; entries of 1e-300 and 1e300 and 300 layers of them are no trouble."""
    factors = gaussian(10, 40)
    shifts = [(-1) ** i * 25 * i for i in range(40)]
    expected = product_svd(factors).log_singular_values + sum(shifts) * math.log(2.0)
    got = product_svd([a * 2.0**k for a, k in zip(factors, shifts, strict=True)])
    assert_close(got.log_singular_values, expected, rtol=1e-14, atol=1e-12)
    eye = torch.eye(3, dtype=torch.float64)
    for size in (1e-300, 1e300, 5e-324):
        values = product_svd([size * eye] * 300).log_singular_values
        assert_close(values, torch.full_like(values, 300 * math.log(size)), rtol=1e-13, atol=0)


def test_functions_and_float32_and_batch_axes_and_generators():
    """A factor may be a function, a float32 tensor, shared by the batch or not, or come from a generator."""
    factors = [normal(2, 3, 8, 8, seed=i) / 3 for i in range(12)]
    expected = product_svd(factors)
    assert expected.log_singular_values.shape == (2, 3, 8) and expected.rank.shape == (2, 3)
    functions = [a.flatten(0, 1).matmul for a in factors]
    got = product_svd(iter(functions), columns=8, batch_shape=(2, 3))
    assert_close(got.log_singular_values, expected.log_singular_values, rtol=0, atol=1e-12)
    assert torch.equal(got.log_singular_values, product_svd(factors, block=1).log_singular_values)
    shared = product_svd([factors[0], *[a[0, 0] for a in factors[1:]]]).log_singular_values
    spread = product_svd([factors[0], *[a[:1, :1].expand(2, 3, 8, 8) for a in factors[1:]]]).log_singular_values
    assert_close(shared, spread, rtol=0, atol=1e-11)
    single = product_svd([a.float() for a in factors]).log_singular_values
    assert torch.equal(single, product_svd([a.float().double() for a in factors]).log_singular_values)


def test_rows_that_are_multiplied_in_parts_are_the_rows(monkeypatch):
    """Eight directions, three at a time: the triangle's zeros are left out of the products and change nothing."""
    whole = product_svd(tanh_like(8, 30))
    monkeypatch.setattr("flowstudy.measure.numerics.products.graded_product.ROWS", 3)
    parts = product_svd(tanh_like(8, 30))
    assert_close(parts.log_singular_values, whole.log_singular_values, rtol=1e-13, atol=1e-13)


def test_partial_products_are_the_separate_products():
    factors = [normal(3, 6, 9, seed=0), *[normal(3, 6, 6, seed=i) for i in range(1, 9)], normal(3, 2, 6, seed=9),
               normal(3, 5, 2, seed=10)]
    for length, partial in enumerate(partial_product_svd(factors), start=1):
        whole = product_svd(factors[:length], block=1)
        assert torch.equal(partial.log_singular_values, whole.log_singular_values)
        assert torch.equal(partial.log_error, whole.log_error)
    assert length == len(factors)


def test_shape_and_rank_of_a_bottleneck():
    """9 -> 6 ... 6 -> 2 -> 5: a 5 x 9 product has five values, of which two are finite."""
    got = product_svd([normal(6, 9, seed=0), normal(2, 6, seed=1), normal(5, 2, seed=2)])
    assert got.log_singular_values.shape == (5,) and int(got.rank) == 2
    direct = torch.linalg.svdvals(normal(5, 2, seed=2) @ normal(2, 6, seed=1) @ normal(6, 9, seed=0))
    assert_close(got.log_singular_values[:2], direct[:2].log(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("widths", [(5, 3, 7), (3, 5, 2, 6), (2, 9, 4, 9)])
def test_wide_and_narrow_chains_have_as_many_values_as_the_product_has(widths):
    """min(outputs, inputs) of the whole product, of which the narrowest width are not zero."""
    factors = [normal(out, inputs, seed=out) for inputs, out in pairwise(widths)]
    got, expected = product_svd(factors), mp_reference.log_singular_values(factors)
    assert int(got.rank) == min(widths)
    assert_close(got.log_singular_values, expected, rtol=0, atol=1e-13)


def test_a_wide_first_factor_with_wild_columns_keeps_the_small_ones():
    """A QR of the transposed factor would bury them in the rounding of the large ones."""
    factors = [normal(3, 6, seed=0) * torch.tensor([1e-80, 1e-60, 1e-200, 1.0, 1e-40, 0.0], dtype=torch.float64)]
    error, claimed = against_reference(factors)
    assert len(error) == 3 and (error <= claimed).all() and claimed.max() < 1e-10


def test_eps_scales_the_stated_error_and_what_is_resolved():
    factors = ill_conditioned(6, 1)
    fine, coarse = product_svd(factors), product_svd(factors, eps=2.0**-23)
    ratio = coarse.log_error[:3] / fine.log_error[:3]
    assert (ratio > 2.0**26).all() and (ratio <= 2.0**29).all()   # rounding of the computation itself does not scale
    assert fine.below_floor == 0 and product_svd(factors, eps=2.0**-10).below_floor > 0
    assert torch.equal(fine.log_singular_values[:3], coarse.log_singular_values[:3])


def test_log_volume_of_gaussian_products_has_newmans_mean_and_variance():
    """sum log s ~ Normal(L sum lambda_i, L/4 sum psi1((n - i + 1)/2)); Newman 1986. |z| < 4.5, 600 nets."""
    nets, width, depth = 600, 8, 20
    half = torch.arange(1, width + 1, dtype=torch.float64) / 2
    mean = depth * 0.5 * (math.log(2 / width) + torch.digamma(half)).sum()
    variance = depth / 4 * torch.polygamma(1, half).sum()
    factors = [normal(nets, width, width, seed=100 + i) / width**0.5 for i in range(depth)]
    volume = product_svd(factors).log_singular_values.sum(-1)
    assert abs(volume.mean() - mean) < 4.5 * (variance / nets) ** 0.5
    assert abs(volume.var() / variance - 1) < 4.5 * (2 / nets) ** 0.5   # nearly Normal: s.e. of a variance


@pytest.mark.slow
def test_exponents_of_gaussian_products_are_newmans_within_their_standard_error():
    """L = 3000, 40 nets of width 4: each log s_i / L within 4.5 standard errors sqrt(psi1 / 4 / (L nets)) of lambda_i.

    At finite depth an exponent is biased by a constant over L: at L = 50 and 200, 4000 nets, at most 1.5 / L.
    """
    nets, width, depth = 40, 4, 3000
    rows = torch.arange(width, 0, -1, dtype=torch.float64) / 2
    limit = 0.5 * (math.log(2 / width) + torch.digamma(rows))
    generator = torch.Generator().manual_seed(7)
    factors = (torch.randn(nets, width, width, generator=generator, dtype=torch.float64) / 2 for _ in range(depth))
    exponents = product_svd(factors).log_singular_values / depth
    error = (torch.polygamma(1, rows) / 4 / (depth * nets)).sqrt()
    assert ((exponents.mean(0) - limit).abs() < 4.5 * error + 1.5 / depth).all()
    assert (exponents.var(0) * depth / (torch.polygamma(1, rows) / 4) - 1).abs().max() < 4.5 * (2 / nets) ** 0.5


def test_global_random_state_is_untouched():
    before = torch.get_rng_state()
    product_svd(gaussian(4, 3))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("spread", [0.0, 3.0, 40.0, 4000.0])
def test_graded_jacobi_against_the_volume_and_a_known_factor(spread):
    """diag(2**e) U with U orthogonal has the singular values 2**e; with dead rows among them, -inf."""
    exponents = (torch.linspace(spread, -spread, 40, dtype=torch.float64).round()).expand(2, 40).clone()
    exponents[1, 5] = DEAD
    u = torch.linalg.qr(normal(2, 50, 40, seed=1)).Q.mT.contiguous()
    u[1, 5] = 0.0
    got, _ = graded_singular_values(exponents, u)
    expected = exponents * math.log(2.0)
    assert_close(got[0], expected[0].sort(descending=True).values, rtol=1e-15, atol=1e-13)
    assert got[1, -1] == -math.inf and got[1, :-1].isfinite().all()


def test_a_zero_shift_qr_step_keeps_the_values_and_tells_how_rows_depend_on_each_other():
    """The dependence of a row: its length over what of it is at right angles to the rows above, by projections."""
    exponents, u = torch.tensor([[3.0, 1.0, 0.0]]).double(), normal(1, 3, 5, seed=4)
    new, rows, dependence = flip(exponents, u)
    graded = torch.ldexp(u[0], exponents[0, :, None].to(torch.int32))
    again = torch.ldexp(rows[0], new[0, :, None].to(torch.int32))
    assert_close(torch.linalg.svdvals(again), torch.linalg.svdvals(graded), rtol=1e-13, atol=0)
    for i, row in enumerate(u[0]):
        above = torch.linalg.qr(u[0, :i].mT).Q if i else row.new_zeros(5, 1)
        alone = (row - above @ (above.mT @ row)).norm()
        assert dependence[0, i].item() == pytest.approx((row.norm() / alone).item(), rel=1e-12)


@pytest.mark.parametrize(("span", "margin", "windows"), [(900.0, 200.0, 1), (62.0, 30.0, 6)])
def test_windows_of_rows_against_extended_precision(span, margin, windows, monkeypatch):
    """Pairs of rows, 4 bits apart; the ends of windows, and of what is kept of each, lie within pairs."""
    monkeypatch.setattr(one_sided_jacobi, "SPAN", span)
    monkeypatch.setattr(one_sided_jacobi, "MARGIN", margin)
    exponents = torch.tensor([-30.0 * pair - 4.0 * second for pair in range(5) for second in range(2)]).double()
    u = normal(10, 10, seed=5)
    assert len(list(one_sided_jacobi.row_windows(exponents.numpy()))) == windows
    got, _ = graded_singular_values(exponents.unsqueeze(0), u.unsqueeze(0))
    exact = mp_reference.log_singular_values([u, torch.diag(torch.exp2(exponents))])
    assert_close(got[0], exact, rtol=1e-15, atol=1e-13)


def test_every_row_is_kept_once_and_far_from_what_its_window_leaves_out():
    for seed in range(20):
        steps = uniform(50, seed=seed) ** 8 * 10.0 ** (seed % 4)   # none, some, or most of the gaps are wide
        exponents = -steps.cumsum(0).round()
        before = 0
        for rows, kept in one_sided_jacobi.row_windows(exponents.numpy()):
            assert rows.start <= kept.start == before < kept.stop <= rows.stop
            assert exponents[rows.start] - exponents[rows.stop - 1] <= one_sided_jacobi.SPAN
            for row in kept.start, kept.stop - 1:
                left_out = torch.cat([exponents[:rows.start], exponents[rows.stop:]])
                assert ((left_out - exponents[row]).abs() >= one_sided_jacobi.MARGIN).all()
            before = kept.stop
        assert before == len(exponents)


@pytest.mark.parametrize("bits", [100, 400, 850])
def test_a_value_near_one_beside_a_tiny_one_keeps_its_last_digits(bits):
    """Powers of two cancel before a logarithm is taken: ln s is right to a few roundings of numbers of its own size."""
    large = 1 + torch.arange(30).double() / 8
    factors = torch.diag_embed(torch.stack([large, torch.full_like(large, 2.0**-bits)], -1))
    got = product_svd([torch.eye(2).double().expand(30, 2, 2), factors])
    assert_close(got.log_singular_values[:, 0], large.log(), rtol=0, atol=2e-15)


def test_a_direction_that_was_lost_beneath_another_is_marked_when_that_one_vanishes():
    """The small direction lies 2**-220 beneath the large one, which leans to it by rounding; then the large one shrinks
    by 2**-480.  Both values came out 0.2 off, with errors of 1e-12."""
    small, last = [[1, 0], [1, 2.0**-60]], [[1, 0], [1, 2.0**-480]]
    factors = [torch.tensor(a, dtype=torch.float64)
               for a in ([[2.0**-217, 0], [0, 2.0**66]], small, [[4, 0], [0, 3]], last, small)]
    for length in range(1, 6):
        got, true = product_svd(factors[:length]), mp_reference.log_singular_values(factors[:length])
        off = (got.log_singular_values - true).abs()
        assert ((off <= got.log_error) | (got.log_singular_values.isnan() & got.log_error.isinf())).all()
        assert length > 3 or not got.log_singular_values.isnan().any()


# Products for which stated errors were too small, by up to 1e15 times, with what was left out of them.
UNTRUE = {
    198: "a factor that takes Q to Q by rounding", 1162: "two values change places",
    2666: "pivoting puts a larger direction after a smaller one", 5429: "rounding leans out of the product",
    11672: "an angle grows and acts within one factor", 13236: "rows of like size mix",
    14828: "an angle acts within one factor, beside another one of large angles",
}


@pytest.mark.parametrize("seed", [*UNTRUE, *range(40)])
def test_values_of_wild_products_lie_within_their_stated_errors_or_are_not_given(seed):
    factors = wild_product(seed)
    got, true = product_svd(factors), mp_reference.log_singular_values(factors)
    known = ~got.log_singular_values.isnan()
    off = torch.where(got.log_singular_values == true, 0.0, (got.log_singular_values - true).abs())
    assert (off[known] <= got.log_error[known]).all()


@pytest.mark.parametrize("seed", [11672, 14828])
def test_a_mate_whose_angles_are_followed_within_a_factor_changes_nothing(seed):
    """Beside factors of which nothing is followed: both products are to the bit what they are alone."""
    wild = wild_product(seed)
    tame = [normal(*a.shape, seed=seed + i) for i, a in enumerate(wild)]
    together = product_svd([torch.stack(pair) for pair in zip(wild, tame, strict=True)], block=1)
    for member, factors in enumerate((wild, tame)):
        alone = product_svd([a[None] for a in factors], block=1)
        for name in ("log_singular_values", "log_error"):
            assert_close(getattr(together, name)[member], getattr(alone, name)[0], rtol=0, atol=0, equal_nan=True)


def test_a_lost_direction_is_not_found_again_when_the_other_one_vanishes():
    """Grades and their inverse lose a direction beneath the other one, which the last factor takes to zero: its first
    row is left, but of that only rounding.  It came out as e^-291 for e^-197, with an error of 1e-12."""
    first = torch.tensor([[2.0**-284, 2.0**-420], [2.0**-101, 2.0**-245]], dtype=torch.float64)
    grades = torch.tensor([2.0**-53, 2.0**147], dtype=torch.float64)
    last = torch.tensor([[0.25, 0.0], [-0.375, 0.0]], dtype=torch.float64)
    got = product_svd([first, torch.diag(grades), torch.diag(1 / grades), last])
    assert got.log_singular_values[0].isnan() and got.log_singular_values[1] == -torch.inf


def test_factors_near_the_identity_count_though_each_of_them_takes_q_to_q():
    """400 of I + 2^-56 (ones): the one value is (1 + 2^-55)^400, and each of them alone is lost in rounding."""
    near = torch.eye(2, dtype=torch.float64) + 2.0**-56
    near[0, 1] = near[1, 0] = 2.0**-56
    got = product_svd([near] * 400)
    true = torch.tensor([400 * math.log1p(2.0**-55), 0.0], dtype=torch.float64)
    assert ((got.log_singular_values - true).abs() <= got.log_error).all() and got.log_error.max() < 1e-12


@pytest.mark.parametrize("width", [40, 119, 200])
def test_a_matrix_of_ones_has_its_one_value_at_any_width(width):
    """ln of the width. Below it rounding leaves pivots that shrink to nothing, row by row."""
    got = product_svd([torch.ones(width, width, dtype=torch.float64)])
    assert abs(float(got.log_singular_values[0]) - math.log(width)) <= float(got.log_error[0]) < 1e-11
    assert got.log_singular_values[1:].isnan().all() and int(got.rank) == 1


def test_rows_that_do_not_become_orthogonal_are_marked(monkeypatch):
    """LAPACK says so by a number; no such matrix is known."""
    def gives_up(*arguments: object) -> None:
        arguments[-1]._obj.value = 3
    monkeypatch.setattr(one_sided_jacobi, "dgesvj", lambda: gives_up)
    result = product_svd(gaussian(4, 3))
    assert result.log_singular_values.isnan().all() and (result.below_floor == 4).all()


@pytest.mark.parametrize("kind", [gaussian, tanh_like, highway_like, relu_like, orthogonal, ill_conditioned])
@pytest.mark.parametrize("block", [1, None])
def test_the_ordinary_step_is_the_general_one_to_the_bit(kind, block, monkeypatch):
    """Far apart, near, out of order, with angles that begin to grow: where it says that it serves, nothing differs."""
    factors = [torch.stack(members) for members in zip(*(kind(12, 40, seed) for seed in range(3)), strict=True)]
    factors += [torch.linalg.inv(a) for a in reversed(factors[-20:])] if kind is gaussian else []
    quick = product_svd(factors, block=block)
    taken = []
    monkeypatch.setattr(recorded_step, "ordinary_step", lambda *arguments: taken.append(arguments))
    general = product_svd(factors, block=block)
    assert taken
    for name, values in vars(general).items():
        assert_close(getattr(quick, name), values, rtol=0, atol=0, equal_nan=True)


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "block"), [(gaussian, 1), (gaussian, None), (tanh_like, 1)])
def test_a_recorded_step_is_the_ordinary_one_to_the_bit(kind, block, monkeypatch):
    """With factors that the recorded step must refuse among them: singular, the identity, not finite in one member."""
    factors = [torch.stack(members).cuda() for members in zip(*(kind(8, 40, seed) for seed in range(3)), strict=True)]
    factors += [torch.linalg.inv(a) for a in reversed(factors[-10:])] if kind is gaussian else []
    factors[20] = torch.eye(8, dtype=torch.float64, device="cuda").expand(3, -1, -1)
    factors[-3] = factors[-3] * (torch.arange(8, device="cuda") != 5)
    factors[-2] = factors[-2].clone()
    factors[-2][1, 0, 0] = torch.nan
    made = []
    monkeypatch.setattr(recorded_step, "recorded_if_possible",
                        lambda *step, record=recorded_step.recorded_if_possible: made.append(record(*step)) or made[-1])
    quick = product_svd(factors, block=block)
    assert made and None not in made
    monkeypatch.setattr(recorded_step, "REPEATS", math.inf)
    plain = product_svd(factors, block=block)
    assert len(made) <= 3
    for name, values in vars(plain).items():
        assert_close(getattr(quick, name), values, rtol=0, atol=0, equal_nan=True)


@pytest.mark.gpu
def test_a_product_whose_step_cannot_be_recorded_is_computed_and_says_so(monkeypatch):
    """A step that asks the device something cannot.  It leaves nothing behind that the next recording would meet."""
    factors = [a.cuda() for a in gaussian(6, 40)]
    quick = product_svd(factors, block=1)

    def asking(*arguments: object, step: Callable = recorded_step.attempted) -> object:
        grown, facts = step(*arguments)
        facts.tolist()
        return grown, facts
    with monkeypatch.context() as within:
        within.setattr(recorded_step, "attempted", asking)
        with pytest.warns(RuntimeWarning, match=r"product_svd: a step of \(1, 6, 6\) could not be recorded"):
            plain = product_svd(factors, block=1)
    for result in (plain, product_svd(factors, block=1)):
        assert torch.equal(quick.log_singular_values, result.log_singular_values)


@pytest.mark.gpu
def test_partial_products_replay_the_step_too():
    """What one has given is not overwritten by the next."""
    factors = [a.cuda() for a in gaussian(8, 30)]
    partial = list(partial_product_svd(factors))
    for count in (5, 20, 30):
        assert torch.equal(partial[count - 1].log_singular_values,
                           product_svd(factors[:count], block=1).log_singular_values)


@pytest.mark.gpu
@pytest.mark.emulated
def test_a_further_factor_is_a_few_launches_and_one_wait():
    from emulated_cuda import LOG

    counts = []
    for depth in (60, 160):
        factors = [a.cuda() for a in gaussian(8, depth)]
        LOG.clear()
        product_svd(factors, block=1)
        counts.append((LOG.kernels.total() - LOG.kernels["copy_"], LOG.waits.total()))
    (fewer, shorter), (more, longer) = counts
    assert more - fewer < 100 * 20
    assert longer - shorter < 100 * 1.2


def test_threads_do_not_change_a_bit():
    factors = [a.unsqueeze(0) * torch.ones(5, 1, 1).double() for a in tanh_like(20, 10)]
    with one_thread():
        alone = product_svd(factors)
    assert torch.equal(product_svd(factors).log_singular_values, alone.log_singular_values)


BAD = [
    (lambda: product_svd([]), ValueError, "must hold at least one factor"),
    (lambda: product_svd(torch.eye(3)), TypeError, "must be an iterable of factors, got Tensor"),
    (lambda: product_svd([torch.eye(3).long()]), TypeError, "must be a real floating tensor, got torch.int64"),
    (lambda: product_svd([torch.ones(3)]), ValueError, r"must be of shape \(\*batch, rows, columns\)"),
    (lambda: product_svd([torch.eye(3), "A"]), TypeError, "a factor must be a tensor or a function of one, got str"),
    (lambda: product_svd([lambda x: x]), ValueError, "`columns` must be given"),
    (lambda: product_svd([torch.eye(3), torch.eye(4)]), ValueError, "must have 3 columns"),
    (lambda: product_svd([torch.eye(3), torch.ones(2, 3, 3)]), ValueError, "must fit a batch of 1"),
    (lambda: product_svd([lambda x: x[0]], columns=3), ValueError, "function must return"),
    (lambda: product_svd([lambda x: x], columns=3, batch_shape=(2, 0)), ValueError, r"no axis of 0, got \(2, 0\)"),
    (lambda: product_svd([torch.eye(3)], eps=0.0), ValueError, "`eps` must be from 2.22e-16"),
    (lambda: product_svd([torch.eye(3)], block=0), ValueError, "`block` must be an integer of at least 1, got 0"),
]


@pytest.mark.parametrize(("call", "kind", "message"), BAD)
@pytest.mark.usefixtures("annotations_unchecked")  # they are checked on a random item
def test_bad_input_is_named(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
