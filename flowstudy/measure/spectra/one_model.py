"""jacobian_spectrum: the singular values of a model's input-output Jacobian, sample by sample, in float64."""

from torch import Tensor, nn

from flowstudy.arguments import NAME, instance_of, optional, takes
from flowstudy.measure.models.chain import Factor, NotProvedError, Pulled, chain_of, noted_calls, pulled_through
from flowstudy.measure.models.context import RandomState, in_own_context
from flowstudy.measure.models.dense_jacobian import Function, Stretch, row_and_image, start_and_output
from flowstudy.measure.models.graph import edge_of
from flowstudy.measure.models.inputs import Inputs, Name, Shown
from flowstudy.measure.models.outputs import numbers_in
from flowstudy.measure.models.precision.attempts import in_float64
from flowstudy.refusal import RefusalError, did_you_mean

from .checks import (
    check_alike,
    check_chunk,
    check_k,
    check_linear,
    check_matrix_free,
    check_output,
    check_pulled,
    ends_of,
    prepare,
    stretch_to,
)
from .choice import MEMORY_BUDGET, choose, cotangents_fit, samples_at_once
from .over_time import over_time
from .probe import Probe
from .result import JacobianSpectrum, joined_spectra, largest
from .routes import (
    RESOLVED,
    TOP,
    agreement_of,
    dense_spectrum,
    dtype_name,
    matrix_free_spectrum,
    product_spectrum,
)

METHODS = ("auto", "product", "dense", "matrix_free")


@takes(part=instance_of((str, tuple, list), "'all', 'body' or (start, stop)"), method=NAME, start=optional(NAME),
       wrt=optional(instance_of((str, int, tuple), "a key of x")))
@in_own_context
@in_float64
def jacobian_spectrum(model: nn.Module, x: Shown | None = None, *, part: str | tuple[int, int] = "all",
                      samples: int = 16, method: str = "auto", k: int | None = None, chunk: int | None = None,
                      seed: int = 0, start: str | None = None, output: str | int | None = None,
                      wrt: Name | None = None, mode: str = "eval") -> JacobianSpectrum:
    """Singular values of d output / d input at each sample, on a float64 copy in eval mode.

    All routes differentiate one untouched forward pass, by autograd's own backward pass, whatever the model does in
    between (for dropout in train mode that is one mask).  The product route cuts that pass wherever one value carries
    everything on (a residual block is one factor), works on the factors' Jacobians, and is right in every singular
    value at any depth.  Each factor is held against the backward pass of the uncut model; where one differs, the model
    is measured uncut.  Operations that take one row at a time are given one at a time, with a bar on stderr where that
    takes long.  A model that does not run in float64 is measured in its own dtype, and `dtype` says so.  The dense
    route multiplies out, and tells only values within 1e-16 of the largest from rounding: the rest is nan, counted in
    `below_floor`.  Where one sample's Jacobian would not fit in 256 MiB, the matrix-free route finds the k largest with
    their residuals, the mean square with an interval, and the density.  The model, its mode, its gradients and the
    global random state stay as they are.

    Args:
        model: any module from inputs to outputs with a leading sample axis.
        x: inputs (sample, ...), as `gradient_flow` takes them: a tensor, a tuple or a mapping.  None draws standard
            normal inputs where the model has `in_features`, or where its first layer is linear.
        part: "all" is input to output; "body" is the first layer's output to the last hidden layer's (width x width);
            (start, stop) is layer start's output to layer stop's, 0 being the input, of a chain; "time", of a model
            with one recurrent module, is that module's initial state to its last, (h_0, c_0) to (h_T, c_T) of all
            stacked layers, at the inputs that it gets: a product of one factor for each time step.
        samples: at most so many inputs are measured, the first ones of `x`.
        method: "product", "dense", "matrix_free", or "auto": product where the model is a chain whose factors fit in
            memory, else dense where the Jacobian does.  Where the product route would take several times as long (few
            wide layers, such as convolutions), dense comes first, and is kept if it resolves every value.
        k: keep the k largest singular values; None is all, 10 by the matrix-free route.
        chunk: rows (or columns) of the Jacobian computed at once by the dense route; None fits a budget of 1 GiB in
            all. Does not change the result.
        seed: of the inputs drawn when `x` is None.
        start: name of a module whose output takes the input's place, such as an embedding; dense route.
        output: which entry of a tuple, a mapping or a dataclass is meant; None is "logits" where there is one, else
            the only tensor of real numbers.
        wrt: the key or the place in `x` of the input that the Jacobian is taken of, such as "inputs_embeds" or 1; None
            is the only one of real numbers.
        mode: "eval" or "train"; dropout then keeps one random mask.

    Returns:
        A JacobianSpectrum: `.log_singular_values` (sample, rank) [nats], `.log_error`, `.frame`, `.plot()` and more.

    Raises:
        ValueError, TypeError: no x and no known input shape, an empty or non-finite batch, an unknown part or method,
            a model that is not a chain where one is needed, an output that does not depend on x, a model that mixes
            the samples of a batch (batch norm in train mode): one sample then has no Jacobian of its own.

    What it cannot measure: inputs that are not real tensors (pass `start`, or another one as `wrt`), models that mix
    the samples of a batch, checkpoints with use_reentrant=True, backward passes that are not linear (a hook that
    clips), a product route for models that no single value cuts, and a matrix-free route for models spread over several
    devices: each is refused in one line.

    Source: Saxe et al. 2014; Pennington, Schoenholz, Ganguli 2017 (dynamical isometry).

    >>> import torch
    >>> double = nn.Linear(3, 3, bias=False)
    >>> double.weight.data = 2 * torch.eye(3)
    >>> spectrum = jacobian_spectrum(nn.Sequential(double, double), torch.ones(1, 3))
    >>> spectrum.singular_values.round(decimals=6).tolist()
    [[4.0, 4.0, 4.0]]
    """
    call = "jacobian_spectrum"
    if method not in METHODS:
        raise RefusalError(f"{call}: `method` must be one of {', '.join(METHODS)}, got {method!r}.")
    if start is not None and (method in ("product", "matrix_free") or part == "time"):
        got = repr(method) if part != "time" else "part='time'"
        raise RefusalError(f"{call}: `start` goes with method='dense', got {got}. Leave `method` and `part` out.")
    for name, value in (("wrt", wrt), ("output", output)):
        if value is not None and part == "time":
            raise RefusalError(f"{call}: `{name}` must be left out with part='time', which is of a recurrent module's "
                               f"first and last states, got {value!r}. Leave it out.")
    check_chunk(call, chunk)
    probe, inputs = prepare(call, model, x, samples, seed, output, wrt, mode, whole=part == "time")
    state = RandomState(inputs.device)
    if part == "time":
        return spectrum_over_time(call, probe.model, inputs, state, samples, method=method, k=k, chunk=chunk, seed=seed)
    if start is not None:
        return largest(k, started_spectrum(call, probe, start, inputs, chunk, state))
    return spectrum_at(call, probe, inputs, state, part=part, method=method, k=k, chunk=chunk, seed=seed)


