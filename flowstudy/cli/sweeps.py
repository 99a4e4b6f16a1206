"""`flowstudy sweep` and `flowstudy status`: run a plan from a file, and see how far a store's plans have come."""

import contextlib
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from rich.markup import escape

from flowstudy.refusal import RefusalError, printable
from flowstudy.sweep import StoreError, SweepError, run
from flowstudy.sweep.plan import check_measures, table_of
from flowstudy.sweep.plan_file import EXAMPLE, read_plan
from flowstudy.sweep.plan_schema import plan_schema
from flowstudy.sweep.status import status as status_of

from .as_json import AsJson, answer


def tell_schema(asked: bool) -> bool:
    if asked:
        typer.echo(json.dumps(plan_schema(), indent=2))
        raise typer.Exit
    return asked


StoreOption = Annotated[Path, typer.Option(help="folder of the results")]


def sweep(
    plan: Annotated[Path, typer.Argument(help="YAML with `grid:` or `random_search:`, `measure:` and `options:`")],
    store: StoreOption = Path("results"),
    measure: Annotated[str | None, typer.Option(help="instead of the plan's: training_loss,gradient_flow, ...")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    shard: Annotated[str | None, typer.Option(help="i/N: part i of N, as for a Slurm array")] = None,
    engine: Annotated[str, typer.Option(help="local, or a Dask scheduler such as tcp://127.0.0.1:8786")] = "local",
    insecure_network: Annotated[bool, typer.Option(
        "--insecure-network", help="admit a Dask scheduler of another machine without TLS: whoever reaches it runs "
                                   "code on it")] = False,
    nets_at_once: Annotated[int | None, typer.Option(help="the largest stack", min=1)] = None,
    progress: Annotated[bool, typer.Option(help="a progress bar")] = True,
    schema: Annotated[bool, typer.Option("--schema", callback=tell_schema, is_eager=True,
                                         help="print the JSON schema of plan files, for editors, and end")] = False,
) -> None:
    with one_line():
        asked = read_plan(plan, measure.split(",") if measure and "," in measure else measure)
        rows = run(asked.cells, measure=asked.measure, store=store, device=device, shard=shard, engine=engine,
                   insecure_network=insecure_network, nets_at_once=nets_at_once, progress=progress, **asked.options)
        frames = {asked.measure: rows} if isinstance(asked.measure, str) else rows
        options = check_measures(asked.measure, asked.options, asked.cells)
    for name, frame in frames.items():
        typer.echo(f"{name}: {frame['cell'].nunique()} cells, {len(frame)} rows, in "
                   f"{store / table_of(name, options[name])}")


sweep.__doc__ = f"""Train and measure what the store lacks of a plan.

Exit status: 0 all done, 1 some cells failed, 2 refused. A plan, whole:

\b
{escape(EXAMPLE)}"""


def status(store: Annotated[Path, typer.Argument(help="folder of the results")] = Path("results"),
           as_json: AsJson = False) -> None:
    """Done, failed and missing cells of every plan, and the time left at the latest pace."""
    with one_line():
        plans = status_of(store)
    if plans.empty:
        typer.echo(f"status: no plan has been run in {store}.", err=True)
        raise typer.Exit(2)
    if as_json:
        with answer(as_json) as found:
            found["plans"] = plans
        return
    shown = plans.assign(left=plans["seconds_left"].map(in_words)).drop(columns=["seconds_left", "asked", "table"])
    shown = shown.map(lambda value: printable(value) if isinstance(value, str) else value)  # files may be anybody's
    typer.echo(shown.to_string(index=False))
    for table in plans.loc[plans["failed"] > 0, "table"].unique():
        typer.echo(f"tracebacks: {store / 'failed' / table}")


def in_words(seconds: float) -> str:
    return "?" if pd.isna(seconds) else str(timedelta(seconds=round(seconds)))


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """Print errors that the user can mend as one line, without a traceback."""
    try:
        yield
    except SweepError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    except StoreError as error:
        typer.echo(error.strerror, err=True)
        raise typer.Exit(2) from None
    except RefusalError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
