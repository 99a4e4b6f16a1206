"""The cost of the closed forms: scalar calls and a phase diagram, beside a fixed piece of numpy in the same run.

    python -m benchmarks.theory [--json FILE] [--repeats 9]

The yardstick is numpy's tanh of a million float64 numbers on one thread: a call's ratio to it says the same on a slow
machine as on a fast one.  Figures call the scalar forms once a line.
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from flowstudy import theory

from .timing import machine, report, seconds_of

YARDSTICK = "numpy: tanh of a million numbers"


def main(json: Annotated[Path | None, typer.Option(help="keep the table here")] = None,
         repeats: Annotated[int, typer.Option(help="rounds, of which the best counts", min=1)] = 9) -> None:
    device = torch.device("cpu")
    seconds = seconds_of(calls(), device, repeats)
    rows = [{"call": name, "ms": 1e3 * spent, "ratio": spent / seconds[YARDSTICK]} for name, spent in seconds.items()]
    report("Theory, beside numpy", rows, machine(device), json)


def calls() -> dict[str, Callable[[], object]]:
    """By name; what is kept per width gets a fresh width about 100,000 each time."""
    numbers = np.linspace(-3, 3, 1_000_000)
    width = itertools.count(100_000)
    weight_var, bias_var = np.linspace(.1, 3, 200)[:, None]**2, np.linspace(0, .5, 200)
    return {
        YARDSTICK: lambda: np.tanh(numbers),
        "log_jacobian_norm": lambda: theory.log_jacobian_norm(next(width), 50, "relu"),
        "log_input_gradient_norm": lambda: theory.log_input_gradient_norm(next(width), 50, "relu"),
        "random_walk_gain, exact": lambda: theory.random_walk_gain("relu", next(width), exact=True),
        "expected_rank": lambda: theory.expected_rank(next(width), 50),
        "lyapunov_exponents, width 1024": lambda: theory.lyapunov_exponents(1024),
        "fuss_catalan_density": lambda: theory.fuss_catalan_density(1.0, 50),
        "residual_edge": lambda: theory.residual_edge(50, .9, .1),
        "residual_largest_exponent": lambda: theory.residual_largest_exponent(10**6, .9, .1),
        "spectrum_variance": lambda: theory.spectrum_variance("gelu", 50, "gaussian", 2.0),
        "sum_log_singular_values": lambda: theory.sum_log_singular_values(1024, 50),
        "highway, 50 layers": lambda: theory.highway("tanh", 50, -3.0, 1.0),
        "highway_log_volume": lambda: theory.highway_log_volume("relu", -1.0, 2.0),
        "mean_field, one point": lambda: theory.mean_field("tanh", 4.0, .05),
        "mean_field, 200 x 200 points": lambda: theory.mean_field("tanh", weight_var, bias_var),
    }


if __name__ == "__main__":
    typer.run(main)
