"""Preparation of a spectrum: the copy to measure, its inputs, and checks that the Jacobian is defined."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from flowstudy.arguments import check_one_of, check_whole
from flowstudy.measure.models.chain import Pulled
from flowstudy.measure.models.copies import float64_copy
from flowstudy.measure.models.dense_jacobian import Stretch
from flowstudy.measure.models.graph import check_gradients_can_be_asked_for, edge_of, place_of, places_in, reachable
from flowstudy.measure.models.inputs import Inputs, Name, Shown, check_input, check_samples_apart
from flowstudy.measure.models.layers import input_features
from flowstudy.measure.models.outputs import check_entry
from flowstudy.refusal import RefusalError, RefusalTypeError

from .probe import Probe

SMALLEST = 1e-290  # gradients below this size may have lost digits in float64, and are not compared
SAME = 1e-6        # largest relative difference that counts as none: far above rounding, far below any clipping


def prepare(call: str, model: nn.Module, x: Shown | None, samples: int, seed: int, output: str | int | None = None,
            wrt: Name | None = None, mode: str = "eval", *, whole: bool = False) -> tuple[Probe, Inputs]:
    """The copy to measure and the inputs to measure it at.

    Args:
        whole: all of `x`, whose first axis may be time.
    """
    check_one_of(call, "mode", mode, ("eval", "train"))
    check_whole(call, "seed", seed)
    check_entry(call, output)
    copied = float64_copy(call, model).train(mode == "train")
    for own in copied.parameters():
        own.requires_grad_(own.is_floating_point() or own.is_complex())  # a factor is told by its weights
    for name, module in copied.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise RefusalError(f"{call}: `mode` must be 'eval' for a model with batch norm, got 'train': {name!r} "
                               "mixes the samples of a batch, so that one sample has no Jacobian of its own.")
    check_whole(call, "samples", samples, least=1)
    inputs = check_input(call, model, draw_input(call, model, samples, seed) if x is None else x)
    if not whole and samples < len(inputs):
        check_samples_apart(call, inputs)
    return Probe(call, copied, output, wrt), inputs if whole or samples >= len(inputs) else inputs[:samples]


def check_output(call: str, y: Tensor, samples: int) -> Tensor:
    """Refuse an output that is not real or whose first axis does not count the samples."""
    if not y.is_floating_point():
        raise RefusalTypeError(f"{call}: `model` must have a real output, got {y.dtype}, which has no derivative. "
                               "Measure what comes before the last step.")
    if y.ndim == 0 or len(y) != samples:
        raise RefusalError(f"{call}: `model` must keep the sample axis first, got output {tuple(y.shape)} for "
                           f"{samples} samples.")
    return y


def stretch_to(call: str, start: GradientEdge, y: Tensor) -> Stretch:
    """The graph from the edge of the input to the output; refuse one in which the input cannot be reached."""
    nodes = reachable(edge_of(y)) if y.requires_grad else []
    check_gradients_can_be_asked_for(call, nodes)
    if start.node not in nodes:
        raise constant(call)
    return Stretch(start, edge_of(y), place_of(start), tuple(nodes))


def check_pulled(call: str, whole: Stretch, y: Tensor, pulled: Pulled) -> None:
    """Refuse an output that does not depend on the input, and one that depends on another sample's.

    Args:
        pulled: a random row of the stretch to y, pulled back to its start.
    """
    if pulled.images[0] is None:
        raise constant(call)
    check_apart(call, whole, y, *pulled.ends)


def constant(call: str) -> RefusalError:
    return RefusalError(f"{call}: `model` must have an output that depends on x, got a constant or a detached one. "
                        "Remove .detach() or no_grad from its forward.")


def check_apart(call: str, stretch: Stretch, y: Tensor, row: Float[Tensor, "sample *outputs"],
                image: Float[Tensor, "sample *inputs"]) -> None:
    """Refuse a model in which one sample's output depends on another sample.

    Random gradients are put on the outputs of half of the samples, and must not arrive at the other half.  The halves
    are the samples with a 0 and with a 1 at one digit of their binary number, for each digit in turn, so that any two
    samples are separated.  The gradients are random because normalised outputs send back nothing of their sum.

    Args:
        row, image: a random gradient of all samples, and what arrives of it.
    """
    if stretch.samples < 2 or not y.isfinite().all():
        return
    number = torch.arange(stretch.samples, device=stretch.device)
    digits = [(number >> bit) % 2 == one for bit in range((stretch.samples - 1).bit_length()) for one in (0, 1)]
    chosen = torch.stack(digits)
    rows = torch.where(chosen.view(*chosen.shape, *[1] * (row.ndim - 1)), row, 0.0)

    def mixes(pulled: Tensor) -> bool:
        return bool((pulled.nan_to_num().flatten(2).any(-1) & ~chosen).any())

    together = pulled_together(stretch, rows, image)
    if (together is None or mixes(together)) and mixes(stretch.pull_singly(rows)):
        raise RefusalError(f"{call}: `model` must treat samples one by one, but one's output depends on another. "
                           "The first axis of x must count samples (batch_first=True in recurrent layers).")


def pulled_together(stretch: Stretch, rows: Tensor, image: Tensor) -> Tensor | None:
    """The images of the rows by vmap, as many at once as fits in memory; None where they may not be autograd's own.

    Each two rows that follow each other add up to the same row, and so must their images to its image.
    """
    size = stretch.at_once()
    if size == 1:
        return None
    pulled = torch.cat([stretch.pull(part) for part in rows.split(size)])
    gap = (pulled[::2] + pulled[1::2] - image).abs().amax()
    return pulled if gap <= SAME * image.abs().amax() else None   # nan compares false


def check_matrix_free(call: str, whole: Stretch, part: tuple[int, int] | str | None) -> None:
    """Refuse a part of a model, and a model on several devices: torch.func's products cannot cross from one to another.

    Args:
        whole: the model's pass.
        part: None is the whole model.
    """
    if part is not None:
        raise RefusalError(f"{call}: method='matrix_free' measures whole models, got part={part!r}. Pass the part as "
                           "its own model.")
    if len(devices := places_in(whole.nodes)) > 1:
        raise RefusalError(f"{call}: method='matrix_free' needs a model on one device, got one on "
                           f"{' and '.join(sorted(map(str, devices)))}. Use method='dense'.")


def check_linear(call: str, stretch: Stretch) -> None:
    """Refuse a backward pass that is not linear: a gradient times -2 must give the result times -2.

    Scaling by a power of two is exact, so that cancellation inside the model does not look like a fault.
    """
    row = stretch.random_row()
    image, scaled = stretch.back(row), stretch.back(-2.0 * row)
    size = image.abs().amax() if image.numel() else image.sum()
    if SMALLEST < size < math.inf and not (scaled + 2.0 * image).abs().amax() <= SAME * size:
        raise RefusalError(f"{call}: `model` must have a backward pass that is linear in the gradient it is given, as "
                           "a Jacobian is, and has a hook or a function that is not (clips, normalises, takes signs). "
                           "Remove it before measuring.")


def check_alike(call: str, taken: Tensor, true: Tensor, agreement: float, together: int) -> None:
    """Refuse a model that gives other gradients if its batch is run in parts: `taken` must be `true` to rounding."""
    if true.isfinite().all() and not (taken - true).abs().amax() <= agreement * true.abs().amax():
        raise RefusalError(f"{call}: `model` must give a sample the same whatever batch it is in where memory holds "
                           f"{together} at a time, and does not (noise, a use of the batch's size, a state that it "
                           f"keeps). Pass samples={together}.")


def check_chunk(call: str, chunk: int | None) -> None:
    if chunk is not None and not (isinstance(chunk, int) and not isinstance(chunk, bool) and chunk >= 1):
        raise RefusalError(f"{call}: `chunk` must be an integer of at least 1, got {chunk!r}. Leave it out for a "
                           "number that fits in memory.")


def check_k(call: str, k: int | None, smaller: int) -> None:
    if k is not None and not (isinstance(k, int) and 1 <= k <= smaller):
        raise RefusalError(f"{call}: `k` must be an integer from 1 to {smaller}, the smaller side of the Jacobian, "
                           f"got {k!r}. Leave it out for all.")


def ends_of(call: str, part: str | tuple[int, int], chain: list) -> tuple[int, int]:
    """The range (start, stop) of the chain's factors that `part` names; layer l is the output of factor l - 1."""
    if part == "all":
        return 0, len(chain)
    if part == "body":
        if len(chain) < 3:
            raise RefusalError(f"{call}: part='body' needs at least two layers and a read-out, got {len(chain)} "
                               "layers. Use part='all'.")
        return 1, len(chain) - 1
    if (isinstance(part, tuple | list) and len(part) == 2 and all(isinstance(end, int) for end in part)
            and 0 <= part[0] < part[1] <= len(chain)):
        return part[0], part[1]
    raise RefusalError(f"{call}: `part` must be 'all', 'body' or (start, stop) with 0 <= start < stop <= {len(chain)}, "
                       f"or 'time', got {part!r}.")


def draw_input(call: str, model: nn.Module, samples: int, seed: int) -> Tensor:
    features = input_features(model)
    if features is None:
        raise RefusalError(f"{call}: `x` must be given: the input shape of {type(model).__name__} is not known. "
                           f"Pass a batch, such as {call}(model, torch.randn(16, 3, 32, 32)).")
    generator = torch.Generator().manual_seed(seed)
    parameter = next(model.parameters())
    return torch.randn(samples, features, generator=generator, dtype=torch.float64).to(parameter.device)
