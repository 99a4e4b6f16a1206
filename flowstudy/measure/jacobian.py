"""Singular values of the input-output Jacobian, sample by sample, in float64: the routes, and which is taken when."""

import difflib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .chain import Chain, Function, chain_of, depth_of
from .copies import check_input, float64_copy, is_inert, untouched_random_state
from .dense_jacobian import Pass, jacobian, jacobian_of, run
from .drawn import Drawn
from .layer_rules import layer_rule
from .layers import input_features
from .matrix_free import jacobian_map, largest_singular_values
from .product_svd import partial_product_svd, product_svd
from .stochastic_spectrum import Density, MeanSquare, mean_squared_singular_value, spectral_density

MEMORY_BUDGET = 2**30  # bytes, beside the model's own: a quarter for the Jacobians held at once, the rest for their svd
WIDEST = 2048  # units: "auto" takes the product route up to here; its cost goes with the cube
METHODS = ("auto", "product", "dense", "matrix_free")
TOP = 10  # singular values that the matrix-free route finds where `k` does not say
EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class JacobianSpectrum(Drawn):
    """Singular values of one Jacobian per sample.

    Attributes:
        log_singular_values: (sample, rank) float64 on the CPU, natural log, descending, rank = min(outputs, inputs).
            -inf: exactly zero, the Jacobian lacks the rank (product route).  nan: below what float64 can tell from
            rounding (dense route), or a diverged net.
        log_error: (sample, rank) estimated absolute error of each log value.
        below_floor: (sample,) how many values float64 could not tell from rounding; always 0 by the product route.
        factors: layers between the two ends, by which `lyapunov_exponents` divide; 1 where they are not known.
        inputs: number of inputs n of the Jacobian.
        method: the route taken: "product", "dense" or "matrix_free".
        estimates: of the matrix-free route, per sample, the `MeanSquare` (an estimate with its 95 % interval) and the
            `Density` of all singular values; its `log_singular_values` are the k largest.
    """

    log_singular_values: Float[Tensor, "sample rank"]
    log_error: Float[Tensor, "sample rank"]
    below_floor: Int[Tensor, " sample"]
    factors: int
    inputs: int
    method: str
    estimates: tuple[tuple[MeanSquare, Density], ...] = ()

    drawn_by = "spectrum"

    @property
    def drawn_with(self) -> dict[str, object]:
        return {"title": repr(self)}

    @property
    def singular_values(self) -> Float[Tensor, "sample rank"]:
        """Overflows and underflows where the logs do not."""
        return self.log_singular_values.exp()

    @property
    def rank(self) -> Int[Tensor, " sample"]:
        """How many values are known to be above zero."""
        return self.log_singular_values.isfinite().sum(-1)

    @property
    def mean_squared(self) -> Float[Tensor, " sample"]:
        """(1/n) ||J||_F^2, n the number of inputs: chi to the power of depth, in mean-field terms."""
        if self.estimates:
            return torch.tensor([square.estimate for square, _ in self.estimates], dtype=torch.float64)
        return self.singular_values.square().nansum(-1) / self.inputs

    @property
    def log_condition_number(self) -> Float[Tensor, " sample"]:
        """ln of largest over smallest singular value; inf where the smallest is zero or below the floor."""
        largest, smallest = self.log_singular_values[:, 0], self.log_singular_values[:, -1]
        return torch.where(smallest.isfinite(), largest - smallest, math.inf)

    @property
    def lyapunov_exponents(self) -> Float[Tensor, "sample rank"]:
        """ln singular value per layer."""
        return self.log_singular_values / self.factors

    @property
    def frame(self) -> pd.DataFrame:
        """A row per sample and rank (1 is the largest): `log_singular_value`, `log_error`, `lyapunov_exponent`."""
        samples, ranks = self.log_singular_values.shape
        return pd.DataFrame({
            "sample": torch.arange(samples).repeat_interleave(ranks).numpy(),
            "rank": torch.arange(1, ranks + 1).repeat(samples).numpy(),
            "log_singular_value": self.log_singular_values.flatten().numpy(),
            "log_error": self.log_error.flatten().numpy(),
            "lyapunov_exponent": self.lyapunov_exponents.flatten().numpy(),
        })

    def __repr__(self) -> str:
        samples, ranks = self.log_singular_values.shape
        logs = self.log_singular_values / math.log(10)
        typical = [f"{v:.3g}" for v in (logs[:, 0].nanmedian(), logs[:, -1].nanmedian())]
        lost = "" if not self.below_floor.any() else f", {int(self.below_floor.max())} below the float64 floor"
        return (f"JacobianSpectrum: {ranks} singular values of {samples} samples, {self.method} route, {self.factors} "
                f"layers\nlog10 singular value, median over samples: largest {typical[0]}, smallest {typical[1]}\n"
                f"rank {int(self.rank.min())} to {int(self.rank.max())} of {ranks}{lost}; "
                f"mean squared singular value {self.mean_squared.median():.3g}")


