"""The function that is differentiated: an entry of a model's output as a function of one of its inputs."""

from dataclasses import dataclass

from torch import Tensor, nn

from flowstudy.measure.models.dense_jacobian import Function
from flowstudy.measure.models.inputs import Inputs, Name, is_number
from flowstudy.measure.models.outputs import entry_of
from flowstudy.refusal import RefusalError, RefusalTypeError


@dataclass(frozen=True)
class Probe:
    """A model, and the ends between which it is measured.

    Attributes:
        call: name of the public function, for error messages.
        model: the copy to measure.
        output: entry of its output; None is the one that `entry_of` finds.
        wrt: name of the input; None is the only one of real numbers.
    """

    call: str
    model: nn.Module
    output: str | int | None = None
    wrt: Name | None = None

    def name(self, inputs: Inputs) -> Name:
        """Name of the input with respect to which the output is differentiated."""
        real = [name for name, t in inputs.differentiable.items() if t.is_floating_point()]
        listed = ", ".join(map(repr, real))
        if self.wrt is None and len(real) > 1:
            raise RefusalError(f"{self.call}: `wrt` must name the input that the Jacobian is taken of where there are "
                               f"several of real numbers, got None. Pass `wrt=`, one of {listed}.")
        name = real[0] if self.wrt is None and real else self.wrt
        if name in real:
            return name
        if name is not None and name not in inputs.tensors:
            raise RefusalError(f"{self.call}: `wrt` must be the key or the place of a tensor in `x`, got {name!r}. "
                               f"Its tensors: {', '.join(map(repr, inputs.tensors))}.")
        held = next(iter(inputs.tensors.values())) if name is None else inputs.tensors[name]
        argument, why = ("`x`", "") if name is None else ("`wrt`", f", which {name!r} holds")
        other = f"one of {listed} as `wrt=`, or " if real else ""
        kind = f"{held.dtype}{why}: an integer input has no Jacobian" if not is_number(held) else \
            f"{held.dtype}{why}, which is complex, sparse or a mask of -inf"
        raise RefusalTypeError(f"{self.call}: {argument} must be real, got {kind}. Pass {other}`start=`, the name of "
                               "the layer whose output is to be the input, such as the embedding.")

    def variable(self, inputs: Inputs) -> Tensor:
        """The input to differentiate, (sample, *input); (sample, 1) if there is one number for each sample."""
        x = inputs.tensors[self.name(inputs)]
        return x.unsqueeze(-1) if x.ndim == 1 else x

    def function(self, inputs: Inputs) -> Function:
        """The output as a function of that input; the others are copied at each call, since models may change them."""
        name = self.name(inputs)

        def output(x: Tensor) -> Tensor:
            own = x.squeeze(-1) if inputs.tensors[name].ndim == 1 else x
            return self.output_at(inputs.mapped(lambda at, t: own if at == name else t.clone()))

        return output

    def output_at(self, inputs: Inputs) -> Tensor:
        return entry_of(self.call, inputs.call_model(self.model), self.output)
