"""Norms of many tensors: taken where the tensors are, summed in float64, and brought to the host in one copy."""

import math
from array import array
from collections.abc import Collection, Sequence
from itertools import islice

import torch
from torch import Tensor

Layout = list[tuple[str, Sequence[int]]]  # the kind and the positions of consecutive numbers

# On a CPU a float32 sum of squares takes a quarter to an eighth of a float64 one's time.  It is good to 1e-5 over up to
# SMALL entries, to 1e-7 over a row (the rows are summed in float64), and where the norm is between these bounds:
# squares that underflow, below 1e-38 each, do not count beside 1e-24, and none overflows.
SMALL, ROW = 2**14, 1024
LOWEST_SAFE, HIGHEST_SAFE = 1e-12, 1e18
vector_norm = torch.linalg.vector_norm  # looked up once: a record takes dozens
NOWHERE = -1   # position of numbers that are dropped on the host


Values = Tensor | list[float]  # float64 on a device; plain numbers where the device is the host


class Norms:
    """Numbers, each with a kind and a position, on the device; `fetch` starts the one copy of all to the host."""

    def __init__(self):
        self.layout: Layout = []
        self.values: list[Values] = []
        self.host: Tensor | None = None
        self.arrived: torch.cuda.Event | None = None

    def put(self, kind: str, positions: Sequence[int], values: Values) -> None:
        """Numbers of one kind and position are norms of parts of one vector."""
        self.layout.append((kind, positions))
        self.values.append(values)

    def put_each(self, kind: str, pairs: Sequence[tuple[int, float | Tensor]]) -> None:
        """Numbers of one kind: plain ones where the device was the host, the others wherever they are."""
        places: dict[torch.device | None, list[tuple[int, float | Tensor]]] = {}
        for pair in pairs:
            places.setdefault(None if isinstance(pair[1], float) else pair[1].device, []).append(pair)
        for device, some in places.items():
            positions, numbers = zip(*some, strict=True)
            self.put(kind, positions, list(numbers) if device is None else torch.stack(numbers))

    def include(self, other: "Norms", only: Collection[int] | None = None) -> None:
        """Add all of `other`'s numbers, or those at some positions."""
        for kind, positions in other.layout:
            kept = positions if only is None else [p if p in only else NOWHERE for p in positions]
            self.layout.append((kind, kept))
        self.values += other.values

    def fetch(self) -> None:
        """Start the copy to the host.  On CUDA nothing waits for it: `ready` says when it is there."""
        there = [i for i, values in enumerate(self.values) if isinstance(values, Tensor)]
        if not there:
            return
        device = self.values[there[0]].device
        together = torch.cat([self.values[i].to(device) for i in there])
        for i in there:
            self.values[i] = []
        self.host = together.to("cpu", non_blocking=device.type == "cuda")
        if device.type == "cuda":
            self.arrived = torch.cuda.current_stream(device).record_event()

    def ready(self) -> bool:
        return self.arrived is None or self.arrived.query()

    def read(self) -> array:
        """The numbers, in the order of `layout`."""
        if not self.ready():  # to synchronise costs a call even where there is nothing to wait for
            self.arrived.synchronize()
        fetched = iter([] if self.host is None else self.host.tolist())
        numbers = array("d")
        for (_, positions), values in zip(self.layout, self.values, strict=True):
            numbers.extend(values or islice(fetched, len(positions)))
        return numbers


def as_real(tensor: Tensor) -> Tensor:
    """The real and imaginary parts of complex entries side by side: a tensor of the same norm, |h|^2 = h conj(h)."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def norm(tensor: Tensor) -> float | Tensor:
    """l2 norm; a number on a CPU, a float64 tensor elsewhere."""
    tensor = as_real(tensor)
    if not tensor.is_cpu:
        return vector_norm(tensor, dtype=torch.float64)
    if tensor.dtype == torch.float32:
        quick = vector_norm(tensor).item() if tensor.numel() <= SMALL else norm_by_rows(tensor)
        if LOWEST_SAFE < quick < HIGHEST_SAFE:
            return quick
    return vector_norm(tensor, dtype=torch.float64).item()


def norm_by_rows(tensor: Tensor) -> float:
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        tensor = tensor.permute(0, 2, 3, 1)  # as it lies in memory: reshape need not copy
    flat = tensor.reshape(-1)
    whole = flat.numel() // ROW * ROW
    rows = vector_norm(flat[:whole].view(-1, ROW), dim=1)
    rest = vector_norm(flat[whole:], dtype=torch.float64).item()
    return math.hypot(vector_norm(rows, dtype=torch.float64).item(), rest)


def norms(tensors: Sequence[Tensor]) -> Values:
    """l2 norms of tensors of one type on one device, on a CPU of one shape."""
    first = tensors[0]
    if any(tensor.is_sparse for tensor in tensors):
        dense = [tensor.coalesce().values() if tensor.is_sparse else tensor for tensor in tensors]
        return [value for tensor in dense for value in norms([tensor])] if first.is_cpu else norms(dense)
    if first.is_complex():
        return norms([as_real(tensor) for tensor in tensors])
    if not first.is_cpu:
        return torch.stack(torch._foreach_norm(tensors, 2, dtype=torch.float64))
    if first.dtype == torch.float32 and first.numel() <= SMALL and len(tensors) > 1:
        return norms_of_rows(torch.stack(tensors))  # side by side they take half the time of a norm each
    return [norm(tensor) for tensor in tensors]


def norms_of_rows(stacked: Tensor) -> Values:
    """l2 norms of the parts of a stack."""
    rows = as_real(stacked).reshape(len(stacked), -1)   # of single numbers too
    if not rows.is_cpu:
        return vector_norm(rows, dim=1, dtype=torch.float64)
    if rows.dtype == torch.float32 and rows.shape[1] <= SMALL:
        quick = vector_norm(rows, dim=1).tolist()
        if all_safe(quick):
            return quick
    return [norm(row) for row in rows]


def all_safe(quick: list[float]) -> bool:
    return min(quick) > LOWEST_SAFE and max(quick) < HIGHEST_SAFE  # a nan that this passes is one in float64 too
