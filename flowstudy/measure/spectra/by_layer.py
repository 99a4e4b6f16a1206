"""The spectrum of every layer's Jacobian and of every product of layers, for one net or the whole of a stack."""

from collections.abc import Iterator

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowstudy.arguments import instance_of, one_among, optional, takes
from flowstudy.measure.models.chain import Factor, NotProvedError, Pulled, proved_jacobians
from flowstudy.measure.models.context import RandomState, in_own_context
from flowstudy.measure.models.dense_jacobian import Stretch
from flowstudy.measure.models.inputs import Inputs, Name, Shown
from flowstudy.measure.models.layers import parts_of_own_net
from flowstudy.measure.models.precision.attempts import in_float64
from flowstudy.measure.numerics.products.product_svd import partial_product_svd, product_svd
from flowstudy.refusal import RefusalError
from flowstudy.torch_arguments import TENSOR, some_tensors

from .checks import check_alike, prepare
from .choice import samples_at_once
from .one_model import pass_and_chain
from .probe import Probe
from .result import JacobianSpectrum, joined_spectra
from .routes import RESOLVED, agreement_of, dtype_name, eps_of, logs_of, spectrum_of, structural_rank


@takes(wrt=optional(instance_of((str, int, tuple), "a key of x")))
@in_own_context
@in_float64
def layer_jacobian_spectra(model: nn.Module, x: Shown | None = None, *, samples: int = 16, seed: int = 0,
                           output: str | int | None = None, wrt: Name | None = None) -> pd.DataFrame:
    """How isometry is lost with depth: the spectrum of every layer's Jacobian and of every product of layers 1..l.

    The layers are the factors of `jacobian_spectrum`'s product route, held against the uncut model as there.

    Args: as `jacobian_spectrum`.

    Returns:
        A row per sample, layer (1..) and rank: `log_singular_value` of layer l's own Jacobian (natural log), and
        `log_singular_value_from_input` of the input-to-layer-l Jacobian; nan where one has fewer values, or where a
        value is not resolved; -inf is exactly zero.

    Raises:
        ValueError, TypeError: as `jacobian_spectrum`; a model with a layer whose backward pass is not its Jacobian's
            (a hook on gradients).
    """
    call = "layer_jacobian_spectra"
    probe, inputs = prepare(call, model, x, samples, seed, output, wrt)
    state = RandomState(inputs.device)
    whole, chain, pulled = pass_and_chain(call, probe, inputs, state)
    together = samples_at_once("product", chain, whole)
    if together >= len(inputs):
        layers = spectra_by_layer(call, whole, chain, pulled)
    else:
        row, image = pulled.ends
        parts = [spectra_of_part(call, probe, *part, state)
                 for part in zip(inputs.split(together), row.split(together), image.split(together), strict=True)]
        layers = [(layer[0][0], joined_spectra([one for _, one, _ in layer]),
                   joined_spectra([total for _, _, total in layer]))
                  for layer in zip(*parts, strict=True)]
    return frame_by_layer(layers)


def frame_by_layer(layers: list[tuple[str, JacobianSpectrum, JacobianSpectrum]]) -> pd.DataFrame:
    """A row for each sample, layer and rank, with nan where one of a layer's two spectra has fewer values."""
    parts = []
    for layer, (name, own, total) in enumerate(layers, 1):
        ranks = max(own.log_singular_values.shape[-1], total.log_singular_values.shape[-1])
        logs = [torch.nn.functional.pad(log_s, (0, ranks - log_s.shape[-1]), value=torch.nan)
                for log_s in (own.log_singular_values, total.log_singular_values)]
        samples = len(logs[0])
        parts.append(pd.DataFrame({
            "sample": torch.arange(samples).repeat_interleave(ranks).numpy(),
            "rank": torch.arange(1, ranks + 1).repeat(samples).numpy(),
            "log_singular_value": logs[0].flatten().numpy(),
            "log_singular_value_from_input": logs[1].flatten().numpy(),
            "layer": layer,
            "module": name,
        }))
    return pd.concat(parts, ignore_index=True)


def spectra_of_part(call: str, probe: Probe, inputs: Inputs, row: Tensor, image: Tensor, state: RandomState,
                    ) -> list[tuple[str, JacobianSpectrum, JacobianSpectrum]]:
    """The spectra by layer of a part of a batch, checked against the pass of the whole batch.

    Args:
        row: a random gradient (sample, *outputs) at the outputs.
        image: its gradient at the inputs by the pass of the whole batch, which the part's own pass must reproduce.
    """
    whole, chain, pulled = pass_and_chain(call, probe, inputs, state)
    check_alike(call, whole.back(row), image, agreement_of(dtype_name(whole)), len(inputs))
    return spectra_by_layer(call, whole, chain, pulled)


