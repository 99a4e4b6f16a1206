"""Singular values of long products: every one right against extended precision; rank, isometry and mates exact."""

import math
import sys

import mp_reference
import pytest
import torch
from torch import Tensor

from flowstudy.measure.batched_qr import batched_qr
from flowstudy.measure.graded_jacobi import DEAD, graded_singular_values, rotate_meetings, round_robin
from flowstudy.measure.product_svd import partial_product_svd, product_svd


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


def against_reference(factors: list[Tensor], **options) -> tuple[Tensor, Tensor]:
    """Errors of the finite log values, and the errors claimed; the ranks must agree."""
    expected, got = mp_reference.log_singular_values(factors), product_svd(factors, **options)
    finite = expected.isfinite()
    assert torch.equal(got.log_singular_values.isfinite(), finite)
    assert int(got.rank) == int(finite.sum())
    return (got.log_singular_values - expected)[finite].abs(), got.log_error[finite]


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


@pytest.mark.parametrize(("factors", "tolerance"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_every_singular_value_agrees_with_extended_precision(factors, tolerance):
    """And log_error, per value, is no less than half the error: it covers rounding, it does not promise more."""
    error, claimed = against_reference(factors())
    assert error.max() < tolerance
    assert (error <= 2 * claimed).all()
    assert claimed.max() < 1e3 * tolerance


@pytest.mark.parametrize("route", ["cholesky", "householder"])
def test_both_qr_routes_factor_and_the_limits_of_cholesky_are_caught(route):
    """Q R = A and Q^T Q = I (to eps kappa^2 for Cholesky); singular and badly conditioned members go by Householder."""
    a = torch.stack([normal(12, 8, seed=3), normal(12, 8, seed=4) * torch.logspace(0, -9, 8, dtype=torch.float64),
                     normal(12, 1, seed=5).expand(12, 8), torch.zeros(12, 8, dtype=torch.float64)])
    a[0, :, 5] = 0.0
    q, r, by_cholesky = batched_qr(a, route=route)
    assert by_cholesky.tolist() == ([True, False, False, True] if route == "cholesky" else [False] * 4)
    torch.testing.assert_close(q @ r, a, rtol=0, atol=1e-14)
    assert (r.tril(-1) == 0).all()
    gram = q.mT @ q
    torch.testing.assert_close(gram[1:3], torch.eye(8, dtype=torch.float64).expand(2, 8, 8), rtol=0, atol=1e-14)


def test_unknown_qr_route_is_refused():
    with pytest.raises(ValueError, match="`route` must be 'cholesky' or 'householder', got 'lu'"):
        batched_qr(torch.eye(2, dtype=torch.float64)[None], route="lu")


def test_the_householder_route_gives_the_same_values(monkeypatch):
    """The routes differ by rounding only, so the choice between them, member by member, is no choice of answer."""
    factors = tanh_like(16, 100)
    expected = product_svd(factors)
    module = sys.modules[product_svd.__module__]   # the package may export the function under the module's name
    monkeypatch.setattr(module, "batched_qr", lambda a, gram: batched_qr(a, route="householder"))
    torch.testing.assert_close(product_svd(factors).log_singular_values, expected.log_singular_values,
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
    lambda a: a.index_fill(1, torch.tensor([2]), 0.0),                          # a dead input
    lambda a: torch.linalg.svd(a).U * torch.tensor([1.0] * 19 + [0.0]).double() @ torch.linalg.svd(a).Vh,
], ids=["rows", "columns", "input", "svd"])
def test_a_singular_factor_costs_exactly_one_value(spoil):
    """-inf for the lost direction, wherever in the chain the factor stands, and nothing else lost."""
    for place in (0, 4, 9):
        factors = gaussian(20, 10, seed=place)
        factors[place] = spoil(factors[place])
        got = product_svd(factors)
        assert got.rank == 19
        assert got.log_singular_values[-1] == -math.inf
        assert got.log_error[-1] == 0


def test_rank_of_a_singular_factor_holds_in_every_one_of_many_draws():
    """Two equal rows among 12 Gaussian ones, 3000 times: an unpivoted QR alone takes rounding for rank in some."""
    factors = [normal(3000, 12, 12, seed=i) for i in range(3)]
    factors[1][:, 3] = factors[1][:, 5]
    assert (product_svd(factors).rank == 11).all()


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
    torch.testing.assert_close(got.log_singular_values[0], alone.log_singular_values[0], rtol=0, atol=1e-12)
    healthy = [torch.where(a.isfinite(), a, 0.1) for a in factors]   # same shapes, so the same kernels
    assert torch.equal(product_svd(healthy, block=1).log_singular_values[0], got.log_singular_values[0])
    torch.testing.assert_close(product_svd(factors).log_singular_values[0], alone.log_singular_values[0],
                               rtol=0, atol=1e-10)


def test_powers_of_two_shift_the_logs_and_nothing_overflows():
    """A_l -> 2**k_l A_l adds sum k_l log 2; entries of 1e-300 and 1e300 and 3000 layers of them are no trouble."""
    factors = gaussian(10, 40)
    shifts = [(-1) ** i * 25 * i for i in range(40)]
    expected = product_svd(factors).log_singular_values + sum(shifts) * math.log(2.0)
    got = product_svd([a * 2.0**k for a, k in zip(factors, shifts, strict=True)])
    torch.testing.assert_close(got.log_singular_values, expected, rtol=1e-14, atol=1e-12)
    eye = torch.eye(3, dtype=torch.float64)
    for size in (1e-300, 1e300, 5e-324):
        values = product_svd([size * eye] * 3000).log_singular_values
        torch.testing.assert_close(values, torch.full_like(values, 3000 * math.log(size)), rtol=1e-13, atol=0)


def test_functions_and_float32_and_batch_axes_and_generators():
    """A factor may be a function, a float32 tensor, shared by the batch or not, or come from a generator."""
    factors = [normal(2, 3, 8, 8, seed=i) / 3 for i in range(12)]
    expected = product_svd(factors)
    assert expected.log_singular_values.shape == (2, 3, 8) and expected.rank.shape == (2, 3)
    functions = [a.flatten(0, 1).matmul for a in factors]
    got = product_svd(iter(functions), columns=8, batch_shape=(2, 3))
    assert torch.equal(got.log_singular_values, expected.log_singular_values)
    shared = product_svd([factors[0], *[a[0, 0] for a in factors[1:]]]).log_singular_values
    spread = product_svd([factors[0], *[a[:1, :1].expand(2, 3, 8, 8) for a in factors[1:]]]).log_singular_values
    torch.testing.assert_close(shared, spread, rtol=0, atol=1e-11)
    single = product_svd([a.float() for a in factors]).log_singular_values
    assert torch.equal(single, product_svd([a.float().double() for a in factors]).log_singular_values)


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
    torch.testing.assert_close(got.log_singular_values[:2], direct[:2].log(), rtol=0, atol=1e-13)


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


@pytest.mark.parametrize("players", [2, 4, 6, 32])
def test_round_robin_meets_every_pair_once(players):
    games = round_robin(players).sort(-1).values
    assert sorted(map(tuple, games.flatten(0, 1).tolist())) == [(i, j) for i in range(players)
                                                                for j in range(i + 1, players)]
    assert all(len(set(played.flatten().tolist())) == players for played in games)


@pytest.mark.parametrize("spread", [0.0, 3.0, 40.0, 4000.0])
def test_graded_jacobi_against_the_volume_and_a_known_factor(spread):
    """diag(2**e) U with U orthogonal has the singular values 2**e; with dead rows among them, -inf."""
    exponents = (torch.linspace(spread, -spread, 40, dtype=torch.float64).round()).expand(2, 40).clone()
    exponents[1, 5] = DEAD
    u = torch.linalg.qr(normal(2, 50, 40, seed=1)).Q.mT.contiguous()
    u[1, 5] = 0.0
    got, _ = graded_singular_values(exponents, u)
    expected = exponents * math.log(2.0)
    torch.testing.assert_close(got[0], expected[0].sort(descending=True).values, rtol=1e-15, atol=1e-13)
    assert got[1, -1] == -math.inf and got[1, :-1].isfinite().all()


def test_rows_of_equal_size_are_not_rotated_for_ever(monkeypatch):
    """An isometry's rows are orthogonal to rounding: six sweeps are plenty, and give what forty give."""
    monkeypatch.setattr("flowstudy.measure.graded_jacobi.MAX_SWEEPS", 6)
    factors = [torch.stack(pair) for pair in zip(orthogonal(64, 30), highway_like(64, 30), strict=True)]
    few = product_svd(factors).log_singular_values
    monkeypatch.setattr("flowstudy.measure.graded_jacobi.rotate_meetings", counted := Counted(rotate_meetings))
    monkeypatch.setattr("flowstudy.measure.graded_jacobi.MAX_SWEEPS", 40)
    assert torch.equal(product_svd(factors).log_singular_values, few)
    assert counted.calls <= 6 * 3   # 64 rows are 4 blocks: 3 rounds a sweep


class Counted:
    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *arguments):
        self.calls += 1
        return self.function(*arguments)


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
    (lambda: product_svd([torch.eye(3)], block=0), ValueError, "`block` must be at least 1, got 0"),
]


@pytest.mark.parametrize(("call", "kind", "message"), BAD)
@pytest.mark.usefixtures("annotations_unchecked")  # they are checked on a random item
def test_bad_input_is_named(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