def jacobian_spectrum(model: nn.Module, x: Tensor | None = None, *, part: str | tuple[int, int] = "all",
                      samples: int = 16, method: str = "auto", k: int | None = None, chunk: int | None = None,
                      seed: int = 0, start: str | None = None, output: str | int | None = None,
                      mode: str = "eval") -> JacobianSpectrum:
    """Singular values of d output / d input at each sample, on a float64 copy in eval mode.

    The product route works on the factors' Jacobians and is right in every singular value at any depth; it serves
    models that are a chain of layers (flowstudy's nets, `nn.Sequential`, what torch.fx can trace; a residual block is
    one factor).  The dense route multiplies out, and tells only values within 1e-16 of the largest from rounding: the
    rest is nan, counted in `below_floor`.  Where one sample's Jacobian would not fit in 256 MiB, the matrix-free route
    finds the k largest with their residuals, the mean square with an interval, and the density.  The model, its mode,
    its gradients and the global random state stay as they are.

    Args:
        model: any module from one tensor to one tensor, both with a leading sample axis.
        x: inputs (sample, ...); None draws standard normal inputs where the model has `in_features`, or where its
            first layer is linear.
        part: "all" is input to output; "body" is the first layer's output to the last hidden layer's (width x width);
            (start, stop) is layer start's output to layer stop's, 0 being the input, of a chain.
        samples: at most so many inputs are measured, the first ones of `x`.
        method: "product", "dense", "matrix_free", or "auto": product where the model is a chain whose factors fit in
            memory, else dense where the Jacobian does.
        k: keep the k largest singular values; None is all, 10 by the matrix-free route.
        chunk: rows (or columns) of the Jacobian computed at once by the dense route; None fits a budget of 1 GiB in
            all. Does not change the result.
        seed: of the inputs drawn when `x` is None.
        start: name of a module whose output takes the input's place, such as an embedding; dense route.
        output: which entry of a tuple or dict output is meant.
        mode: "eval" or "train"; dropout then keeps one random mask (dense route).

    Raises:
        ValueError, TypeError: no x and no known input shape, an empty or non-finite batch, an unknown part or method,
            a model that is not a chain where one is needed, an output that does not depend on x, a model that mixes
            the samples of a batch (batch norm in train mode): one sample then has no Jacobian of its own.

    Source: Saxe et al. 2014; Pennington, Schoenholz, Ganguli 2017 (dynamical isometry).
    """
    call = "jacobian_spectrum"
    if method not in METHODS:
        raise ValueError(f"{call}: `method` must be one of {', '.join(METHODS)}, got {method!r}.")
    probe, x = prepare(call, model, x, samples, seed, output, mode)
    with untouched_random_state(x.device), no_fast_path():
        if start is not None:
            if method in ("product", "matrix_free"):
                raise ValueError(f"{call}: `start` goes with method='dense', got {method!r}. Leave `method` out.")
            return largest(k, started_spectrum(call, probe, start, x, chunk))
        check_real(call, x)
        passed = checked_pass(call, probe, x)
        if method == "dense" and part == "all":
            check_k(call, k, min(passed.inputs, passed.outputs))
            return largest(k, dense_spectrum(call, passed, depth_of(probe), chunk))
        check_apart(call, passed, passed.pull(passed.ends))
        chain = None if has_dropout(probe) else chain_of(probe, x)
        if chain is None and (method == "product" or part != "all"):
            raise ValueError(f"{call}: method='product' and parts need a chain of layers, and {type(model).__name__} "
                             "could not be traced as one. Use method='dense', and pass the part as its own model.")
        if chain is None:
            chain = Chain([type(model).__name__], [probe], [x, passed.y.detach()])
        else:
            chain = chain.part(*ends_of(call, part, chain))
        return take(call, choose(method, chain), chain, k, chunk, seed)


