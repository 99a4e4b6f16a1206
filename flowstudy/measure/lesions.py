"""Lesions of highway nets: the transform gates of some layers are closed, or of every layer in turn."""

import operator
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float64, Int
from torch import Tensor, nn

from flowstudy.arguments import takes
from flowstudy.measure.gated_layers import layers_and_gates
from flowstudy.nets import HighwayBlock, HighwayNet
from flowstudy.nets.blocks import ACTIVATIONS, runs_as
from flowstudy.nets.fully_connected import FullyConnected
from flowstudy.refusal import RefusalError, RefusalTypeError
from flowstudy.torch_arguments import TENSOR

CHUNK = 500  # samples in one pass; memory grows by this number times the number of layers


@contextmanager
def lesion(model: nn.Module, layers: int | Iterable[int]) -> Iterator[None]:
    """Close all transform gates of these layers while the context lasts: each copies its input, bit for bit.

    The net computes what it would with the layers removed. Parameters are not changed (a lesioned layer's get no
    gradient), the model is as before afterwards, and lesions may be nested. A copy made meanwhile stays lesioned.

    >>> from flowstudy.nets import HighwayNet
    >>> net, h = HighwayNet(in_features=3, width=4, depth=3), torch.ones(1, 4)
    >>> with lesion(net, 2):
    ...     torch.equal(net.blocks[0](h), h)
    True

    Args:
        model: any module with a `HighwayBlock` in it that runs its layers once each, in the order in which it holds
            them.
        layers: a layer's number, or several; none leaves the net intact. They count as in `gate_activity`: from 1,
            plain layers included, so that a HighwayNet's are 2..depth.

    Returns:
        A context manager, which yields None.

    Raises:
        ValueError: a number that is no highway layer's, as 1 is in a HighwayNet; a compiled model; a HighwayBlock with
            a forward of its own. In the model's forward pass: layers that run in another order, for which the numbers
            would be wrong.
        TypeError: numbers that are no integers.

    Source: Srivastava, Greff, Schmidhuber 2015 (arXiv:1507.06228), section 4.2.
    """
    call = "lesion"
    if not isinstance(model, nn.Module):
        raise RefusalTypeError(f"{call}: `model` must be an nn.Module, got {type(model).__name__}.")
    if any(hasattr(module, "_orig_mod") for module in model.modules()):
        raise RefusalError(f"{call}: `model` must not be compiled, got torch.compile's wrapper, which ignores lesions. "
                           "Lesion and run the module that was compiled.")
    order, gates = layers_and_gates(call, model)
    closed = check_layers(call, layers, order, set(gates.values()))
    with ExitStack() as stack:
        watch_order(call, model, order, stack)
        for block in (model.get_submodule(name) for name, number in gates.items() if number in closed):
            stack.callback(block.register_forward_hook(copy_input, with_kwargs=True).remove)
        yield


def copy_input(_block: nn.Module, args: tuple, kwargs: dict, _output: Tensor) -> Tensor:
    return next(iter((*args, *kwargs.values()))).clone()  # a clone, since later operations may work in place


def watch_order(call: str, model: nn.Module, layers: list[nn.Module], stack: ExitStack) -> None:
    """While the stack lasts, refuse a forward pass of the model in which a layer's number is not its place."""
    place: int | None = None  # of the layer that ran last; None outside of the model's own forward pass

    def begin(*_: object) -> None:
        nonlocal place
        place = 0

    def end(*_: object) -> None:
        nonlocal place
        place = None

    def ran(number: int) -> None:
        nonlocal place
        if place is None:
            return
        place += 1
        if place != number:
            raise RefusalError(f"{call}: `model` must run its layers in the order in which it holds them, once each, "
                               f"got layer {number} in place {place}. Let it hold them in the order in which they run.")

    stack.callback(model.register_forward_pre_hook(begin).remove)
    for number, layer in enumerate(layers, 1):
        stack.callback(layer.register_forward_hook(lambda *_, number=number: ran(number)).remove)
    stack.callback(model.register_forward_hook(end, always_call=True).remove)


