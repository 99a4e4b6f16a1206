"""A Jacobian written out, sample by sample: all rows or all columns, as many at once as is fast and fits in memory."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import GradientEdge
from tqdm import tqdm

from flowstudy.arguments import a_whole, check_function, optional, takes
from flowstudy.torch_arguments import TENSOR
from flowstudy.torch_settings import quiet_fallback

from .graph import Node, edge_of, largest_value, place_of, reachable, shape_of

Function = Callable[[Tensor], Tensor]

# Bytes of the largest gradient on the way of all rows in flight: about a CPU's cache, or enough to fill a GPU.
CPU_BYTES, GPU_BYTES = 2**21, 2**26
BAR = {"delay": 5.0, "leave": False}   # seconds that may pass before a bar is shown, on stderr
SEED = 0           # seed of the random directions by which two routes to one Jacobian are compared
AGREEMENT = 1e-9   # largest relative difference between the two that is taken for rounding


@dataclass(frozen=True)
class Stretch:
    """A stretch of the autograd graph of one forward pass, from one value (sample, *inputs) to another.

    Attributes:
        start, end: where the gradients with respect to the two values arrive.
        device: of the rows that are pulled back, and of what is computed from them.  A model may be spread over
            several devices, and the two values lie on others.
        nodes: that its backward pass meets, if known.
    """

    start: GradientEdge
    end: GradientEdge
    device: torch.device
    nodes: tuple[Node, ...] | None = None

    @property
    def samples(self) -> int:
        return shape_of(self.end)[0]

    @property
    def inputs(self) -> int:
        return math.prod(shape_of(self.start)[1:])

    @property
    def outputs(self) -> int:
        return math.prod(shape_of(self.end)[1:])

    def back(self, row: Float[Tensor, "sample *outputs"]) -> Float[Tensor, "sample *inputs"]:
        """The transposed Jacobian of all samples together on one row."""
        pulled = torch.autograd.grad(self.end, self.start, row.to(place_of(self.end)), retain_graph=True,
                                     allow_unused=True)[0]
        return row.new_zeros(shape_of(self.start)) if pulled is None else pulled.to(self.device, torch.float64)

    def pull_singly(self, rows: Float[Tensor, "row sample *outputs"]) -> Float[Tensor, "row sample *inputs"]:
        """Pull the rows back one by one; after some seconds a bar shows the time left."""
        return torch.stack([self.back(row) for row in tqdm(rows, "rows of the Jacobian", len(rows), **BAR)])

    def pull(self, rows: Float[Tensor, "row sample *outputs"]) -> Float[Tensor, "row sample *inputs"]:
        """Pull all rows back at once by vmap where every operation supports it, else one by one."""
        if len(rows) == 1:
            return self.back(rows[0]).unsqueeze(0)
        try:
            with quiet_fallback():
                return torch.func.vmap(self.back)(rows)
        except Exception:  # the model's own derivatives run with stand-ins for tensors: anything may be raised
            return self.pull_singly(rows)

    def at_once(self) -> int:
        """How many rows or columns are fast and fit in memory."""
        budget = CPU_BYTES if self.device.type == "cpu" else GPU_BYTES
        return max(1, budget // (8 * self.largest))

    @cached_property
    def largest(self) -> int:
        """Numbers in the largest gradient of the pass: what each row in flight costs."""
        nodes = reachable(self.end) if self.nodes is None else list(self.nodes)
        return max(largest_value(nodes), math.prod(shape_of(self.start)), math.prod(shape_of(self.end)))

    def random_row(self) -> Float[Tensor, "sample *outputs"]:
        draw = torch.randn(shape_of(self.end), generator=torch.Generator().manual_seed(SEED), dtype=torch.float64,
                           device="cpu")
        return draw.to(self.device)


def start_and_output(function: Callable[[Tensor], object], x: Tensor) -> tuple[GradientEdge, object]:
    """The edge at which the gradient with respect to `x` arrives, and function(x)."""
    with torch.enable_grad():
        value = x.detach().requires_grad_().clone()   # a clone: the function may begin with an in-place operation
        start = edge_of(value)
        return start, function(value)


@takes(function=check_function, x=TENSOR, chunk=optional(a_whole(1)))
def jacobian(function: Function, x: Float[Tensor, "sample *inputs"], *,
             chunk: int | None = None) -> Float[Tensor, "sample outputs inputs"]:
    """d function(x) / dx of every sample, by reverse mode where outputs are not more than inputs, else forward mode.

    Args:
        function: of a batch, (sample, ...) to (sample, ...), that treats samples one by one.
        chunk: rows or columns computed at once; None fits a memory budget. Does not change the result.
    Returns:
        (sample, outputs, inputs), the axes of a sample flattened.

    >>> jacobian(lambda x: x**2, torch.tensor([[1.0, 3.0]])).tolist()
    [[[2.0, 0.0], [0.0, 6.0]]]
    """
    return jacobian_of_pass(*start_and_output(function, x), x, function, chunk)


def jacobian_of_pass(start: GradientEdge, y: Tensor, x: Float[Tensor, "sample *inputs"],
                     function: Function | None = None, chunk: int | None = None,
                     ) -> Float[Tensor, "sample outputs inputs"]:
    """d y / dx of every sample, `start` being where the gradient with respect to x arrives; see `jacobian_of`."""
    if not y.requires_grad:   # a constant
        return x.new_zeros(len(x), math.prod(y.shape[1:]), math.prod(x.shape[1:]), dtype=torch.float64)
    return jacobian_of(Stretch(start, edge_of(y), x.device), chunk, function, x)[0]


def jacobian_of(stretch: Stretch, chunk: int | None = None, function: Function | None = None, x: Tensor | None = None,
                ) -> tuple[Float[Tensor, "sample outputs inputs"], Float[Tensor, " sample"]]:
    """The Jacobian of a stretch, row by row; column by column where there are fewer and the function is given.

    And the spectral norm of its rounding error, as the random combination of rows shows it.

    Columns come of forward mode, which runs the function again.  They are taken if a random combination of rows,
    pulled back through the graph, agrees with them: not every operation has the forward derivative that belongs to
    its backward one, and a function may be another one each time.
    """
    size = chunk or stretch.at_once()
    row, image = row_and_image(stretch)
    if function is not None and stretch.outputs > stretch.inputs:
        try:
            columns = forward_columns(function, x, size)
        except Exception:  # an operation without a forward derivative: the same by rows
            columns = None
        if columns is not None and proves(columns, row, image):
            return columns, rounding(columns, row, image)
    rows = reverse_rows(stretch, size)
    if not proves(rows, row, image):   # a wrong rule for batches, or so much cancellation that rounding is all there is
        rows = reverse_rows(stretch, 1)
    return rows, rounding(rows, row, image)


def row_and_image(stretch: Stretch) -> tuple[Float[Tensor, "sample *outputs"], Float[Tensor, "sample *inputs"]]:
    """A random row, and where autograd's backward pass takes it."""
    row = stretch.random_row()
    return row, stretch.back(row)


