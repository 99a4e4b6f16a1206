"""The steps of a convolutional net: called one by one on a CPU, on a GPU replayed as a CUDA graph."""

import warnings

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn import functional as F

from flowstudy.cuda_capture import captured
from flowstudy.data import Dataset
from flowstudy.data.augment import Crops, cropped
from flowstudy.train.stacks.cuda_graph import kept_as_they_are


class ConvSteps:
    """Nesterov steps of one net on a training set, epoch after epoch.

    Args:
        net: trained in place.
        optimizer: `nesterov_sgd`'s of this net.
        data: prepared, on the device of the net.
        batch_size: samples of a step.
    """

    def __init__(self, net: nn.Module, optimizer: torch.optim.SGD, data: Dataset, batch_size: int):
        self.net, self.optimizer, self.data = net, optimizer, data
        device = data.x_train.device
        self.total = torch.zeros((), device=device)  # of the losses of this epoch's samples
        self.begin = torch.zeros((), dtype=torch.int64, device=device)  # of the next batch, in `order`
        self.batch = torch.arange(batch_size, device=device)
        self.order, self.crops = torch.arange(len(data.x_train), device=device), None
        self.graph, self.rate, self.alone = None, None, True

    def new_epoch(self, order: Int64[Tensor, " sample"], crops: Crops | None) -> None:
        """Begin with these samples in this order, each cut out as `crops` say; capture a step where there is none."""
        self.order.copy_(order)
        if crops is None or self.crops is None:
            self.crops = None if crops is None else Crops(*(part.to(self.order.device) for part in crops))
        else:
            for part, new in zip(self.crops, crops, strict=True):
                part.copy_(new)
        self.total.zero_()
        self.begin.zero_()
        if self.order.device.type == "cuda" and len(self.batch) <= len(order):
            self.make_ready()

    def run(self) -> float:
        """A step for each batch, the last one of what is left over; the mean loss of the epoch's samples."""
        samples, full = len(self.order), len(self.order) // len(self.batch)
        for _ in range(full):
            self.graph.replay() if self.graph is not None else self.full_step()
        if left := samples - full * len(self.batch):
            self.step(self.order[-left:])
        return self.total.item() / samples

    def full_step(self) -> None:
        self.step(self.order[self.begin + self.batch])
        self.begin += len(self.batch)

    def step(self, index: Int64[Tensor, " chosen"]) -> None:
        x = self.data.x_train[index]
        if self.crops is not None:
            x = cropped(x, self.crops.of(index))
        loss = F.cross_entropy(self.net(x), self.data.y_train[index])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.total += loss.detach() * len(index)

    # --- as a CUDA graph ---------------------------------------------------------------------------------------------

    def make_ready(self) -> None:
        """Capture a step, which keeps the rate of learning that it was captured with, if the host has no part in it."""
        rate = self.optimizer.param_groups[0]["lr"]
        if has_hooks(self.net):
            self.graph = None
        elif self.alone and (self.graph is None or rate != self.rate):
            self.graph, self.rate = self.captured_step(), rate

    def captured_step(self) -> torch.cuda.CUDAGraph | None:
        """A full step, or None where it needs the host; the net, its velocities and the epoch are afterwards as they
        were."""
        for group in self.optimizer.param_groups:
            for p in group["params"]:  # torch makes them in the first step, which then differs from those that follow
                self.optimizer.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
        velocities = [state["momentum_buffer"] for state in self.optimizer.state.values()]
        buffers = [(module, name, value) for module in self.net.modules() for name, value in module._buffers.items()]
        held = [*self.net.parameters(), *(value for *_, value in buffers if value is not None), *velocities,
                self.total, self.begin]
        with kept_as_they_are(held):
            try:
                self.alone = self.needs_no_host() and all(module._buffers.get(name) is value
                                                          for module, name, value in buffers)
                return captured(self.first_step, self.full_step, self.order.device) if self.alone else None
            finally:
                for module, name, value in buffers:
                    module._buffers[name] = value
                self.optimizer.zero_grad()

    def needs_no_host(self) -> bool:
        """Whether a step runs through without waiting for a number of the device."""
        mode = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it does not yet find all waits: a capture says so of the others
            torch.cuda.set_sync_debug_mode("error")
        try:
            self.first_step()
        except RuntimeError:  # another error than that of a wait comes again in the step that is not captured
            return False
        finally:
            torch.cuda.set_sync_debug_mode(mode)
        return True

    def first_step(self) -> None:
        """A full step, undone in part: what follows begins with the same batch, and with no gradients."""
        self.full_step()
        self.begin.zero_()
        self.optimizer.zero_grad()


def has_hooks(net: nn.Module) -> bool:
    """Whether there are hooks, which a graph does not call."""
    of_modules = (getattr(module, kind) for module in net.modules()
                  for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"))
    return any(of_modules) or any(p._backward_hooks or p._post_accumulate_grad_hooks for p in net.parameters())
