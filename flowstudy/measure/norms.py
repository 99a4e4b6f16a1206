"""Norms of many tensors: taken where the tensors are, summed in float64, and brought to the host in one copy."""

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

Layout = list[tuple[str, Sequence[int]]]  # the kind and the positions of consecutive numbers

SMALL = 2**14  # entries; on a CPU, calling a kernel for a smaller tensor costs more than its sum
# Where a float32 sum of that many squares can be trusted: squares that underflow, below 1e-38 each, do not count
# beside 1e-28, and none overflows.  Its rounding is below 1e-5 then, and it takes a quarter of the time.
FLOAT32_IS_SAFE = 1e-14, 1e18
NOWHERE = -1   # a position that is left out on the host


class Norms:
    """float64 numbers on the device, each with a kind and a position; `fetch` starts the one copy of all."""

    def __init__(self):
        self.layout: Layout = []
        self.vectors: list[Tensor] = []
        self.host: Tensor | None = None
        self.arrived: torch.cuda.Event | None = None

    def put(self, kind: str, positions: Sequence[int], values: Tensor) -> None:
        """Numbers of one kind and position are norms of parts of one vector."""
        self.layout.append((kind, positions))
        self.vectors.append(values)

    def put_each(self, kind: str, values: Sequence[tuple[int, float | Tensor]]) -> None:
        on_host = [(position, value) for position, value in values if isinstance(value, float)]
        for some in (on_host, [pair for pair in values if not isinstance(pair[1], float)]):
            if some:
                positions, numbers = zip(*some, strict=True)
                self.put(kind, positions, torch.tensor(numbers, dtype=torch.float64) if some is on_host
                         else torch.stack(numbers))

    def include(self, other: "Norms", only: Collection[int] | None = None) -> None:
        """Add all of `other`'s numbers, or those at some positions."""
        for kind, positions in other.layout:
            kept = positions if only is None else [p if p in only else NOWHERE for p in positions]
            self.layout.append((kind, kept))
        self.vectors += other.vectors

    def clear(self) -> None:
        self.layout, self.vectors = [], []

    def fetch(self) -> None:
        """Start the copy to the host.  On CUDA nothing waits for it: `ready` says when it is there."""
        device = self.vectors[0].device if self.vectors else torch.device("cpu")
        together = torch.cat([vector.to(device) for vector in self.vectors] or [torch.empty(0)])
        self.vectors = []
        self.host = together.to("cpu", non_blocking=device.type == "cuda")
        if device.type == "cuda":
            self.arrived = torch.cuda.current_stream(device).record_event()

    def ready(self) -> bool:
        return self.arrived is None or self.arrived.query()

    def read(self) -> np.ndarray:
        """The numbers, in the order of `layout`."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.host.numpy()


def norm(tensor: Tensor) -> float | Tensor:
    """l2 norm; a number on a CPU, a float64 tensor elsewhere."""
    if not tensor.is_cpu:
        return torch.linalg.vector_norm(tensor, dtype=torch.float64)
    if tensor.dtype == torch.float32 and tensor.numel() <= SMALL:
        quick = torch.linalg.vector_norm(tensor).item()
        if FLOAT32_IS_SAFE[0] < quick < FLOAT32_IS_SAFE[1]:
            return quick
    return torch.linalg.vector_norm(tensor, dtype=torch.float64).item()


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """l2 norms, float64, (tensor,), of tensors of one type on one device."""
    first = tensors[0]
    if any(tensor.is_sparse for tensor in tensors):
        return norms([tensor.coalesce().values() if tensor.is_sparse else tensor for tensor in tensors])
    if first.is_complex():
        return norms([torch.view_as_real(tensor) for tensor in tensors])
    if first.is_cpu and first.dtype == torch.float32 and first.numel() <= SMALL:
        quick = torch.stack(torch._foreach_norm(tensors, 2))
        if all_safe(quick):
            return quick.double()
    return torch.stack(torch._foreach_norm(tensors, 2, dtype=torch.float64))


def norms_of_rows(stacked: Tensor) -> Tensor:
    rows = stacked.reshape(len(stacked), -1)
    if rows.is_complex():
        return norms_of_rows(torch.view_as_real(rows))
    if rows.is_cpu and rows.dtype == torch.float32 and rows.shape[1] <= SMALL:
        quick = torch.linalg.vector_norm(rows, dim=1)
        if all_safe(quick):
            return quick.double()
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)


def all_safe(quick: Tensor) -> bool:
    low, high = FLOAT32_IS_SAFE
    return all(low < value < high for value in quick.tolist())