def rounding(jacobians: Float[Tensor, "sample outputs inputs"], row: Float[Tensor, "sample *outputs"],
             image: Float[Tensor, "sample *inputs"]) -> Float[Tensor, " sample"]:
    """Estimate of the Jacobian's error in Frobenius norm, from one random row r: |r^T E|^2 is |r|^2 |E|^2 / outputs.

    The image of r is computed twice, as r^T J from the Jacobian and by a backward pass; they differ by rounding.
    """
    row = row.reshape(len(row), 1, -1).double()
    gap = (row @ jacobians).squeeze(1) - image.reshape(len(row), -1).double()
    size = torch.linalg.vector_norm(row.flatten(1), dim=-1)
    return torch.linalg.vector_norm(gap, dim=-1) / size * row.shape[-1] ** 0.5


def proves(jacobians: Float[Tensor, "*more sample outputs inputs"], row: Float[Tensor, "..."],
           image: Float[Tensor, "..."], agreement: float = AGREEMENT) -> bool:
    """The Jacobians take this row where autograd takes it, to rounding; samples with nan or infinities do not count.

    Args:
        row, image: (*more, sample, *outputs) and (*more, sample, *inputs).
    """
    leading = jacobians.shape[:-2]
    row = row.reshape(*leading, 1, jacobians.shape[-2]).double()
    image = image.reshape(*leading, jacobians.shape[-1]).double()
    taken = (row @ jacobians).squeeze(-2)
    gap, scale = (taken - image).abs(), image.abs().amax(-1, keepdim=True)
    if ((gap <= agreement * scale) & (scale < math.inf)).all():   # the commonest case
        return True
    size = (row.abs() @ jacobians.abs()).squeeze(-2)   # `taken` has lost the more digits the smaller it is beside it
    wild = ~taken.isfinite().all(-1)
    uncounted = wild.unsqueeze(-1) | ~size.isfinite().all(-1, keepdim=True)
    near = (gap <= agreement * (scale + 1e-3 * size)) | uncounted
    return bool((near.all(-1) & (wild == ~image.isfinite().all(-1))).all())


def reverse_rows(stretch: Stretch, size: int) -> Float[Tensor, "sample outputs inputs"]:
    """`size` rows at a time, of all samples at once: samples do not mix, so a row of each comes out of one product."""
    shape = shape_of(stretch.end)
    result = torch.empty(stretch.samples, stretch.outputs, stretch.inputs, dtype=torch.float64, device=stretch.device)
    basis = torch.eye(stretch.outputs, dtype=torch.float64, device=stretch.device).view(-1, 1, *shape[1:])
    for start in tqdm(range(0, len(basis), size), "blocks of rows", **BAR):
        pulled = stretch.pull(basis[start:start + size].expand(-1, *shape))
        result[:, start:start + size] = pulled.flatten(2).transpose(0, 1)
    return result


def forward_columns(function: Function, x: Tensor, size: int) -> Float[Tensor, "sample outputs inputs"]:
    """`size` columns at a time, of all samples at once."""
    x = x.detach()
    columns = math.prod(x.shape[1:])
    basis = torch.eye(columns, dtype=x.dtype, device=x.device).view(-1, 1, *x.shape[1:])

    def push(direction: Tensor) -> Tensor:
        return torch.func.jvp(lambda x: function(x.clone()), (x,), (direction,))[1].reshape(len(x), -1).to(x.device)

    with torch.no_grad(), quiet_fallback():
        parts = [torch.func.vmap(push, out_dims=2, randomness="same")(part.expand(-1, *x.shape))
                 for part in basis.split(size)]
    return torch.cat(parts, -1)