def layer_jacobian_spectra(model: nn.Module, x: Tensor | None = None, *, samples: int = 16,
                           seed: int = 0) -> pd.DataFrame:
    """How isometry is lost with depth: the spectrum of every layer's Jacobian and of every product of layers 1..l.

    Args: as `jacobian_spectrum`; the model must be a chain.
    Returns:
        A row per sample, layer (1..) and rank: `log_singular_value` of layer l's own Jacobian, and
        `log_singular_value_from_input` of the input-to-layer-l Jacobian; nan where one has fewer values.
    """
    call = "layer_jacobian_spectra"
    probe, x = prepare(call, model, x, samples, seed)
    with untouched_random_state(x.device), no_fast_path():
        check_real(call, x)
        passed = checked_pass(call, probe, x)
        check_apart(call, passed, passed.pull(passed.ends))
        chain = chain_of(probe, x)
        if chain is None:
            raise ValueError(f"{call}: `model` must be a chain of layers that torch.fx can trace, got "
                             f"{type(model).__name__}. Use jacobian_spectrum(model, x, method='dense').")
        factors = list(factor_jacobians(chain))
        rows = []
        for layer, (factor, total) in enumerate(zip(factors, partial_product_svd(factors), strict=True), 1):
            own = JacobianSpectrum(*logs_of(product_svd([factor])), 1, factor.shape[-1], "product").frame
            start = JacobianSpectrum(*logs_of(total), layer, x[0].numel(), "product").frame
            both = own[["sample", "rank", "log_singular_value"]].merge(
                start[["sample", "rank", "log_singular_value"]], how="outer", on=["sample", "rank"],
                suffixes=("", "_from_input"))
            rows.append(both.assign(layer=layer, module=chain.names[layer - 1]))
    return pd.concat(rows, ignore_index=True)


def stacked_jacobian_spectrum(model: nn.Module, state: dict[str, Tensor], x: Tensor, *,
                              part: str = "body") -> Float[Tensor, "net sample rank"]:
    """Log singular values of every net of a stack by the product route; `model` is one of flowstudy's nets.

    Equal to `jacobian_spectrum` of each net alone.

    Args:
        state: parameters by name, stacked along a leading net axis.
        x: inputs (sample, inputs), shared by the nets.
        part: "body" or "all".
    """
    names = {module: name for name, module in model.named_modules()}
    layers = [*model.hidden_layers, model.readout]

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


# --- the routes ------------------------------------------------------------------------------------------------------


def choose(method: str, chain: Chain) -> str:
    if method != "auto":
        return method
    widest = max(value[0].numel() for value in chain.values[1:])
    if len(chain) > 1 and widest <= WIDEST and largest_factor(chain) <= MEMORY_BUDGET:
        return "product"
    entries = chain.values[0][0].numel() * chain.values[-1][0].numel()
    return "dense" if 8 * entries <= MEMORY_BUDGET // 4 else "matrix_free"