def spectra_by_layer(call: str, whole: Stretch, chain: list[Factor], pulled: Pulled,
                     ) -> list[tuple[str, JacobianSpectrum, JacobianSpectrum]]:
    """For each layer, its name, its own spectrum, and the spectrum of the product of all layers up to it."""
    dtype = dtype_name(whole)
    try:
        factors = list(proved_jacobians(chain, agreement_of(dtype), pulled))
    except NotProvedError as error:
        raise RefusalError(f"{call}: `model` must be a chain of layers whose Jacobians autograd's backward pass agrees "
                           f"with, and {error} is not one (a hook on gradients?). "
                           "Use jacobian_spectrum(model, x, method='dense').") from None
    own = [single(factor, dtype) for factor in factors]
    return [(factor.name, one, total)
            for factor, one, total in zip(chain, own, running_products(factors, own, dtype), strict=True)]


def single(factor: Float[Tensor, "sample outputs inputs"], dtype: str) -> JacobianSpectrum:
    """Singular values of one factor: LAPACK's where all are well above rounding, else by the product route."""
    found = spectrum_of(factor, torch.zeros(len(factor)), 1, dtype, structural_rank(factor))
    if is_resolved(found):
        return found
    return JacobianSpectrum(*logs_of(product_svd([factor], eps=eps_of(dtype))), 1, factor.shape[-1], "product", dtype)


def running_products(factors: list[Tensor], own: list[JacobianSpectrum], dtype: str) -> list[JacobianSpectrum]:
    """Spectra of the products A_l ... A_1: multiplied out while all values are well above rounding, then by the
    product route."""
    found, product = [own[0]], factors[0]
    error = torch.zeros(len(product))   # norm of the product's rounding so far
    rank = structural_rank(product)
    for layer, (factor, one) in enumerate(zip(factors[1:], own[1:], strict=True), 2):
        size, before = one.singular_values[:, 0].nan_to_num(), found[-1].singular_values[:, 0].nan_to_num()
        error = size * error + 2 * factor.shape[-1] * eps_of(dtype) * size * before
        product, rank = thin(factor @ product), torch.minimum(rank, structural_rank(factor))
        spectrum = spectrum_of(product, error, layer, dtype, rank)
        if not is_resolved(spectrum):
            break
        found.append(spectrum)
    if len(found) < len(factors):
        by_factors = partial_product_svd(factors, eps=eps_of(dtype))
        for layer, spectrum in enumerate(by_factors, 1):
            if layer > len(found):
                found.append(JacobianSpectrum(*logs_of(spectrum), layer, factors[0].shape[-1], "product", dtype))
    return found


def thin(product: Float[Tensor, "sample rows columns"]) -> Float[Tensor, "sample rows columns"]:
    """A matrix with the same singular values, alone and in every product from the left, and more columns of zeros.

    Where many rows are zero in every sample (dead units), the others span few dimensions.  The columns are turned into
    these by an orthogonal matrix; zero columns cost the next singular values nothing.
    """
    live = (product != 0).any(0).any(1)
    if 4 * live.sum() > 3 * product.shape[-1]:
        return product
    narrow = torch.zeros_like(product)
    narrow[:, live, :int(live.sum())] = torch.linalg.qr(product[:, live].mT, mode="r").R.mT
    return narrow


def is_resolved(found: JacobianSpectrum) -> bool:
    return bool((found.log_error <= RESOLVED).all()) and not found.below_floor.any()


@takes(state=some_tensors, x=TENSOR, part=one_among(("all", "body")))
@in_own_context
def stacked_jacobian_spectrum(model: nn.Module, state: dict[str, Tensor], x: Tensor, *,
                              part: str = "body") -> Float[Tensor, "net sample rank"]:
    """Log singular values of every net of a stack by the product route; `model` is one of flowstudy's nets.

    Equal to `jacobian_spectrum` of each net alone.

    Args:
        state: parameters by name, stacked along a leading net axis.
        x: inputs (sample, inputs), shared by the nets.
        part: "body" or "all".
    Returns:
        Natural logs (net, sample, rank), float64, descending; -inf is exactly zero.
    """
    layers = parts_of_own_net(model)
    if layers is None:
        raise RefusalError(f"stacked_jacobian_spectrum: `model` must be one of flowstudy's own nets as they are, got "
                           f"{type(model).__name__}. Measure the nets one by one with jacobian_spectrum.")
    names = {module: name for name, module in model.named_modules()}

    def jacobians() -> Iterator[Tensor]:
        h = x.double().expand(len(next(iter(state.values()))), *x.shape)
        for i, layer in enumerate(layers):
            prefix = f"{names[layer]}."
            own = {name[len(prefix):]: value.double() for name, value in state.items() if name.startswith(prefix)}
            apply = torch.func.vmap(lambda own, h, layer=layer: torch.func.functional_call(layer, own, (h,)))
            inside = part == "all" or 0 < i < len(layers) - 1
            if inside:
                one = torch.func.jacfwd if h.shape[-1] <= own_width(own) else torch.func.jacrev
                differentiate = one(lambda own, h, layer=layer: torch.func.functional_call(layer, own, (h,)), argnums=1)
                yield torch.func.vmap(torch.func.vmap(differentiate, (None, 0)))(own, h)
            h = apply(own, h)

    with torch.no_grad():
        return product_svd(jacobians()).log_singular_values.cpu()


def own_width(own: dict[str, Tensor]) -> int:
    return min(value.shape[1] for value in own.values() if value.ndim > 2)
