"""Densities of ln s: the stated error covers what a quadrature leaves open, and known values give an exact density."""

import functools
import math

import pytest
import torch
from test_matrix_free import dense_map, normal, with_values
from torch import Tensor
from torch.testing import assert_close

from flowstudy import theory
from flowstudy.measure.numerics.density import Density, exact_density
from flowstudy.measure.numerics.linear_map import LinearMap
from flowstudy.measure.numerics.products.product_svd import product_svd
from flowstudy.measure.numerics.stochastic_spectrum import spectral_density

QUERIES = 16


def factors(width: int, depth: int, seed: int = 123) -> Tensor:
    return normal(depth, width, width, seed=seed) / width**0.5


def log_values_of(matrices: Tensor) -> Tensor:
    return product_svd(matrix[None] for matrix in matrices).log_singular_values[0]


@functools.cache
def known_product(width: int, depth: int) -> Density:
    return exact_density(log_values_of(factors(width, depth)))


def product_map(matrices: Tensor) -> LinearMap:
    """Layer by layer, as a net's Jacobian comes."""
    def forward(rows: Tensor) -> Tensor:
        for matrix in matrices:
            rows = rows @ matrix.mT
        return rows

    def backward(rows: Tensor) -> Tensor:
        for matrix in matrices.flip(0):
            rows = rows @ matrix
        return rows

    return LinearMap(matrices.shape[2], matrices.shape[1], forward, backward)


def luck(width: int) -> float:
    """4.5 standard errors of a share over uniform starts, whose variance for m of n values is
    2 m (n - m) / n^2 (n + 2)."""
    return 4.5 / (2 * (width + 2) * QUERIES) ** 0.5


# --- all values known ------------------------------------------------------------------------------------------------


def test_shares_of_a_deep_product_lie_between_newmans_exponents():
    """ln s / depth goes to the exponents: halfway between two, 5 standard deviations off, stand whole shares."""
    width, depth = 6, 1000
    limit = torch.from_numpy(theory.lyapunov_exponents(width)).flip(0)
    share, error = exact_density(log_values_of(factors(width, depth))).cumulative(depth * (limit[1:] + limit[:-1]) / 2)
    assert_close(share, torch.arange(1, width, dtype=torch.float64) / width, rtol=0, atol=1e-15)
    assert not error.any()


def test_shares_of_a_wide_product_follow_the_triangular_law():
    """P(s^(1 / depth) <= t) = t^2 at infinite width and depth (Newman 1986): to 2.5 values of 40, 260 decades down."""
    width, depth = 40, 600
    t = torch.linspace(0.15, 0.95, 9, dtype=torch.float64)
    share, _ = exact_density(log_values_of(factors(width, depth))).cumulative(depth * t.log())
    assert (share - t.square()).abs().max() < 2.5 / width
    assert depth * t[0].log() / math.log(10) < -260


def test_density_integrates_to_the_share():
    """Share per unit of ln s, times the width of the bin; each value in one bin; errors of both edges."""
    edges = torch.tensor([-3.0, -1.0, 0.0, 0.5], dtype=torch.float64)
    known = exact_density(torch.tensor([-2.0, -1.0, -0.5, 0.5], dtype=torch.float64))
    assert_close(known.density(edges)[0], torch.tensor([2 / 4 / 2, 1 / 4, 1 / 4 / 0.5], dtype=torch.float64))
    sampled = spectral_density(dense_map(normal(60, 50)), queries=QUERIES, steps=20)
    share, error = sampled.cumulative(edges)
    density, spread = sampled.density(edges)
    assert_close(density * edges.diff(), share.diff())
    assert_close(spread * edges.diff(), error[1:] + error[:-1])


