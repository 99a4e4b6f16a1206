"""`flowstudy check` and `flowstudy spectrum`: a verdict, a table and a picture of a model named on the command line."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from flowstudy.cli import sweeps
from flowstudy.measure import gradient_flow, jacobian_spectrum
from flowstudy.measure.drawn import Drawn
from flowstudy.measure.models.layers import input_features
from flowstudy.refusal import RefusalError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Will this network train at this depth, and if not, why?")
ROWS = 40  # of a longer table the first and last are printed

Target = Annotated[str, typer.Argument(help="package.module:name or file.py:name, a model or its builder")]
Input = Annotated[str | None, typer.Option("--input", help="shape of one sample, such as 784 or 3x32x32")]
Samples = Annotated[int, typer.Option(help="inputs to measure at: standard normal draws", min=1)]
Vocabulary = Annotated[int | None, typer.Option(help="the model takes token ids below this number", min=1)]
Seed = Annotated[int, typer.Option(help="of the weights that the builder draws, and of inputs and labels")]
Picture = Annotated[Path | None, typer.Option(help="where the picture goes; its ending tells the format")]
Csv = Annotated[Path | None, typer.Option(help="keep the whole table here")]


@app.command()
def check(target: Target, shape: Input = None, classes: Annotated[int | None, typer.Option(
              help="cross-entropy with random labels; without, a random linear read-out", min=2)] = None,
          samples: Samples = 32, vocabulary: Vocabulary = None, train: Annotated[bool, typer.Option(
              "--train", help="measure in train mode (dropout, batch statistics)")] = False,
          seed: Seed = 0, picture: Picture = Path("gradient_flow.png"), csv: Csv = None) -> None:
    """Does the gradient reach the first layer?  Exit status: 0 stable, 1 vanishing, exploding, chaotic or dead."""
    model = load("check", target, seed).train(train)
    x = draw("check", model, shape, samples, vocabulary, seed)
    y = None if classes is None else torch.randint(classes, (samples,), generator=generator(seed + 1)).to(x.device)
    flow = in_plain_words(lambda: gradient_flow(model, x, y))
    columns = {"layer": "layer", "module": "module", "type": "type", "log10_error_signal_norm": "|dL/dh|",
               "log10_weight_gradient_norm": "|dL/dW|", "activation_mean_square": "h^2",
               "activation_correlation": "corr."}
    show(f"{target}, {samples} samples: log10 norms of error signal and weight gradient by layer, mean square of the "
         "output h, correlation of two samples' h", flow.frame[list(columns)].rename(columns=columns))
    typer.echo(f"\n{flow.verdict}")
    if flow.verdict.advice:
        typer.echo(flow.verdict.advice)
    keep(flow, picture, csv)
    raise typer.Exit(flow.verdict.kind != "stable")


@app.command()
def spectrum(target: Target, shape: Input = None, part: Annotated[str, typer.Option(
                 help="all: input to output; body: first layer's output to the last hidden layer's")] = "all",
             method: Annotated[str, typer.Option(help="auto, product, dense or matrix_free")] = "auto",
             k: Annotated[int | None, typer.Option(help="only the k largest singular values")] = None,
             samples: Samples = 4, vocabulary: Vocabulary = None,
             start: Annotated[str | None, typer.Option(help="module whose output is the input")] = None,
             seed: Seed = 0, picture: Picture = Path("jacobian_spectrum.png"), csv: Csv = None) -> None:
    """Singular values of the input-output Jacobian, right in every one where the model is a chain of layers."""
    model = load("spectrum", target, seed)
    x = draw("spectrum", model, shape, samples, vocabulary, seed)
    found = in_plain_words(lambda: jacobian_spectrum(model, x, part=part, method=method, k=k, start=start,
                                                     samples=samples, seed=seed))
    by_rank = found.frame.groupby("rank").agg(
        median=("log_singular_value", "median"), lowest=("log_singular_value", "min"),
        highest=("log_singular_value", "max"), error=("log_error", "max"))
    show(f"ln singular values of {target}, over {samples} samples", by_rank.reset_index())
    typer.echo(f"\n{found!r}")
    keep(found, picture, csv)


# --- the model and what it is shown ----------------------------------------------------------------------------------


def load(call: str, target: str, seed: int) -> nn.Module:
    """The model that `target` names; a function or class is called without arguments, from a known random state."""
    where, _, name = target.partition(":")
    if not where or not name:
        stop(f"{call}: `target` must be package.module:name or file.py:name, got {target!r}.")
    module = import_file(call, Path(where)) if where.endswith(".py") else import_module(call, where)
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            public = ", ".join(key for key in vars(found) if not key.startswith("_")) if found is module else ""
            stop(f"{call}: `target` must name something in {where}, got {name!r}. It has: {public or 'nothing such'}.")
        found = getattr(found, part)
    torch.manual_seed(seed)
    model = found if isinstance(found, nn.Module) or not callable(found) else found()
    if not isinstance(model, nn.Module):
        stop(f"{call}: `target` must be an nn.Module or a function that returns one, got {type(model).__name__}.")
    return model


def import_module(call: str, name: str) -> object:
    sys.path.insert(0, str(Path.cwd()))  # a console script does not look into the folder that it is called in
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the user's module was found and lacks something itself: its own traceback tells more
        return stop(f"{call}: `target` must name a module that can be imported from {Path.cwd()}, got {name!r}. "
                    "Give a file as path/to/file.py:name.")
    finally:
        sys.path.pop(0)


def import_file(call: str, path: Path) -> object:
    if not path.is_file():
        stop(f"{call}: `target` must name a file that exists, got {str(path)!r}.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def draw(call: str, model: nn.Module, shape: str | None, samples: int, vocabulary: int | None, seed: int) -> Tensor:
    """(samples, *shape) on the model's device: standard normal, or token ids."""
    if shape is None:
        features = input_features(model)
        if features is None:
            stop(f"{call}: `--input` must be given: the input shape of {type(model).__name__} is not known. "
                 "Pass the shape of one sample, such as --input 3x32x32.")
        sizes = [features]
    elif all(size.isdecimal() and int(size) > 0 for size in shape.lower().split("x")):
        sizes = [int(size) for size in shape.lower().split("x")]
    else:
        stop(f"{call}: `--input` must be sizes joined by x, such as 784 or 3x32x32, got {shape!r}.")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if vocabulary is not None:
        return torch.randint(vocabulary, (samples, *sizes), generator=generator(seed)).to(device)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return torch.randn(samples, *sizes, generator=generator(seed)).to(device, dtype)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- what is printed and kept ----------------------------------------------------------------------------------------


