"""Closed forms against their tabulated values."""

import pytest

from flowstudy import theory


def test_newman_exponents_equal_the_tabulated_values():
    """n = 4 in full, and the sum for n = 64; eight digits are given."""
    assert theory.lyapunov_exponents(4) == pytest.approx([-.13518142, -.32832860, -.63518142, -1.32832860], abs=5e-9)
    exponents = theory.lyapunov_exponents(64)
    assert exponents[[0, 31, 63]] == pytest.approx([-.00785319, -.34649227, -2.71462296], abs=5e-9)
    assert exponents.sum() == pytest.approx(-33.10797268, abs=5e-9)


@pytest.mark.parametrize(("width", "weight_var", "rule"), [(0, 1.0, "width"), (3, -1.0, "weight_var")])
def test_nonsense_is_refused(width, weight_var, rule):
    with pytest.raises(ValueError, match=f"lyapunov_exponents: `{rule}` must be"):
        theory.lyapunov_exponents(width, weight_var)
