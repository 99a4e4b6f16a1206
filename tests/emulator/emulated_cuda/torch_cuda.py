"""What `torch.cuda` and its neighbours say of the emulated devices."""

import emulated_device
import torch
from torch import Tensor

from . import streams
from .operations import generators, on_device, on_host
from .streams import index_of

GB = 2**30


class AnyGenerator(type(torch.Generator)):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, torch._C.Generator)


class Generator(torch._C.Generator, metaclass=AnyGenerator):
    """One of an emulated device draws what the host's draws."""

    def __new__(cls, device: object = "cpu"):
        new, device = super().__new__(cls, "cpu"), torch.device(device)
        if device.type == "cuda":
            emulated_device.say_on(new, f"cuda:{index_of(device)}")
        return new


def manual_seed(seed: int, device: object = None) -> None:
    generators[index_of(device)].manual_seed(int(seed))


def manual_seed_all(seed: int) -> None:
    for generator in generators.values():
        generator.manual_seed(int(seed))


def to_cuda(tensor: Tensor, device: object = None, non_blocking: bool = False, **_: object) -> Tensor:
    return tensor.to("cuda" if device is None else device, non_blocking=non_blocking)


def install(devices: int) -> None:
    streams.make_default_streams(devices)
    generators.update({i: torch._C.Generator("cpu").manual_seed(0) for i in range(devices)})
    of_cuda = {
        "is_available": lambda: True, "is_initialized": lambda: True, "init": lambda: None, "_lazy_init": lambda: None,
        "device_count": lambda: devices, "current_device": emulated_device.current_device,
        "set_device": lambda device: emulated_device.exchange_device(index_of(device)) and None,
        "_exchange_device": emulated_device.exchange_device, "_maybe_exchange_device": emulated_device.exchange_device,
        "get_device_name": lambda device=None: "NVIDIA H100 (emulated)",
        "synchronize": streams.synchronize, "set_sync_debug_mode": streams.set_sync_debug_mode,
        "get_sync_debug_mode": streams.get_sync_debug_mode,
        "is_current_stream_capturing": lambda: streams.current_stream().graph is not None,
        **{name: getattr(streams, name) for name in ("Stream", "Event", "stream", "device", "current_stream",
                                                     "default_stream", "CUDAGraph", "graph")},
        "empty_cache": lambda: streams.of_the_whole_device("empty_cache"),
        "mem_get_info": lambda device=None: (70 * GB, 80 * GB),
        "memory_allocated": lambda device=None: 0, "memory_reserved": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 0, "reset_peak_memory_stats": lambda device=None: None,
        "manual_seed": manual_seed, "manual_seed_all": manual_seed_all,
        "get_rng_state": lambda device=None: generators[index_of(device)].get_state(),
        "set_rng_state": lambda state, device=None: generators[index_of(device)].set_state(state) and None,
        "_is_in_bad_fork": lambda: False,
    }
    for name, value in of_cuda.items():
        setattr(torch.cuda, name, value)
    torch.Generator = Generator
    torch.Tensor.cuda = to_cuda
    torch.save = saving_from_the_host(torch.save)


def saving_from_the_host(save: object) -> object:
    """The bytes of a tensor are read from its storage's host memory."""
    def down(value: object) -> object:
        if isinstance(value, Tensor):
            return on_host(value.detach()).clone() if on_device(value) else value
        if isinstance(value, dict):
            return type(value)((name, down(item)) for name, item in value.items())
        return type(value)(map(down, value)) if isinstance(value, list | tuple) else value

    return lambda value, *args, **kwargs: save(down(value), *args, **kwargs)
