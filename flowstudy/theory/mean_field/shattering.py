"""Correlation of the gradients of two inputs if their ReLU masks were independent: the shattered-gradients estimate."""

from flowstudy.arguments import NAME, takes
from flowstudy.refusal import RefusalError
from flowstudy.theory.checks import Result, Values, check_choice, check_integer, check_number

from .maps import plain_number


@takes(net=NAME)
def shattered_correlation(net: str, depth: Values, branch_var: Values | None = None) -> Result:
    """Gradient correlation of two inputs whose ReLU masks are independent of each other.

    A plain net keeps 1/2 per layer, x + relu(W x) keeps 3/4, and g1 x + g2 relu(W x) with g1^2 + g2^2 = 1 keeps
    g1^2 + g2^2 / 2.  True masks are not independent, they agree more and more with depth: `plain` and `highway` give
    the correlation that gradients do have, which in plain ReLU nets falls as a power of depth, not as 2^-depth: in the
    limit of depth as depth^-3, but slower before (at 45 degrees with the local exponent -0.9 from depth 2 to 10, -2.2
    from 24 to 50, -2.8 from 200 to 400).

    Args:
        net: "plain", "residual", or "highway" (constant gates).
        depth: number of layers.
        branch_var: g2^2 of the highway, None is 1 / depth: the correlation then stays above 1/2, and goes to e^(-1/2).

    Returns:
        The correlation, 0 to 1, in the arguments' common shape.

    Source: Balduzzi et al. 2017 (arXiv:1702.08591): plain nets, residual nets without batch normalisation and highway
    nets.  With batch normalisation, which flowstudy's residual nets lack, they find about 1 / sqrt(depth).

    >>> shattered_correlation("residual", 2)
    0.5625
    """
    call = "shattered_correlation"
    check_choice(call, "net", net, ("plain", "residual", "highway"))
    depth = check_integer(call, "depth", depth)
    if net != "highway" and branch_var is not None:
        raise RefusalError(f"{call}: `branch_var` must be None unless net is 'highway', got {branch_var!r}.")
    if net == "highway":
        part = 1 / depth if branch_var is None else check_number(call, "branch_var", branch_var, "between 0 and 1")
        return plain_number((1 - part / 2) ** depth)
    return plain_number({"plain": 0.5, "residual": 0.75}[net] ** depth)
