"""The verdicts of `trainability` compared with training, for 201 nets whose outcome is known.

    FLOWSTUDY_DATA=... python -m benchmarks.trainability OUTCOMES.csv [--optimizer adam] [--rows FILE] [--family FC]

A reading ranks the nets; AUC is the share of pairs, one net that trained and one that did not, that it ranks rightly.
`trained`: accuracy above 0.7 on 2,000 training samples after 1,000 steps of batch 64 at the best of eight rates.  With
--rows each net is kept as it is done, and a run that was stopped goes on.  On a CPU the trials of convolutional nets
and transformers take ten times as long as those of fully connected ones: with --steps 0 the kernel is worked out here,
and the trial is the lowest loss after 100 steps that the table of outcomes has.
"""

import math
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from sklearn.metrics import roc_auc_score

from flowstudy.trainability import trainability
from flowstudy.trainability.reading import HORIZON, LOSS_WEIGHT, kind_by_trial

from .timing import machine
from .trainability_nets import KnownNet, known_nets, small_digits

TRAINED = 0.7
OUTCOME = {"momentum": "accuracy_sgd", "adam": "accuracy_adam"}  # how the nets were trained, and its column
TRIAL = {"momentum": "loss_after_100_sgd", "adam": "loss_after_100_adam"}
FAMILIES = {"FC": "fully connected", "Conv": "convolutional", "Former": "transformers"}
READINGS = ["kernel", "loss_after_trial", "both"]  # the lower, the better the net should train


def main(outcomes: Annotated[Path, typer.Argument(help="table of nets and what became of them")],
         optimizer: Annotated[str, typer.Option(help="momentum or adam")] = "momentum",
         steps: Annotated[int, typer.Option(help="of the trial; 0 reads the kernel alone")] = 100,
         family: Annotated[list[str], typer.Option(help="may be given several times")] = tuple(FAMILIES),
         device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
         rows: Annotated[Path | None, typer.Option(help="keep the readings here, as CSV")] = None) -> None:
    x, y = (part.to(device) for part in small_digits())
    done = pd.read_csv(rows) if rows is not None and rows.exists() else pd.DataFrame({"name": []})
    for known in known_nets(outcomes):
        if known.outcome.cls in family and known.name not in set(done.name):
            row = {"name": known.name, "family": FAMILIES[known.outcome.cls],
                   **{f"accuracy_{name}": known.outcome[column] for name, column in OUTCOME.items()},
                   **readings(known, x, y, optimizer, steps)}
            done = pd.concat([done, pd.DataFrame([row])], ignore_index=True)
            if rows is not None:
                done.to_csv(rows, index=False)
    print(f"Trainability, {len(done)} nets, {optimizer}: "
          + ", ".join(f"{key} {value}" for key, value in machine(torch.device(device)).items()))
    done = judged(done.assign(accuracy=done[f"accuracy_{optimizer}"]), optimizer)
    print(areas(done).to_string(index=False, float_format=lambda value: f"{value:.3f}"))


def readings(known: KnownNet, x: torch.Tensor, y: torch.Tensor, optimizer: str, steps: int) -> dict[str, float]:
    """Of the product: what `trainability` finds, on 48 samples that it draws."""
    found = trainability(known.net.to(x.device), x, y, optimizer=optimizer, trial=steps)
    decay = found.kernel.adams or found.kernel.decay
    remaining = decay.remaining(HORIZON)
    lowest = math.inf if found.tried is None or found.tried.best is None else found.tried.best.loss
    of_table = {f"trial_{name}": known.outcome[TRIAL[name]] for name in OUTCOME}
    own = {} if found.tried is None else {f"trial_{optimizer}": lowest}
    far_off = max(0.0, math.log10(found.loss / found.constant_loss)) if math.isfinite(found.loss) else 300.0
    return {"loss_at_start": found.loss, "constant_loss": found.constant_loss, "remaining": remaining,
            "remaining_own": found.kernel.decay.remaining(HORIZON), "uncertain": decay.error(HORIZON),
            "learning_rate": found.learning_rate, "route": found.route,
            "kernel": remaining + LOSS_WEIGHT * far_off, **(of_table | own), "seconds": found.seconds,
            "seconds_of_trial": 0.0 if found.tried is None else found.tried.seconds}


def judged(done: pd.DataFrame, optimizer: str) -> pd.DataFrame:
    """With both readings as one score, and the verdict that the product's rule gives them."""
    lowest = done[f"trial_{optimizer}"].fillna(math.inf).clip(upper=1e30)
    verdicts = [kind_by_trial(*row) for row in zip(done.remaining, lowest, done.constant_loss, strict=True)]
    return done.assign(loss_after_trial=lowest, both=(lowest / done.constant_loss).map(math.log) + done.remaining,
                       verdict=verdicts)


def areas(done: pd.DataFrame) -> pd.DataFrame:
    """AUC of each reading over all nets and by family; nan where all nets of a family had one outcome."""
    table = []
    for name, part in [("all", done), *done.groupby("family")]:
        trained = part.accuracy > TRAINED
        table.append({"nets": name, "count": len(part), "trained": int(trained.sum())} | {
            reading: roc_auc_score(trained, -part[reading].clip(upper=1e30)) if 0 < trained.sum() < len(part)
            else float("nan") for reading in READINGS} | {
            "verdict right": (trained == (part.verdict == "trains")).mean(),
            "trains, and did not": int((~trained & (part.verdict == "trains")).sum()),
            "does not, and did": int((trained & (part.verdict == "does not train")).sum()),
            "cannot tell": int((part.verdict == "cannot tell").sum()), "seconds": part.seconds.sum()})
    return pd.DataFrame(table)


if __name__ == "__main__":
    typer.run(main)