def take(call: str, route: str, chain: Chain, k: int | None, chunk: int | None, seed: int) -> JacobianSpectrum:
    smaller = min(chain.values[0][0].numel(), chain.values[-1][0].numel())
    check_k(call, k, smaller)
    if route == "product":
        return largest(k, product_spectrum(chain))

    def whole(h: Tensor) -> Tensor:
        return compose(chain, h)

    if route == "dense":
        return largest(k, dense_spectrum(call, Pass.of(whole, chain.values[0]), len(chain), chunk))
    return matrix_free_spectrum(whole, chain.values[0], len(chain), k or min(TOP, smaller), seed)


def largest(k: int | None, spectrum: JacobianSpectrum) -> JacobianSpectrum:
    if k is None:
        return spectrum
    kept = spectrum.log_singular_values[:, :k]
    return replace(spectrum, log_singular_values=kept, log_error=spectrum.log_error[:, :k],
                   below_floor=kept.isnan().sum(-1))


def matrix_free_spectrum(function: Function, x: Tensor, factors: int, k: int, seed: int) -> JacobianSpectrum:
    """Sample by sample, from products with the Jacobian and its transpose."""
    maps = [jacobian_map(lambda h: function(h.unsqueeze(0)).squeeze(0), sample) for sample in x]
    extremes = [largest_singular_values(linear_map, k, seed=seed) for linear_map in maps]
    estimates = tuple((mean_squared_singular_value(m, seed=seed), spectral_density(m, seed=seed)) for m in maps)
    log_s = torch.stack([e.log_values for e in extremes])
    error = torch.stack([e.residuals for e in extremes]) * (log_s[:, :1] - log_s).exp()  # ds / s
    return JacobianSpectrum(log_s, error, log_s.isnan().sum(-1), factors, x[0].numel(), "matrix_free", estimates)


def product_spectrum(chain: Chain) -> JacobianSpectrum:
    return JacobianSpectrum(*logs_of(product_svd(factor_jacobians(chain))), len(chain), chain.values[0][0].numel(),
                            "product")


def logs_of(spectrum) -> tuple[Tensor, Tensor, Tensor]:
    log_s = spectrum.log_singular_values.cpu()
    return log_s, spectrum.log_error.cpu(), torch.zeros(len(log_s), dtype=torch.int64)


def factor_jacobians(chain: Chain) -> Iterator[Float[Tensor, "sample outputs inputs"]]:
    for function, h in zip(chain.functions, chain.values[:-1], strict=True):
        rule = layer_rule(function, h)
        yield jacobian(function, h) if rule is None else rule


def started_spectrum(call: str, model: nn.Module, start: str, x: Tensor, chunk: int | None) -> JacobianSpectrum:
    """From the output of module `start`, sample by sample: each resumes with its own input."""
    modules = dict((model.model if isinstance(model, Picked) else model).named_modules())
    if start not in modules:
        near = difflib.get_close_matches(start, modules, 3)
        raise ValueError(f"{call}: `start` must name a module of the model, got {start!r}."
                         + (f" Did you mean {' or '.join(map(repr, near))}?" if near else ""))
    spectra = []
    for sample in x.split(1):
        outputs: list[Tensor] = []
        note = modules[start].register_forward_hook(lambda _m, _a, out, outputs=outputs: outputs.append(out))
        with note, torch.no_grad():
            model(sample)
        if len(outputs) != 1 or not isinstance(outputs[0], Tensor):
            raise ValueError(f"{call}: `start` must name a module that is called once and returns one tensor, got "
                             f"{start!r}, called {len(outputs)} times. Name another.")

        def resume(h: Tensor, sample: Tensor = sample) -> Tensor:
            with modules[start].register_forward_hook(lambda *_: h):
                return model(sample)

        spectra.append(dense_spectrum(call, checked_pass(call, resume, outputs[0]), 1, chunk))
    return joined(spectra)


def joined(spectra: list[JacobianSpectrum]) -> JacobianSpectrum:
    columns = ("log_singular_values", "log_error", "below_floor")
    return replace(spectra[0], **{name: torch.cat([getattr(s, name) for s in spectra]) for name in columns})