def check_layers(call: str, layers: int | Iterable[int], order: list[nn.Module], with_gates: set[int]) -> set[int]:
    try:
        wanted = {operator.index(n) for n in (layers if isinstance(layers, Iterable) else [layers])}
    except TypeError as error:
        raise RefusalTypeError(f"{call}: `layers` must be a layer's number or a list of them, got {layers!r}."
                               ) from error
    for number in sorted(wanted - with_gates):
        what = f", a {type(order[number - 1]).__name__}, which has no gate" if 1 <= number <= len(order) else ""
        raise RefusalError(f"{call}: `layers` must be numbers of highway layers, got {number}{what}. "
                           f"This model's are {numbers_in_words(sorted(with_gates))}.")
    return wanted


def numbers_in_words(numbers: list[int]) -> str:
    """Ascending numbers, short where none is missing: '2 to 50'.

    >>> numbers_in_words([2, 3, 4]), numbers_in_words([2, 3, 5])
    ('2 to 4', '2, 3, 5')
    """
    whole = len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1
    return f"{numbers[0]} to {numbers[-1]}" if whole else ", ".join(map(str, numbers))


# --- every layer in turn ---------------------------------------------------------------------------------------------


@takes(x=TENSOR, y=TENSOR)
@torch.no_grad()
def lesion_losses(net: HighwayNet, x: Tensor, y: Int[Tensor, " sample"]
                  ) -> tuple[Float64[Tensor, " lesion"], Float64[Tensor, " lesion"]]:
    """Error and loss of the intact net and with each highway layer's gates closed in turn.

    A closed layer copies its input.  Lesioned nets agree with the intact one up to the layer they lack.  So at each
    layer one variant is split off, and all so far go through as one batched product, in the net's own precision: half
    the work of one pass per lesion.

    Args:
        net: fully connected.
        x: inputs (sample, feature) on the net's device; y their labels.

    Returns:
        Share of samples misclassified, and mean cross-entropy [nats], by lesion: first the intact net, then the lesions
        of layers 2..depth; on the CPU.

    Raises:
        ValueError: a net with layers of its own, or hooks: its layers are computed here as HighwayBlock's.

    Source: Srivastava, Greff, Schmidhuber 2015 (arXiv:1507.06228), section 4.2 and figure 4.
    """
    check_highway_net(net)
    wrong = torch.zeros(net.depth, dtype=torch.float64, device=x.device)
    loss = torch.zeros_like(wrong)
    for part, labels in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
        logits = net.readout(variants(net, part))
        wrong += (logits.argmax(-1) != labels).sum(-1)
        log_p = torch.log_softmax(logits, -1).gather(-1, labels.expand(len(logits), -1).unsqueeze(-1))
        loss -= log_p.squeeze(-1).double().sum(-1)
    return (wrong / len(x)).cpu(), (loss / len(x)).cpu()


def variants(net: HighwayNet, x: Tensor) -> Tensor:
    """The last hidden layer's output by lesion, (depth, sample, unit): intact, without layer 2, ..., without depth."""
    together = net.input(x).unsqueeze(0)  # the intact net comes first
    for block in net.blocks:
        whole = together[:1]
        h, t = torch.nn.functional.linear(together, block.affine.weight, block.affine.bias).chunk(2, -1)
        through = torch.lerp(together, ACTIVATIONS[block.activation](h), torch.sigmoid(t))
        together = torch.cat([through, whole])  # the new last variant skips this layer: it keeps the layer's input
    return together


def check_highway_net(net: nn.Module) -> None:
    known = isinstance(net, HighwayNet) and type(net).forward is FullyConnected.forward and runs_as(net, type(net))
    if not known or not all(runs_as(b, HighwayBlock) and runs_as(b.affine, nn.Linear) for b in net.blocks):
        raise RefusalError(f"lesion_losses: `net` must be a HighwayNet of HighwayBlocks with nn.Linear, without hooks, "
                           f"got {type(net).__name__} with a part of its own. Use `lesion`, one layer at a time.")
