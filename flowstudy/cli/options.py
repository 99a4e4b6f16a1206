"""What the commands take, in words: light, since `--help` and the shell's completion ask for nothing else."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_args

import typer

from flowstudy.names import LossName, OptimizerName

LARGEST = 2**63 - 1  # as in flowstudy.arguments, which imports numpy and pandas
OPTIMIZERS, LOSSES = (get_args(get_args(name)[0]) for name in (OptimizerName, LossName))

# --- of a model ------------------------------------------------------------------------------------------------------

Target = Annotated[str, typer.Argument(help="package.module:name or file.py:name, a model or its builder")]
Input = Annotated[list[str] | None, typer.Option("--input", help="shape of one sample, such as 784 or 3x32x32; again "
                                                 "for each further input")]
Inputs = Annotated[Path | None, typer.Option(help="inputs that torch.save wrote: a tensor, a tuple of what the model "
                                             "takes, or a dict of it by name")]
Output = Annotated[str | None, typer.Option(help="entry of the model's output that is meant, by key or by place")]
Vocabulary = Annotated[int | None, typer.Option(help="the model takes token ids below this number", min=1,
                                                max=LARGEST)]
Seed = Annotated[int, typer.Option(help="of the weights that the builder draws, and of inputs and labels",
                                   min=-LARGEST, max=LARGEST - 1)]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; without, where the model's builder put it")]
Picture = Annotated[Path | None, typer.Option(help="draw it into this file; its ending tells the format")]
Csv = Annotated[Path | None, typer.Option(help="keep the whole table here")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object instead: null for what is not known, and "
                                                     '"inf" or "-inf"')]

# --- of `check` ------------------------------------------------------------------------------------------------------

Classes = Annotated[int | None, typer.Option(help="of the random labels; without, the model's outputs where they are "
                                             "(sample, class), else a random linear read-out is the loss", min=2,
                                             max=LARGEST)]
Loss = Annotated[str | None, typer.Option(help=f"{', '.join(LOSSES)} (the model returns it)")]
Data = Annotated[Path | None, typer.Option(help="a tuple (x, y), or a dict with x and y, that torch.save wrote")]
Trial = Annotated[int, typer.Option(help="train copies for so many steps at the usual eight learning rates", min=0)]
Optimizer = Annotated[str, typer.Option(help=", ".join(OPTIMIZERS))]
Samples = Annotated[int, typer.Option(help="to measure at; a trial takes all of --data", min=2)]
Seconds = Annotated[float | None, typer.Option(help="of wall time at most for the trial", min=0)]
Train = Annotated[bool | None, typer.Option("--train/--eval", help="the mode to measure in; without, training mode for "
                                            "nets with batch statistics, evaluation mode for others")]

# --- of `spectrum` ---------------------------------------------------------------------------------------------------

Part = Annotated[str, typer.Option(help="all: input to output; body: first layer's output to the last hidden layer's")]
Method = Annotated[str, typer.Option(help="auto, product, dense or matrix_free")]
K = Annotated[int | None, typer.Option(help="only the k largest singular values")]
DrawsOrFirst = Annotated[int, typer.Option(help="inputs to measure at: draws, or the first ones of --inputs", min=1)]
Start = Annotated[str | None, typer.Option(help="module whose output is the input")]
Wrt = Annotated[str | None, typer.Option(help="of several inputs the one that is varied, by key or by place")]

# --- of `sweep` and `status` -----------------------------------------------------------------------------------------

Plan = Annotated[Path, typer.Argument(help="YAML with `grid:` or `random_search:`, `measure:` and `options:`")]
StoreFolder = Annotated[Path, typer.Option(help="folder of the results")]
StoreToShow = Annotated[Path, typer.Argument(help="folder of the results")]
Measures = Annotated[str | None, typer.Option(help="instead of the plan's: training_loss,gradient_flow, ...")]
DeviceOrAuto = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
Shard = Annotated[str | None, typer.Option(help="i/N: part i of N, as for a Slurm array")]
EngineAddress = Annotated[str, typer.Option(help="local, or a Dask scheduler such as tcp://127.0.0.1:8786")]
InsecureNetwork = Annotated[bool, typer.Option(
    "--insecure-network", help="admit a Dask scheduler of another machine without TLS: whoever reaches it runs code "
                               "on it")]
NetsAtOnce = Annotated[int | None, typer.Option(help="the largest stack", min=1)]
Progress = Annotated[bool, typer.Option(help="a progress bar")]


@dataclass(frozen=True)
class Asked:
    """The command's options about inputs, targets and the loss.

    Attributes: the options of `flowstudy check` of the same names; `shapes` is --input, `file` is --inputs.
    """

    shapes: list[str] | None
    file: Path | None
    vocabulary: int | None
    samples: int
    seed: int
    classes: int | None = None
    loss: str | None = None
    output: str | None = None

    @property
    def entry(self) -> str | int | None:
        return key_of_option(self.output)


def key_of_option(key: str | None) -> str | int | None:
    """The key of an output's entry: an int, the place in a tuple, where the option is a number."""
    return int(key) if key is not None and key.isdecimal() else key
