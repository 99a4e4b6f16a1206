"""`flowstudy check`: is there a gradient, is the signal alive, will it train; on one screen, and a picture if asked."""

from dataclasses import asdict, replace
from pathlib import Path

import torch
import typer
from torch import nn

from flowstudy.measure import GradientFlow, gradient_flow
from flowstudy.measure.gradients.losses import OWN
from flowstudy.refusal import did_you_mean

from .as_json import answer
from .batches import Batch, check_loss_option, drawn_batch, generator, saved_batch
from .options import OPTIMIZERS, Asked
from .outcomes import AGAINST, NOT_TAKEN, endings, stop
from .readings import Reading, gradient_reading, signal_reading, training_reading
from .screen import check_picture, keep, say, show
from .targets import has_batch_statistics, load, on_device

ROWS = 12  # the most rows of the table, so that the whole report fits on one screen
NAME = 30  # the most characters of a module's name; the beginning is cut, since the end tells more
COLUMNS = {"layer": "layer", "module": "module", "log10_error_signal_norm": "|dL/dh|",
           "log10_weight_gradient_norm": "|dL/dW|", "gradient": "gradient", "activation_mean_square": "h^2",
           "activation_correlation": "cosine"}


def check_model(target: str, asked: Asked, *, data: Path | None, trial: int, optimizer: str, seconds: float | None,
                train: bool | None, picture: Path | None, csv: Path | None, device: str | None, as_json: bool) -> None:
    """The command, whose options `commands.check` declares."""
    with endings("check"), answer(as_json) as found_out:
        check_options(asked, data, optimizer, picture)
        model = on_device("check", load("check", target, asked.seed), device)
        model.train(has_batch_statistics(model) if train is None else train)
        batch = drawn_batch("check", model, asked) if data is None else saved_batch("check", model, data, asked)
        shown = some_of(batch, asked.samples, asked.seed)
        flow = gradient_flow(model, shown.x, shown.y, **batch.options)
        say(f"{target}: {batch.words}; {mode_in_words(model)}.")
        tell_layers(flow)
        readings = [gradient_reading(model, shown, flow), signal_reading(flow)]
        tell(1, readings[0])
        tell(2, readings[1])
        last, found = training_reading(model, batch, saved=data is not None, trial=trial, optimizer=optimizer,
                                       samples=asked.samples, seconds=seconds, seed=asked.seed)
        tell(3, last)
        status = summed_up([*readings, last])
        drawn = flow if found is None else found
        found_out |= {"target": target, "measured_on": batch.words, "mode": mode_in_words(model), "status": status,
                      "readings": [asdict(reading) for reading in [*readings, last]], "layers": drawn.frame}
        keep("check", drawn, picture, csv)
    raise typer.Exit(status)


def check_options(asked: Asked, data: Path | None, optimizer: str, picture: Path | None) -> None:
    shape = " ".join(asked.shapes) if asked.shapes else None
    for option, value in (("--input", shape), ("--inputs", asked.file), ("--classes", asked.classes),
                          ("--vocabulary", asked.vocabulary)):
        if data is not None and value is not None:
            stop(f"check: `{option}` must be left out with --data, got {value!r}. The file holds inputs and targets.")
    if data is not None and asked.loss == OWN:
        stop("check: `--loss output` takes no targets, got --data. Pass what the model takes, its labels too, as "
             "--inputs.")
    check_loss_option("check", asked.loss)
    if optimizer not in OPTIMIZERS:
        stop(f"check: `--optimizer` must be one of {', '.join(OPTIMIZERS)}, got {optimizer!r}."
             + did_you_mean(optimizer, OPTIMIZERS))
    check_picture("check", picture)


def some_of(batch: Batch, samples: int, seed: int) -> Batch:
    """A batch of `samples` samples drawn at random from this one, since data are often sorted by class."""
    if samples >= len(batch.x):
        return batch
    chosen = torch.randperm(len(batch.x), generator=generator(seed))[:samples].sort().values.to(batch.x.device)
    return replace(batch, x=batch.x[chosen], y=None if batch.y is None else batch.y[chosen])


def mode_in_words(model: nn.Module) -> str:
    if has_batch_statistics(model):
        return ("in training mode, as it trains with its batch statistics" if model.training else
                "in evaluation mode, which for batch statistics is another net than the one that trains")
    return "in training mode" if model.training else "in evaluation mode"


def tell_layers(flow: GradientFlow) -> None:
    say("By layer: log10 norms of error signal and weight gradient, mean square of the output h, cosine of two "
        "samples' h.")
    names = [name if len(name) <= NAME else f"…{name[1 - NAME:]}" for name in flow.frame["module"]]
    show(flow.frame[list(COLUMNS)].assign(module=names).rename(columns=COLUMNS), ROWS)


def tell(number: int, reading: Reading) -> None:
    say(f"({number}) {reading.question} {reading.answer}")
    for reason in reading.reasons:
        say(reason, indent=4)


def summed_up(readings: list[Reading]) -> int:
    """Print the last line and return the exit status; a reading against the model outranks one that is missing."""
    against = [f"({number})" for number, reading in enumerate(readings, 1) if reading.against]
    missing = [f"({number})" for number, reading in enumerate(readings, 1) if reading.missing]
    if against:
        say(f"Against it: {' and '.join(against)}.")
        return AGAINST
    if missing:
        say(f"Nothing is against it, but {' and '.join(missing)} could not be answered.")
        return NOT_TAKEN
    say("Nothing is against it.")
    return 0
