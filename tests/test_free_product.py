"""The law of products of a I + g G against laws that share nothing with it: Fuss-Catalan, its edge, its moments."""

import numpy as np
import pytest
from scipy.integrate import trapezoid

from flowstudy import theory
from flowstudy.theory.random_matrix.free_product import product_log_singular_values

MIDDLES = (np.arange(4000) + 0.5) / 4000


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_without_carry_it_is_the_law_of_fuss_and_catalan(depth):
    """The known density, integrated up to each quantile's value, gives the quantile back."""
    for quantile in (0.05, 0.5, 0.99):
        top = 2 * product_log_singular_values(quantile, np.zeros(depth), np.ones(depth))
        log_x = np.linspace(-30 * depth, top, 20001)
        share = trapezoid(theory.fuss_catalan_density(np.exp(log_x), depth) * np.exp(log_x), log_x)
        assert share == pytest.approx(quantile, abs=2e-3)


@pytest.mark.parametrize(("carry", "gain", "depth"), [(0.73, 0.27, 10), (0.9975, 0.0025, 300), (1.0, 1.0, 4)])
def test_edge_mean_square_and_volume_are_those_of_the_closed_forms(carry, gain, depth):
    """`residual_edge`; (a^2 + g^2)^depth; ln a per layer, the mean of Lyapunov exponents, where a >= g."""
    logs = product_log_singular_values(MIDDLES, np.full(depth, carry), np.full(depth, gain))
    log_square = depth * np.log(carry**2 + gain**2)
    spread = np.ptp(logs)
    assert logs[-1] == pytest.approx((np.log(theory.residual_edge(depth, carry, gain)) + log_square) / 2,
                                     abs=2e-2 * spread)
    assert np.log(np.exp(2 * logs - log_square).mean()) == pytest.approx(0, abs=2e-3)
    assert logs.mean() == pytest.approx(depth * np.log(carry), abs=2e-3 * spread)


def test_layers_may_differ_in_any_order():
    """Free factors commute in law; a layer without gain only scales."""
    carry, gain = np.array([0.9, 0.5, 1.0]), np.array([0.1, 0.4, 0.3])
    law = product_log_singular_values(MIDDLES, carry, gain)
    np.testing.assert_allclose(product_log_singular_values(MIDDLES, carry[::-1], gain[::-1]), law, atol=1e-9)
    scaled = product_log_singular_values(MIDDLES, np.append(carry, 0.25), np.append(gain, 0.0))
    np.testing.assert_allclose(scaled, law + np.log(0.25), atol=1e-9)


@pytest.mark.parametrize("bad", [-0.1, 1.1, np.nan])
def test_a_quantile_beyond_0_and_1_is_refused(bad):
    with pytest.raises(ValueError, match="`quantile` must be between 0 and 1"):
        product_log_singular_values(bad, np.ones(2), np.ones(2))