def test_unknown_values_and_zeros():
    """-inf is a zero, counted everywhere; nan lies below the values that are known: nothing is said there."""
    points = torch.tensor([-5.0, -2.0, 0.0], dtype=torch.float64)
    zeros = exact_density(torch.tensor([-1.0, -math.inf, -math.inf], dtype=torch.float64))
    assert_close(zeros.cumulative(points)[0], torch.tensor([2 / 3, 2 / 3, 1.0], dtype=torch.float64))
    dense = exact_density(torch.tensor([-1.0, -3.0, math.nan], dtype=torch.float64))
    assert_close(dense.cumulative(points)[0], torch.tensor([math.nan, 2 / 3, 1.0], dtype=torch.float64), equal_nan=True)
    assert dense.resolved_above == -3.0 and dense.unresolved == pytest.approx(1 / 3)
    nothing = exact_density(torch.full((3,), math.nan, dtype=torch.float64))
    assert nothing.cumulative(points)[0].isnan().all()


# --- sampled ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [4, 16, 32, 60, 80])
@pytest.mark.parametrize("depth", [1, 10, 40, 200])
def test_the_share_of_a_product_is_within_its_error(steps, depth):
    """Of 80 values that span 4 to 600 e-folds, known from the product route: wherever a share is given, it is right to
    its error and 4.5 standard errors of the starts; what float64 does not resolve is nan, and counted."""
    matrices, truth = factors(80, depth), known_product(80, depth)
    found = spectral_density(product_map(matrices), queries=QUERIES, steps=steps)
    low, high = truth.log_values[0, [0, -1]].tolist()
    points = torch.cat([torch.linspace(low - 1, high - 1e-6, 60), torch.linspace(high - 40, high - 1e-6, 60)]).double()
    share, error = found.cumulative(points)
    expected = truth.cumulative(points)[0]
    given = share.isfinite()
    assert ((share - expected).abs() <= error + luck(80))[given].all()
    assert given[points >= found.resolved_above].all()
    assert given.all() or abs(found.unresolved - truth.cumulative(points[~given].max()[None])[0]) < luck(80) + 0.03
    if depth >= 40 and steps == 80:
        assert not given[points < high - 36.1].any()  # ln of float64's eps


def test_a_spectrum_beyond_float64_is_not_given_as_certain():
    """Six values, each 1e-8 of the one before: the quadrature has found two, or counts all six into too few nodes."""
    jacobian = with_values(40, 40, torch.logspace(0, -40, 6, dtype=torch.float64))
    found = spectral_density(dense_map(jacobian), queries=QUERIES, steps=40)
    assert found.resolved_above == pytest.approx(math.log(dense_map(jacobian).floor), abs=1.5)
    below = torch.tensor([-90.0, -60.0, -40.0], dtype=torch.float64)
    assert all(column.isnan().all() for column in found.cumulative(below))
    share, error = found.cumulative(torch.tensor([-25.0, -10.0], dtype=torch.float64))
    assert ((share - torch.tensor([38 / 40, 39 / 40])).abs() < 4.5 * error).all()
    assert found.unresolved == pytest.approx(38 / 40, abs=luck(40))


@pytest.mark.parametrize("outputs, inputs", [(70, 50), (50, 70)])
def test_shares_are_those_of_svdvals(outputs, inputs):
    """Slow twin: all singular values of a small matrix; with a step for each value the error is the starts' alone."""
    jacobian = normal(outputs, inputs, seed=9)
    truth = exact_density(torch.linalg.svdvals(jacobian).log())
    points = torch.linspace(0.3, 2.7, 12, dtype=torch.float64)
    for steps in (6, 20, 50):
        found = spectral_density(dense_map(jacobian), queries=QUERIES, steps=steps)
        share, error = found.cumulative(points)
        assert ((share - truth.cumulative(points)[0]).abs() <= error + luck(50)).all()
    assert error.max() < luck(50)
    assert not found.unsettled.any()


def test_one_start_has_no_standard_error():
    """A single quadrature says nothing about the spread over starts: its error is nan."""
    found = spectral_density(dense_map(normal(20, 20)), queries=1, steps=5)
    assert found.cumulative(torch.tensor([0.5], dtype=torch.float64))[1].isnan().all()
