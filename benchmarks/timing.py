"""Timing side by side: the contenders take turns, so that a busy moment of the machine hits them alike."""

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch


def seconds_of(contenders: dict[str, Callable[[], object]], device: torch.device, repeats: int = 5,
               warm_up: bool = True) -> dict[str, float]:
    """The best of `repeats` rounds, after one round to warm up; each round calls every contender once."""
    best = dict.fromkeys(contenders, float("inf"))
    for turn in range(0 if warm_up else 1, repeats + 1):
        for name, call in contenders.items():
            synchronize(device)
            started = time.perf_counter()
            call()
            synchronize(device)
            if turn:
                best[name] = min(best[name], time.perf_counter() - started)
    return best


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def product_rate(device: torch.device, dtype: torch.dtype, size: int = 1024) -> float:
    """Floating-point operations per second of a matrix product on this machine, measured."""
    a = torch.randn(size, size, dtype=dtype, device=device)
    return 2 * size**3 / seconds_of({"product": lambda: a @ a}, device)["product"]


def machine(device: torch.device) -> dict[str, object]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__,
            "float64 product [GFLOP/s]": round(product_rate(device, torch.float64) / 1e9, 1),
            "float32 product [GFLOP/s]": round(product_rate(device, torch.float32) / 1e9, 1)}


def report(title: str, rows: list[dict], about: dict, path: Path | None) -> None:
    """Print one table, and keep it with its machine where a path is given."""
    print(f"{title}: " + ", ".join(f"{key} {value}" for key, value in about.items()))
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    if path is not None:
        path.write_text(json.dumps({"machine": about, "rows": rows}, indent=1))