def spectrum_over_time(call: str, copied: nn.Module, inputs: Inputs, state: RandomState, samples: int,
                       **options: object) -> JacobianSpectrum:
    """The spectrum along time, for as many samples at once as memory allows, matrix-free for one at a time.

    A time step's Jacobian and the running product are (states, states) matrices for each sample.
    """
    model, initial = over_time(call, copied, inputs, state, samples)
    several = options["method"] != "matrix_free"
    together = max(1, MEMORY_BUDGET // (11 * 8 * initial.shape[1] ** 2)) if several else 1
    chosen = [slice(i, i + together) for i in range(0, len(initial), together)]
    parts = [spectrum_at(call, Probe(call, model.part(part)), Inputs.of(initial[part]), state, part="all", **options)
             for part in chosen]
    return joined_spectra(parts) if len(parts) > 1 else parts[0]


def spectrum_at(call: str, probe: Probe, inputs: Inputs, state: RandomState, *, part: str | tuple[int, int],
                method: str, k: int | None, chunk: int | None, seed: int,
                seen: tuple[Tensor, Tensor] | None = None) -> JacobianSpectrum:
    """The spectrum at these inputs, for as many samples at once as memory allows, part by part.

    Args:
        seen: for a part of a batch, a random gradient at the outputs and its gradient at the inputs by the pass of the
            whole batch, which the part's own pass must reproduce.
    """
    whole, chain, pulled = pass_and_chain(call, probe, inputs, state)
    first, last = ends_of(call, part, chain)
    within = chain[first:last]
    piece = Stretch(within[0].start, within[-1].end, whole.device, tuple(n for f in reversed(within) for n in f.nodes))
    if seen is not None:
        check_alike(call, piece.back(seen[0]), seen[1], agreement_of(dtype_name(piece)), len(inputs))
    check_k(call, k, min(piece.inputs, piece.outputs))
    route = choose(method, within, piece)
    together = samples_at_once(route, within, piece)
    entire = part == "all" or (first, last) == (0, len(chain))
    if together < len(inputs) and route != "matrix_free":
        options = {"part": part, "method": method, "k": k, "chunk": chunk, "seed": seed}
        ends = pulled.ends if entire else row_and_image(piece)
        parts = zip(inputs.split(together), *(both.split(together) for both in ends), strict=True)
        return joined_spectra([spectrum_at(call, probe, one, state, seen=(row, image), **options)
                               for one, row, image in parts])
    if route != "matrix_free":
        forward = (state.repeated(probe.function(inputs)), probe.variable(inputs)) if entire else None
        return largest(k, exact_spectrum(call, route, within, piece, pulled if entire else None, forward, k, chunk,
                                         insist=method == "product"))
    check_matrix_free(call, whole, None if entire else part)
    k = k or min(TOP, piece.inputs, piece.outputs)
    alone = [(state.repeated(probe.function(one)), probe.variable(one)) for one in inputs.split(1)]
    return matrix_free_spectrum(call, piece, alone, len(within), k, seed, dtype_name(piece))


def exact_spectrum(call: str, route: str, within: list[Factor], piece: Stretch, pulled: Pulled | None,
                   forward: tuple[Function, Tensor] | None, k: int | None, chunk: int | None, *,
                   insist: bool) -> JacobianSpectrum:
    """The spectrum by the product or the dense route; if the one that is tried first fails, by the other.

    Args:
        pulled: a row pulled back through the piece, if it has been.
        forward: the function and its inputs, if the piece is a whole model; the dense route may then use forward mode.
        k: number of largest values that the dense route must resolve to be kept; None is all.
        insist: raise an error if the product route fails, instead of taking the dense one.
    """
    dtype = dtype_name(piece)

    def dense() -> JacobianSpectrum:
        check_linear(call, piece)
        return dense_spectrum(piece, len(within), chunk, dtype, *(forward or (None, None)))

    if route == "dense":
        return dense()
    if route == "dense first":
        found = dense()
        kept = largest(k, found)
        if not kept.below_floor.any() and (kept.log_error.nan_to_num() <= RESOLVED).all():
            return found
    try:
        return product_spectrum(within, dtype, pulled)
    except NotProvedError as error:
        if insist:
            raise RefusalError(f"{call}: method='product' needs factors that autograd's backward pass agrees with, and "
                               f"{error} is not one (a hook on gradients?). Use method='dense'.") from None
        return dense()


def pass_and_chain(call: str, probe: Probe, inputs: Inputs, state: RandomState,
                   ) -> tuple[Stretch, list[Factor], Pulled]:
    """One unchanged forward pass, checked, the factors of its graph, and the random row of the checks."""
    with state.replayed(), noted_calls(probe.model) as calls:
        start, y = start_and_output(probe.function(inputs), probe.variable(inputs))
    whole = stretch_to(call, start, check_output(call, y, len(inputs)))
    chain = chain_of(probe.model, whole, calls)
    pulled = pulled_through(chain if cotangents_fit(chain) else [whole])
    check_pulled(call, whole, y, pulled)
    return whole, chain, pulled


def started_spectrum(call: str, probe: Probe, start: str, inputs: Inputs, chunk: int | None,
                     state: RandomState) -> JacobianSpectrum:
    """The spectrum of the Jacobian from the output of module `start` to the model's output, by the dense route."""
    modules = dict(probe.model.named_modules())
    if start not in modules:
        raise RefusalError(f"{call}: `start` must name a module of the model, got {start!r}."
                           + did_you_mean(start, modules, 3))
    outputs: list[object] = []
    note = modules[start].register_forward_hook(lambda _m, _a, out: outputs.append(out))
    with note, state.replayed():
        y = check_output(call, probe.output_at(inputs.with_leaf()[1]), len(inputs))
    begin = next(numbers_in(outputs), None)
    if len(outputs) != 1 or begin is None or not begin.requires_grad:
        raise RefusalError(f"{call}: `start` must name a module that is called once and returns a tensor, got "
                           f"{start!r}, called {len(outputs)} times. Name another.")
    if begin.ndim < 2 or len(begin) != len(inputs):
        raise RefusalError(f"{call}: `start` must name a module whose output keeps the sample axis first, got "
                           f"{start!r} with output {tuple(begin.shape)} for {len(inputs)} samples. Name another.")
    stretch = stretch_to(call, edge_of(begin), y)
    check_pulled(call, stretch, y, pulled_through([stretch]))
    check_linear(call, stretch)
    return dense_spectrum(stretch, 1, chunk, dtype_name(stretch))
