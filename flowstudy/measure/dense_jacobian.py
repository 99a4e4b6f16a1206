"""A Jacobian written out, sample by sample: all rows or all columns, as many at once as is fast and fits in memory."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Function = Callable[[Tensor], Tensor]

# Bytes of the largest gradient on the way of all rows in flight: about a CPU's cache, or enough to fill a GPU.
CPU_BYTES, GPU_BYTES = 2**21, 2**26


def run(function: Callable[[Tensor], object], x: Tensor) -> tuple[Tensor, object]:
    """A leaf of `x`'s values, and the function of it."""
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        return leaf, function(leaf.clone())   # a clone: the function may begin with an in-place operation


@dataclass(frozen=True)
class Pass:
    """A forward pass that can be differentiated: `y` is `function(x)`, and `x` a leaf of its graph."""

    function: Function
    x: Tensor
    y: Tensor

    @classmethod
    def of(cls, function: Function, x: Tensor) -> "Pass":
        return cls(function, *run(function, x))

    @property
    def inputs(self) -> int:
        return self.x[0].numel()

    @property
    def outputs(self) -> int:
        return self.y[0].numel()

    def pull(self, rows: Float[Tensor, "row sample *outputs"]) -> Float[Tensor, "row sample *inputs"]:
        """The transposed Jacobian of all samples together on each row."""
        def back(row: Tensor) -> Tensor:
            return torch.autograd.grad(self.y, self.x, row, retain_graph=True)[0]

        return torch.func.vmap(back)(rows)   # is_grads_batched=True has no rule for tanh: a loop

    def at_once(self) -> int:
        """How many rows or columns are fast and fit in memory."""
        budget = CPU_BYTES if self.x.device.type == "cpu" else GPU_BYTES
        return max(1, budget // (8 * len(self.x) * self.largest()))

    @property
    def ends(self) -> Float[Tensor, "2 sample *outputs"]:
        """Rows that pull back the first sample's outputs alone, and the last's."""
        rows = torch.zeros(2, *self.y.shape, dtype=self.y.dtype, device=self.y.device)
        rows[0, 0] = rows[1, -1] = 1.0
        return rows

    def largest(self) -> int:
        """Numbers per sample in the largest gradient of the pass: what each row in flight costs."""
        seen, waiting = set(), [self.y.grad_fn]
        largest = self.x.numel()
        while waiting:
            node = waiting.pop()
            if node is not None and node not in seen:
                seen.add(node)
                largest = max(largest, *(math.prod(value.shape) for value in node._input_metadata))
                waiting += [following for following, _ in node.next_functions]
        return math.ceil(largest / len(self.x))


def jacobian(function: Function, x: Float[Tensor, "sample *inputs"], *,
             chunk: int | None = None) -> Float[Tensor, "sample outputs inputs"]:
    """d function(x) / dx of every sample, by reverse mode where outputs are not more than inputs, else forward mode.

    Args:
        function: of a batch, (sample, ...) to (sample, ...), that treats samples one by one.
        chunk: rows or columns computed at once; None fits a memory budget. Does not change the result.
    """
    return jacobian_of(Pass.of(function, x), chunk)[0]


def jacobian_of(passed: Pass, chunk: int | None, more: Tensor | None = None,
                ) -> tuple[Float[Tensor, "sample outputs inputs"], Tensor | None]:
    """The Jacobian of a pass; and what pulls `more` rows back, at next to no cost when rows are pulled anyway."""
    size = chunk or passed.at_once()
    if passed.outputs > passed.inputs:
        try:
            return forward_columns(passed, size), None if more is None else passed.pull(more)
        except (NotImplementedError, RuntimeError):  # an operation without a forward derivative: the same by rows
            pass
    return reverse_rows(passed, size, more)


def reverse_rows(passed: Pass, size: int, more: Tensor | None) -> tuple[Float[Tensor, "sample outputs inputs"],
                                                                        Tensor | None]:
    """`size` rows at a time, of all samples at once: samples do not mix, so a row of each comes out of one product."""
    x, y = passed.x, passed.y
    result = x.new_empty(len(x), passed.outputs, passed.inputs, requires_grad=False)
    basis = torch.eye(passed.outputs, dtype=y.dtype, device=y.device).view(-1, 1, *y.shape[1:])
    for start in range(0, len(basis), size):
        rows = basis[start:start + size].expand(-1, *y.shape)
        last = more is not None and start + size >= len(basis)
        pulled = passed.pull(torch.cat([rows, more]) if last else rows)
        result[:, start:start + size] = pulled[:len(rows)].flatten(2).transpose(0, 1)
    return result, None if more is None else pulled[len(rows):]


def forward_columns(passed: Pass, size: int) -> Float[Tensor, "sample outputs inputs"]:
    """`size` columns at a time, of all samples at once."""
    x = passed.x.detach()
    result = x.new_empty(len(x), passed.outputs, passed.inputs)
    basis = torch.eye(passed.inputs, dtype=x.dtype, device=x.device).view(-1, 1, *x.shape[1:])

    def push(direction: Tensor) -> Tensor:
        return torch.func.jvp(lambda x: passed.function(x.clone()), (x,), (direction,))[1].flatten(1)

    with torch.no_grad():
        for start in range(0, len(basis), size):
            columns = basis[start:start + size].expand(-1, *x.shape)
            result[..., start:start + size] = torch.func.vmap(push, out_dims=2, randomness="same")(columns)
    return result