def in_plain_words(measure: Callable[[], Drawn]) -> Drawn:
    """A measurement's own refusal is one line for the user; what the user's model raises keeps its traceback."""
    try:
        return measure()
    except RefusalError as error:
        return stop(str(error))


def stop(message: str) -> None:
    typer.echo(message, err=True)
    raise typer.Exit(2)


def show(title: str, frame: pd.DataFrame) -> None:
    table = Table(box=None, pad_edge=False)
    for name, column in frame.items():
        table.add_column(str(name), justify="right" if pd.api.types.is_numeric_dtype(column) else "left",
                         overflow="fold")
    half = ROWS // 2
    shown = frame if len(frame) <= ROWS else pd.concat([frame[:half], frame[-half:]])
    for i, row in enumerate(shown.itertuples(index=False)):
        if len(shown) < len(frame) and i == half:
            table.add_row(*["..."] * len(frame.columns))
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row))
    typer.echo(f"{title}\n")
    Console().print(table)


def keep(result: Drawn, picture: Path | None, csv: Path | None) -> None:
    for path, write in ((picture, lambda path: result.plot().savefig(path, dpi=110)),
                        (csv, lambda path: result.frame.to_csv(path, index=False))):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
            typer.echo(f"wrote {path}")


app.command()(sweeps.sweep)
app.command()(sweeps.status)