def dense_spectrum(call: str, passed: Pass, factors: int, chunk: int | None) -> JacobianSpectrum:
    """As many samples at a time as the memory budget holds Jacobians of."""
    together = max(1, MEMORY_BUDGET // (4 * 8 * passed.inputs * passed.outputs))
    if together < len(passed.x):
        check_apart(call, passed, passed.pull(passed.ends))
        return joined([dense_spectrum(call, Pass.of(passed.function, part), factors, chunk)
                       for part in passed.x.split(together)])
    jacobians, ends = jacobian_of(passed, chunk, passed.ends)
    check_apart(call, passed, ends)
    wild = ~jacobians.flatten(1).sum(-1).isfinite()
    if wild.any():   # or a sum that overflowed
        wild = ~jacobians.isfinite().flatten(1).all(-1)
        jacobians = torch.where(wild[:, None, None], 0.0, jacobians)
    s = torch.linalg.svdvals(jacobians).cpu()
    noise = s[:, :1] * max(jacobians.shape[1:]) * EPS  # of the size of LAPACK's backward error bound
    below = s <= noise
    return JacobianSpectrum(
        log_singular_values=s.log().masked_fill(below | wild[:, None].cpu(), math.nan),
        log_error=noise / s,
        below_floor=below.sum(-1),
        factors=factors, inputs=jacobians.shape[-1], method="dense",
    )


def compose(chain: Chain, h: Tensor) -> Tensor:
    for function in chain.functions:
        h = function(h)
    return h


def largest_factor(chain: Chain) -> int:
    """Bytes of the largest factor's Jacobians, and of the product's running width."""
    sizes = [value[0].numel() for value in chain.values]
    running, largest = sizes[0], 0
    for inputs, outputs in pairwise(sizes):
        largest = max(largest, inputs * outputs, outputs * min(running, outputs))
        running = min(running, outputs)
    return 8 * len(chain.values[0]) * largest


# --- checks and ends -------------------------------------------------------------------------------------------------


def prepare(call: str, model: nn.Module, x: Tensor | None, samples: int, seed: int,
            output: str | int | None = None, mode: str = "eval") -> tuple[nn.Module, Tensor]:
    """The copy to measure and the inputs to measure it at."""
    if mode not in ("eval", "train"):
        raise ValueError(f"{call}: `mode` must be 'eval' or 'train', got {mode!r}.")
    inert = isinstance(model, nn.Module) and is_inert(model)
    probe = model if inert else float64_copy(call, model)  # a deep net of narrow layers takes as long to copy as to run
    modules = list(probe.modules())
    if not inert and any(module.training != (mode == "train") for module in modules):
        probe.train(mode == "train")
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training for module in modules):
        mixing = [name for name, module in probe.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        raise ValueError(f"{call}: `mode` must be 'eval' for a model with batch norm, got 'train': {mixing[0]!r} mixes "
                         "the samples of a batch, so that one sample has no Jacobian of its own.")
    if output is not None:
        probe = Picked(probe, call, output)
    if not isinstance(samples, int) or samples < 1:
        raise ValueError(f"{call}: `samples` must be an integer of at least 1, got {samples!r}.")
    return probe, check_input(call, model, draw_input(call, model, samples, seed) if x is None else x)[:samples]


class Picked(nn.Module):
    """One entry of a model's tuple or dict output."""

    def __init__(self, model: nn.Module, call: str, output: str | int):
        super().__init__()
        self.model, self.call, self.output = model, call, output

    def forward(self, x: Tensor) -> Tensor:
        result = self.model(x)
        try:
            return result[self.output]
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"{self.call}: `output` must be a key of the model's output, got {self.output!r} of "
                             f"{type(result).__name__}. Its keys: {keys_of(result)}.") from None


def keys_of(result: object) -> str:
    if isinstance(result, dict):
        return ", ".join(map(repr, result))
    return f"0 to {len(result) - 1}" if isinstance(result, tuple | list) else "none: leave `output` out"


