"""A forward pass of a model in which the uses of its layers are numbered as in `gradient_flow`."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from jaxtyping import Float64
from torch import Tensor, nn

from flowstudy.measure.models.forward import LooseWeights
from flowstudy.measure.models.inputs import Inputs
from flowstudy.measure.models.layers import changed_outputs, shared_out
from flowstudy.measure.models.recurrent.cells import TimeStep
from flowstudy.measure.models.recurrent.unrolled import is_steppable, unrolled


class GateUse(NamedTuple):
    """One use of a gate.

    Attributes:
        layer: the number of the use of a layer that it goes with.
        module: name of the module that it is read off.
        gate: as the caller calls it; empty of a HighwayBlock's own.
        time: step of the input sequence, from 1; of other modules the number of the call.
        direction, stack_layer: of a recurrent module.
    """

    layer: int
    module: str
    gate: str = ""
    time: int = 1
    direction: str = ""
    stack_layer: int | None = None


Gates = dict[GateUse, Float64[Tensor, "sample unit"]]   # in execution order


@contextmanager
def counted_layers(call: str, model: nn.Module, inputs: Inputs, ended: Callable[[int], None],
                   recurrent: Mapping[str, nn.Module] | None = None,
                   stepped: Callable[[str, TimeStep], None] | None = None) -> Iterator[None]:
    """While the context lasts, `ended(number)` follows every use of a layer, every time step of recurrent ones.

    Args:
        recurrent: modules that run step by step, of which `stepped` looks at every one, after it is counted.
    """
    number = 0

    def count() -> None:
        nonlocal number
        number += 1
        ended(number)

    def counted(_name: str, output: Tensor) -> Tensor:
        count()
        return output

    def step_ends(name: str, _module: nn.Module, step: TimeStep) -> None:
        if name in by_step:
            count()
        if stepped is not None and name in recurrent:
            stepped(name, step)

    recurrent = recurrent or {}
    layers, loose = shared_out(model)
    by_step = {name for name, layer in layers.items() if is_steppable(layer)}
    others = {name: layer for name, layer in layers.items() if name not in by_step}
    with ExitStack() as stack:
        stack.enter_context(unrolled(call, {name: layers[name] for name in by_step} | dict(recurrent), step_ends))
        stack.enter_context(changed_outputs(others, counted))
        if loose:
            stack.enter_context(LooseWeights(loose, inputs, lambda *_: count(), lambda *_: None))
        yield
