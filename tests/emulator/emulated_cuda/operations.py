"""Every operation on an emulated device: what CUDA refuses is refused, then the CPU's kernel runs on its memory."""

import functools
import threading
from collections.abc import Callable, Iterator
from itertools import chain

import emulated_device
import torch
from torch import Tensor

from .log import LOG
from .streams import capturing, current_streams, default_streams, forbid_in_capture, index_of, wait

aten = torch.ops.aten
LOCK = threading.RLock()  # autograd has a thread for each device

# They tell the host a number, or how large their result is.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive",
           "bincount", "equal", "is_nonzero", "repeat_interleave"}
NO_KERNEL = {"empty", "empty_strided", "empty_like", "new_empty", "set_", "resize_", "detach", "alias", "lift",
             "lift_fresh", "as_strided_", "record_stream"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
# Those that take a number for a tensor, which is one on the host.
WITH_NUMBERS = {"add", "sub", "mul", "div", "where", "maximum", "minimum", "pow", "eq", "ne", "lt", "le", "gt", "ge",
                "logical_and", "logical_or", "bitwise_and", "bitwise_or", "atan2", "fmod", "remainder", "hypot", "fill",
                "masked_fill", "clamp", "clamp_min", "clamp_max", "addcmul", "copy", "lerp", "xlogy", "floor_divide",
                "sigmoid_backward", "tanh_backward"} | INDEXING


class Schema:
    """What an operation takes."""

    def __init__(self, op: torch._ops.OpOverload):
        self.name = op._schema.name.split("::")[1]
        self.arguments = [(argument.name, argument.alias_info is not None and argument.alias_info.is_write,
                           isinstance(argument.type, torch.TensorType)) for argument in op._schema.arguments]
        self.draws = torch.Tag.nondeterministic_seeded in op.tags

    def values(self, args: tuple, kwargs: dict) -> list[tuple[bool, object]]:
        """Each value that is given, and whether it is written to."""
        by_place = [(written, value) for (_, written, _), value in zip(self.arguments, args, strict=False)]
        return by_place + [(written, kwargs[name]) for name, written, _ in self.arguments if name in kwargs]


schema_of = functools.cache(Schema)


def leaves_of(value: object) -> Iterator[object]:
    if isinstance(value, list | tuple):
        for part in value:
            yield from leaves_of(part)
    else:
        yield value


def mapped(function: Callable[[object], object], value: object) -> object:
    if isinstance(value, list | tuple):
        return type(value)([mapped(function, part) for part in value])
    return function(value)


def on_device(tensor: object) -> bool:
    return isinstance(tensor, Tensor) and tensor.is_cuda


def on_host(value: object) -> object:
    """The same memory as a tensor of the host."""
    if on_device(value):
        return emulated_device.alias_on(value, "cpu")
    return torch.device("cpu") if isinstance(value, torch.device) else value


def on_cuda(op: torch._ops.OpOverload, *args: object, **kwargs: object) -> object:
    with LOCK:
        return emulate(op, args, kwargs)


def emulate(op: torch._ops.OpOverload, args: tuple, kwargs: dict) -> object:
    schema = schema_of(op)
    name, given = schema.name, schema.values(args, kwargs)
    leaves = [leaf for _, value in given for leaf in leaves_of(value)]
    where = device_of(op, leaves)
    check_hosts(op, name, args, leaves, where)
    if name in WAITING or (name in INDEXING and any(
            isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in leaves_of(args[1]))):
        wait(name)
    graph = graph_for(name, where)
    args, kwargs = host_arguments(schema, args, kwargs)
    hosts = schema.values(args, kwargs)
    written = [(mine, host) for (is_written, value), (_, twin) in zip(given, hosts, strict=True) if is_written
               for mine, host in zip(leaves_of(value), leaves_of(twin), strict=True) if isinstance(host, Tensor)]
    if graph is not None:
        for _, host in written:
            graph.about_to_write(host)
    known = {emulated_device.address(leaf) for _, value in hosts for leaf in leaves_of(value)
             if isinstance(leaf, Tensor)}
    result = run(op, schema, args, kwargs, where)
    for mine, host in written:
        if on_device(mine) and (mine.shape != host.shape
                                or emulated_device.address(mine) != emulated_device.address(host)):
            emulated_device.take_over(mine, emulated_device.alias_on(host, str(where)))
    tensors = [leaf for leaf in leaves_of(result) if isinstance(leaf, Tensor)]
    made = [(i, tensor) for i, tensor in enumerate(tensors) if emulated_device.address(tensor) not in known]
    if (made or written) and name not in NO_KERNEL:
        LOG.kernels[name] += 1
        if graph is not None:
            graph.record(op, args, kwargs, made)
    elif graph is not None:
        graph.own.update(emulated_device.address(tensor) for _, tensor in made)
    return handed_back(result, written, where)


def handed_back(result: object, written: list[tuple[Tensor, Tensor]], where: torch.device) -> object:
    """What was written to is given back as the tensor that it is; all else as tensors of the device."""
    given = {id(host): mine for mine, host in written}

    def back(value: object) -> object:
        if not isinstance(value, Tensor):
            return value
        return given[id(value)] if id(value) in given else emulated_device.alias_on(value, str(where))

    return mapped(back, result)


# --- where -----------------------------------------------------------------------------------------------------------


def device_of(op: torch._ops.OpOverload, leaves: list) -> torch.device:
    found = {leaf.device for leaf in leaves if on_device(leaf)}
    if len(found) > 1:
        raise RuntimeError("Expected all tensors to be on the same device, but found at least two devices, "
                           f"{' and '.join(sorted(map(str, found)))}! (in {op})")
    if found:
        return found.pop()
    asked = [leaf for leaf in leaves if isinstance(leaf, torch.device) and leaf.type == "cuda"]
    return torch.device("cuda", index_of(asked[0] if asked else None))


def check_hosts(op: torch._ops.OpOverload, name: str, args: tuple, leaves: list, where: torch.device) -> None:
    """Tensors of the host may stand for numbers, and be indices of what is on the device."""
    plain = name.removesuffix("_")
    for tensor in leaves:
        if isinstance(tensor, torch.Generator) and tensor.device.type != "cuda":
            raise RuntimeError(f"Expected a 'cuda' device type for generator but found '{tensor.device.type}'")
        if not isinstance(tensor, Tensor) or tensor.device.type != "cpu":
            continue
        if name in INDEXING and on_device(args[0]) and not (len(args) > 2 and tensor is args[2] and tensor.dim()):
            LOG.transfers["H2D"] += tensor.dim() > 0
        elif name in INDEXING and not on_device(args[0]):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        elif tensor.dim() or plain not in WITH_NUMBERS:
            raise RuntimeError("Expected all tensors to be on the same device, but found at least two devices, "
                               f"{where} and cpu! (in {op}, shape {tuple(tensor.shape)})")


def graph_for(name: str, where: torch.device) -> object:
    """The graph that this operation belongs to."""
    if where.index >= len(current_streams):
        raise RuntimeError("CUDA error: invalid device ordinal")
    stream = current_streams[where.index]
    busy = capturing()
    if busy is not None and stream in default_streams and busy.stream.device_index == where.index \
            and name not in NO_KERNEL:
        forbid_in_capture(f"{name} on the default stream")
    return stream.graph


# --- on the host -----------------------------------------------------------------------------------------------------


def host_arguments(schema: Schema, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    def host(is_tensor: bool, value: object) -> object:
        if is_tensor and isinstance(value, bool | int | float | complex):
            return emulated_device.as_number(torch.tensor(value, dtype=torch.float64 if isinstance(value, float)
                                                          else None))
        return mapped(on_host, value)

    by_name = {name: host(is_tensor, kwargs[name]) for name, _, is_tensor in schema.arguments if name in kwargs}
    if by_name.get("pin_memory"):
        by_name["pin_memory"] = False
    by_place = zip(schema.arguments, args, strict=False)
    return tuple(host(is_tensor, value) for (_, _, is_tensor), value in by_place), by_name


generators: dict[int, torch.Generator] = {}  # of each device


def run(op: torch._ops.OpOverload, schema: Schema, args: tuple, kwargs: dict, where: torch.device) -> object:
    """The CPU's kernel; what draws without a generator of its own draws from the device's, not from the host's."""
    given = [value for value in chain(args, kwargs.values()) if isinstance(value, torch.Generator)]
    if given:
        emulated_device.say_on(given[0], "cpu")
        try:
            return op(*args, **kwargs)
        finally:
            emulated_device.say_on(given[0], str(where))
    if not schema.draws:
        return op(*args, **kwargs)
    before, generator = torch.default_generator.get_state(), generators[where.index]
    torch.default_generator.set_state(generator.get_state())
    try:
        return op(*args, **kwargs)
    finally:
        generator.set_state(torch.default_generator.get_state())
        torch.default_generator.set_state(before)


# --- copies ----------------------------------------------------------------------------------------------------------


def copy_(self: Tensor, src: Tensor, non_blocking: bool = False) -> Tensor:
    if self is src:
        return self
    with LOCK:
        if on_device(self) and on_device(src):
            LOG.transfers["D2D"] += self.device != src.device
            graph = graph_for("copy_", self.device)
            mine, other = on_host(self), on_host(src)
            if graph is not None:
                graph.about_to_write(mine)
                graph.record(aten.copy_.default, (mine, other), {}, [])
            mine.copy_(other)
            LOG.kernels["copy_"] += 1
            return self
        kind = "H2D" if on_device(self) else "D2H"
        forbid_in_capture(f"{kind} copy")
        LOG.transfers[kind] += 1
        if kind == "D2H" and not non_blocking:
            wait("D2H copy")
        on_host(self).copy_(on_host(src))
        return self


def to_copy(self: Tensor, *, dtype: torch.dtype | None = None, layout: object = None, device: object = None,
            pin_memory: object = None, non_blocking: bool = False, memory_format: object = None) -> Tensor:
    device = self.device if device is None else torch.device(device)
    new = torch.empty_like(on_host(self), dtype=dtype, memory_format=memory_format or torch.preserve_format)
    if device.type == "cuda":
        device = torch.device("cuda", index_of(device))
        graph = current_streams[device.index].graph
        if graph is not None:
            graph.own.add(emulated_device.address(new))
        new = emulated_device.alias_on(new, str(device))
    return copy_(new, self, non_blocking)


def clone(self: Tensor, *, memory_format: object = None) -> Tensor:
    return to_copy(self, memory_format=memory_format)


def zero_tensor(size: list[int], *, dtype: object = None, layout: object = None, device: object = None,
                pin_memory: object = None) -> Tensor:
    return torch.zeros(size, dtype=dtype, device=device)


LIBRARIES = [torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")]  # they act while they live


def register() -> None:
    everything, own = LIBRARIES
    everything.fallback(on_cuda, "CUDA")
    for name, function in {"copy_": copy_, "_to_copy": to_copy, "clone": clone,
                           "_efficientzerotensor": zero_tensor}.items():
        own.impl(name, function, "CUDA")
    # Composite operations that ask for a kernel of the device's own: run as one operation.
    for name in ("mse_loss", "mse_loss_backward", "nll_loss_forward", "nll_loss_backward"):
        op = getattr(aten, name).default
        own.impl(name, lambda *args, op=op, **kwargs: on_cuda(op, *args, **kwargs), "CUDA")
