"""`flowstudy spectrum`: the singular values of a model's Jacobian as a table, and a picture if asked."""

import math
from pathlib import Path

import pandas as pd
import typer

from flowstudy.measure import jacobian_spectrum

from .as_json import answer
from .batches import inputs_asked_for
from .options import Asked, key_of_option
from .outcomes import endings
from .screen import check_picture, keep, show
from .targets import load, on_device, outputs_of

ROWS = 40  # of a longer table the first and last are printed


def tell_spectrum(target: str, asked: Asked, *, part: str, method: str, k: int | None, start: str | None,
                  wrt: str | None, picture: Path | None, csv: Path | None, device: str | None, as_json: bool) -> None:
    """The command, whose options `commands.spectrum` declares."""
    with endings("spectrum"), answer(as_json) as found_out:
        check_picture("spectrum", picture)
        model = on_device("spectrum", load("spectrum", target, asked.seed), device)
        x, _ = inputs_asked_for("spectrum", model, asked)
        outputs_of("spectrum", model, x)
        found = jacobian_spectrum(model, x, part=part, method=method, k=k, start=start, wrt=key_of_option(wrt),
                                  output=asked.entry, samples=asked.samples, seed=asked.seed)
        by_rank = log10_by_rank(found.frame)
        samples = min(asked.samples, len(x))
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
