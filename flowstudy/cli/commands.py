"""The commands, and `flowstudy spectrum`: a table, and a picture if asked, of a model named on the command line."""

import math
from typing import Annotated

import pandas as pd
import typer

import flowstudy
from flowstudy.measure import jacobian_spectrum

from . import studies, sweeps
from .as_json import AsJson, answer
from .batches import Asked, File, Input, Output, Seed, Vocabulary, inputs_asked_for, key_of_option
from .check import check
from .devices import Device, on_device
from .outcomes import endings
from .screen import Csv, Picture, check_picture, keep, show
from .targets import Target, load, outputs_of

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False,
                  help="Will this network train at this depth, and if not, why?")
ROWS = 40  # of a longer table the first and last are printed

Samples = Annotated[int, typer.Option(help="inputs to measure at: draws, or the first ones of --inputs", min=1)]


def spectrum(target: Target, shapes: Input = None, inputs: File = None, part: Annotated[str, typer.Option(
                 help="all: input to output; body: first layer's output to the last hidden layer's")] = "all",
             method: Annotated[str, typer.Option(help="auto, product, dense or matrix_free")] = "auto",
             k: Annotated[int | None, typer.Option(help="only the k largest singular values")] = None,
             samples: Samples = 4, vocabulary: Vocabulary = None,
             start: Annotated[str | None, typer.Option(help="module whose output is the input")] = None,
             wrt: Annotated[str | None, typer.Option(help="of several inputs the one that is varied, by key or by "
                                                     "place")] = None, output: Output = None,
             seed: Seed = 0, picture: Picture = None, csv: Csv = None, device: Device = None,
             as_json: AsJson = False) -> None:
    """Singular values of the input-output Jacobian, right in every one where the model is a chain of layers.

    Exit status: 0 measured; 2 a mistake of the call, or a crash of the model's code; 70 an error of flowstudy.
    """
    with endings("spectrum"), answer(as_json) as found_out:
        check_picture("spectrum", picture)
        model = on_device("spectrum", load("spectrum", target, seed), device)
        x, _ = inputs_asked_for("spectrum", model, Asked(shapes, inputs, vocabulary, samples, seed))
        outputs_of("spectrum", model, x)
        found = jacobian_spectrum(model, x, part=part, method=method, k=k, start=start, wrt=key_of_option(wrt),
                                  output=key_of_option(output), samples=samples, seed=seed)
        by_rank = log10_by_rank(found.frame)
        samples = min(samples, len(x))
        typer.echo(f"log10 of the singular values of {target}, over {samples} samples\n")
        show(by_rank, ROWS)
        typer.echo(f"\n{found!r}")
        found_out |= {"target": target, "samples": samples, "part": part, "method": found.method, "dtype": found.dtype,
                      "layers": found.factors, "rank": found.rank.tolist(), "below_floor": found.below_floor.tolist(),
                      "log10_singular_values": by_rank}
        keep("spectrum", found, picture, csv)


def log10_by_rank(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per rank of the singular value: `median`, `lowest`, `highest` over samples and the largest `error`.

    All are in decades (log10).
    """
    decades = frame[["log_singular_value", "log_error"]] / math.log(10)
    return decades.assign(rank=frame["rank"]).groupby("rank").agg(
        median=("log_singular_value", "median"), lowest=("log_singular_value", "min"),
        highest=("log_singular_value", "max"), error=("log_error", "max")).reset_index()


def tell_version(asked: bool) -> bool:
    if asked:
        typer.echo(f"flowstudy {flowstudy.__version__}")
        raise typer.Exit
    return asked


@app.callback()
def whole_program(version: Annotated[bool, typer.Option("--version", callback=tell_version, is_eager=True,
                                                        help="print the version and end")] = False) -> None:
    pass


for command in (check, spectrum, sweeps.sweep, sweeps.status, studies.study, studies.figures):
    app.command()(command)