def has_dropout(model: nn.Module) -> bool:
    return any(isinstance(module, nn.modules.dropout._DropoutNd) and module.training for module in model.modules())


@contextmanager
def no_fast_path() -> Iterator[None]:
    """PyTorch's fused inference kernels of transformers have no derivatives, fused attention none in batches."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def check_real(call: str, x: Tensor) -> None:
    if not x.is_floating_point():
        raise TypeError(f"{call}: `x` must be real, got {x.dtype}: an integer input has no Jacobian. "
                        "Pass `start=`, the name of the layer whose output is to be the input, such as the embedding.")


def checked_pass(call: str, model: Function, x: Tensor) -> Pass:
    """One forward pass, whose output is a real tensor that depends on x and has a row for each sample."""
    leaf, y = run(model, x)
    if isinstance(y, tuple | list | dict):
        raise TypeError(f"{call}: `model` must return one tensor, got {type(y).__name__}. "
                        f"Pass `output=`, one of its keys: {keys_of(y)}.")
    if not isinstance(y, Tensor):
        raise TypeError(f"{call}: `model` must return one tensor, got {type(y).__name__}. "
                        "Wrap it in a module that returns the tensor to measure.")
    if not y.is_floating_point():
        raise TypeError(f"{call}: `model` must have a real output, got {y.dtype}, which has no derivative. "
                        "Measure what comes before the last step.")
    if not y.requires_grad:
        raise ValueError(f"{call}: `model` must have an output that depends on x, got a constant or a detached one. "
                         "Remove .detach() or no_grad from its forward.")
    if y.ndim == 0 or len(y) != len(x):
        raise ValueError(f"{call}: `model` must keep the sample axis first, got output {tuple(y.shape)} for input "
                         f"{tuple(x.shape)}.")
    return Pass(model, leaf, y)


def check_apart(call: str, passed: Pass, ends: Tensor) -> None:
    """No sample's output depends on another sample; told from the gradients of `passed.ends`."""
    first, last = ends
    if passed.y.isfinite().all() and (first[1:].any() or last[:-1].any()):
        raise ValueError(f"{call}: `model` must treat samples one by one, but one's output depends on another. "
                         "The first axis of x must count samples (batch_first=True in recurrent layers).")


def check_k(call: str, k: int | None, smaller: int) -> None:
    if k is not None and not (isinstance(k, int) and 1 <= k <= smaller):
        raise ValueError(f"{call}: `k` must be an integer from 1 to {smaller}, the smaller side of the Jacobian, "
                         f"got {k!r}. Leave it out for all.")


def ends_of(call: str, part: str | tuple[int, int], chain: Chain) -> tuple[int, int]:
    """Factors [start, stop) of the chain; layer l is what factor l - 1 puts out."""
    if part == "all":
        return 0, len(chain)
    if part == "body":
        if len(chain) < 3:
            raise ValueError(f"{call}: part='body' needs at least two layers and a read-out, got {len(chain)} layers. "
                             "Use part='all'.")
        return 1, len(chain) - 1
    if (isinstance(part, tuple | list) and len(part) == 2 and all(isinstance(end, int) for end in part)
            and 0 <= part[0] < part[1] <= len(chain)):
        return part[0], part[1]
    raise ValueError(f"{call}: `part` must be 'all', 'body' or (start, stop) with 0 <= start < stop <= {len(chain)}, "
                     f"got {part!r}.")


def draw_input(call: str, model: nn.Module, samples: int, seed: int) -> Tensor:
    features = input_features(model)
    if features is None:
        raise ValueError(f"{call}: `x` must be given: the input shape of {type(model).__name__} is not known. "
                         f"Pass a batch, such as {call}(model, torch.randn(16, 3, 32, 32)).")
    generator = torch.Generator().manual_seed(seed)
    parameter = next(model.parameters())
    return torch.randn(samples, features, generator=generator, dtype=torch.float64).to(parameter.device)
