"""The quantities that mean-field theory predicts for a net's body, measured layer by layer for two inputs."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from flowstudy.measure.models.context import RandomState, in_own_context
from flowstudy.measure.models.copies import float64_copy, own_tensor
from flowstudy.measure.models.dense_jacobian import jacobian_of_pass, start_and_output
from flowstudy.measure.models.layer_rules import layer_rule
from flowstudy.refusal import RefusalError
from flowstudy.torch_settings import one_thread

Blocks = nn.Sequential | Sequence[nn.Module]


@in_own_context
def body_moments(blocks: Blocks, x: Float[Tensor, "2 width"], *, every: int = 1, probes: int = 64,
                 seed: int = 0) -> pd.DataFrame:
    """Two signals through `blocks` and the Jacobians at them, in float64: the columns of `theory.highway`, measured.

    All but the gradient correlation is exact: the layers' Jacobians are known in closed form, those of other modules
    by differentiation, row by row, and multiplied out, a product of width^3 per layer. However small J becomes, P keeps
    its digits.

    Args:
        blocks: layers from vectors to vectors of one width, measured in eval mode; a net's are `net.blocks`.
        x: the two inputs of the first block.
        every: layers between two rows; the first and the last layer always have one.
        probes: random directions by which the gradient correlation is estimated: to about 1 / sqrt(width probes), or
            1 / sqrt(probes) where one singular value outgrows the others.
        seed: of the directions.

    Returns:
        A row per recorded layer.  `layer`, 1 is the first block.  `q`, `m`: mean square and mean of its outputs, mean
        of the two inputs'; `c`: cosine between them.  `chi`: mean squared singular value of the layer's Jacobian,
        mean of the two inputs'.  Of the Jacobian J from the first input to here, width n: `mean_squared`,
        (1/n) tr J J^T; `P`, (1/n) tr (J J^T)^2 over its square; `mean_squared_without_largest` and
        `P_without_largest`, the same without the largest singular value, which theory leaves out where the
        activations have a mean (see `theory.highway`).
        `gradient_correlation`: tr J_a J_b^T over the root of tr J_a J_a^T tr J_b J_b^T, the cosine between what
        the two inputs send back, on average over error signals.  All are nan behind a layer whose J is 0.

    What it cannot measure: blocks that are not functions of one vector each, such as convolutions; they are refused.
    Layers of the library's exact classes are measured by their Jacobians in closed form, all others, subclasses and
    blocks with hooks among them, by autograd.  Of blocks that draw random numbers in eval mode too, it is one pass that
    is measured; the global random state stays as it is.

    Raises:
        ValueError: no blocks, blocks of several widths or convolutional ones, a number that is no positive integer.
    """
    call = "body_moments"
    check_blocks(call, blocks, every=every, probes=probes)
    x = own_tensor(x).double()
    random_state = RandomState(x.device)
    try:
        layers = enumerate(signals_and_jacobians(call, blocks, x, probes, seed, random_state), 1)
        rows = [moments(layer, *found) for layer, found in layers if layer % every == 0 or layer in (1, len(blocks))]
    finally:
        random_state.restore()
    return pd.DataFrame(rows)


def signals_and_jacobians(call: str, blocks: Blocks, h: Float64[Tensor, "2 width"], probes: int, seed: int,
                          state: RandomState) -> Iterator[tuple[Tensor, ...]]:
    """Go through the layers and yield, for each, five things.

    They are the outputs for the two inputs (2, width), the layer's two Jacobians (2, width, width), the Jacobian J from
    the first input to here scaled to a mean square singular value of 1, ln of that value before scaling, and both
    inputs' J times the random directions (2, width, probes).
    """
    width = h.shape[1]
    total = torch.eye(width, dtype=torch.float64, device=h.device)
    log_square = torch.zeros((), dtype=torch.float64, device=h.device)
    directions = torch.randn(width, probes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    sent = directions.to(h.device).expand(2, -1, -1)
    for block in blocks:
        h, jacobians = outputs_and_jacobians(call, float64_copy(call, block).eval(), h, state)
        with torch.no_grad():
            total, sent = jacobians[0] @ total, jacobians @ sent
            square = total.square().sum() / width
            total, sent = total / square.sqrt(), sent / square.sqrt()
            log_square = log_square + square.log()
        yield h, jacobians, total, log_square, sent


def moments(layer: int, h: Tensor, jacobians: Tensor, total: Tensor, log_square: Tensor, sent: Tensor) -> dict:
    cosine, gradient_cosine = (torch.cosine_similarity(*pair.flatten(1), dim=0) for pair in (h, sent))
    values = {"q": h.square().mean(), "m": h.mean(), "c": cosine,
              "chi": jacobians.square().sum() / (2 * h.shape[1]), "mean_squared": log_square.exp(),
              **spectral_moments(total, log_square), "gradient_correlation": gradient_cosine}
    return {"layer": layer} | {name: value.item() for name, value in values.items()}


def spectral_moments(total: Tensor, log_square: Tensor) -> dict[str, Tensor]:
    """P of all singular values, and the mean square and P without the largest, as `body_moments` defines them."""
    if total.isfinite().all():
        with one_thread():
            squares = torch.linalg.eigvalsh(total @ total.mT)  # ascending
    else:   # behind a layer whose Jacobian is 0; LAPACK raises
        squares = total.new_full((len(total),), torch.nan)
    rest = squares[:-1]
    return {"P": relative_second_moment(squares), "mean_squared_without_largest": rest.mean() * log_square.exp(),
            "P_without_largest": relative_second_moment(rest)}


def relative_second_moment(squares: Tensor) -> Tensor:
    return squares.square().mean() / squares.mean().square()


def two_inputs(width: int, q: float = 1.0, m: float = 0.0, c: float = 0.5, *,
               seed: int = 0) -> Float64[Tensor, "2 width"]:
    """Two random vectors whose mean square q, mean m and cosine c are exact; otherwise their entries are Gaussian.

    Args:
        seed: of the draw.

    Returns:
        (2, width), float64.

    Raises:
        ValueError: a width below 3, or numbers that no two vectors have.
    """
    call, spread = "two_inputs", q - m**2
    if width < 3:
        raise RefusalError(f"{call}: `width` must be at least 3, got {width}.")
    if not 0 < spread < np.inf:
        raise RefusalError(f"{call}: `q` must be finite and above m^2 = {m**2:.6g}, got {q!r}.")
    shared = (q * c - m**2) / spread
    if not -1 <= shared <= 1 or c > 1:
        raise RefusalError(f"{call}: `c` must be between 2 m^2 / q - 1 = {2 * m**2 / q - 1:.6g} and 1, got {c!r}.")
    noise = np.random.default_rng(seed).standard_normal((width, 2))
    _, one, other = np.linalg.qr(np.column_stack([np.ones(width), noise]))[0].T * width**0.5
    return torch.from_numpy(m + spread**0.5 * np.stack([one, shared * one + (1 - shared**2)**0.5 * other]))


def check_blocks(call: str, blocks: Blocks, **integers: int) -> None:
    for name, value in integers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise RefusalError(f"{call}: `{name}` must be an integer of at least 1, got {value!r}.")
    if not len(blocks):
        raise RefusalError(f"{call}: `blocks` must hold at least one layer, got none. A net has some from depth 2 on.")


def outputs_and_jacobians(call: str, block: nn.Module, h: Float64[Tensor, "2 width"], state: RandomState,
                          ) -> tuple[Float64[Tensor, "2 width"], Float64[Tensor, "2 width width"]]:
    """The block's outputs for the two inputs and its Jacobians at them.

    The Jacobians are in closed form where `layer_rule` knows the block; else they are differentiated input by input, in
    the same forward pass that gave the outputs.
    """
    width = h.shape[1]
    try:
        jacobians = layer_rule(block, h)
        with state.continued():
            passes = [start_and_output(block, one) for one in (h.split(1) if jacobians is None else [h])]
        after = torch.cat([y for _, y in passes]).detach()
    except (RuntimeError, TypeError) as error:  # the block's own, about an input of this shape, or no tensor to join
        raise not_square(call, block, width) from error
    if after.shape != h.shape:
        raise not_square(call, block, width)
    if jacobians is None:
        jacobians = torch.cat([jacobian_of_pass(*one, x) for one, x in zip(passes, h.split(1), strict=True)])
    return after, jacobians


def not_square(call: str, block: nn.Module, width: int) -> ValueError:
    return ValueError(f"{call}: `blocks` must be fully connected layers of the inputs' width {width}, got "
                      f"{' '.join(repr(block).split())}. Pass a net's `blocks`.")
