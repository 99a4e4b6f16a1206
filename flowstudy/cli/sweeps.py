"""`flowstudy sweep` and `flowstudy status`: run a plan from a file, and see how far a store's plans have come."""

from datetime import timedelta
from pathlib import Path

import pandas as pd
import typer

from flowstudy.refusal import printable
from flowstudy.sweep import run
from flowstudy.sweep.plan import check_measures, table_of
from flowstudy.sweep.plan_file import read_plan
from flowstudy.sweep.status import status as status_of

from .as_json import answer
from .outcomes import one_line


def run_plan(plan: Path, store: Path, measure: str | None, **options: object) -> None:
    """The command, whose options `commands.sweep` declares; these are those of `run`."""
    with one_line():
        asked = read_plan(plan, measure.split(",") if measure and "," in measure else measure)
        rows = run(asked.cells, measure=asked.measure, store=store, **options, **asked.options)
        frames = {asked.measure: rows} if isinstance(asked.measure, str) else rows
        tables = check_measures(asked.measure, asked.options, asked.cells)
    for name, frame in frames.items():
        typer.echo(f"{name}: {frame['cell'].nunique()} cells, {len(frame)} rows, in "
                   f"{store / table_of(name, tables[name])}")


def tell_status(store: Path, as_json: bool) -> None:
    """The command, whose options `commands.status` declares."""
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
