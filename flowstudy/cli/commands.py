"""The commands: what each takes, and in words what it does.  What does it, torch too, is imported when it runs."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

import flowstudy

from . import options as o
from . import studies
from .options import Asked

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich",
                  help="Will this network train at this depth, and if not, why?")
EXAMPLE = """\
measure: [training_loss, gradient_flow]  # one, or several of one training
options:
  at: {epochs: [0, 5, -1]}  # before training, after 5 epochs, after the last
grid:  # every combination; a list of such mappings is several grids
  net: plain
  init: [glorot_normal, he_normal, orthogonal]
  depth: [10, 50]
  seed: {range: 5}  # 0 to 4; {range: [5, 20]} is 5 to 19
  epochs: 10
random_search:  # the authors' ranges and laws
  - {n: 10, net: highway, depth: [10, 50], epochs: 10, batch_size: 50}
"""


def check(target: o.Target, shapes: o.Input = None, inputs: o.Inputs = None, classes: o.Classes = None,
          data: o.Data = None, loss: o.Loss = None, output: o.Output = None, trial: o.Trial = 0,
          optimizer: o.Optimizer = "sgd", samples: o.Samples = 48, seconds: o.Seconds = None,
          vocabulary: o.Vocabulary = None, train: o.Train = None, seed: o.Seed = 0, picture: o.Picture = None,
          csv: o.Csv = None, device: o.Device = None, as_json: o.AsJson = False) -> None:
    """Does every trainable part get a gradient, does the signal stay alive, will it train?

    Without --data, inputs are standard normal draws (or token ids) and labels
    random; whether the model trains is then tried only if --trial asks for it.

    Exit status:
     0  nothing is against it (a net that learns slowly passes)
     1  a reading is against it
     2  a mistake of the call, or a crash of the model's code
     3  a reading that was asked for could not be taken, or a trial not decide
    70  an error of flowstudy
    """
    from .check import check_model

    asked = Asked(shapes, inputs, vocabulary, samples, seed, classes, loss, output)
    check_model(target, asked, data=data, trial=trial, optimizer=optimizer, seconds=seconds, train=train,
                picture=picture, csv=csv, device=device, as_json=as_json)


def spectrum(target: o.Target, shapes: o.Input = None, inputs: o.Inputs = None, part: o.Part = "all",
             method: o.Method = "auto", k: o.K = None, samples: o.DrawsOrFirst = 4, vocabulary: o.Vocabulary = None,
             start: o.Start = None, wrt: o.Wrt = None, output: o.Output = None, seed: o.Seed = 0,
             picture: o.Picture = None, csv: o.Csv = None, device: o.Device = None,
             as_json: o.AsJson = False) -> None:
    """Singular values of the input-output Jacobian, right in every one where the model is a chain of layers.

    Exit status: 0 measured; 2 a mistake of the call, or a crash of the model's code; 70 an error of flowstudy.
    """
    from .spectrum import tell_spectrum

    asked = Asked(shapes, inputs, vocabulary, samples, seed, output=output)
    tell_spectrum(target, asked, part=part, method=method, k=k, start=start, wrt=wrt, picture=picture, csv=csv,
                  device=device, as_json=as_json)


def tell_schema(asked: bool) -> bool:
    if asked:
        from flowstudy.sweep.plan_schema import plan_schema

        typer.echo(json.dumps(plan_schema(), indent=2))
        raise typer.Exit
    return asked


def sweep(plan: o.Plan, store: o.StoreFolder = Path("results"), measure: o.Measures = None,
          device: o.DeviceOrAuto = "auto", shard: o.Shard = None, engine: o.EngineAddress = "local",
          insecure_network: o.InsecureNetwork = False, nets_at_once: o.NetsAtOnce = None, progress: o.Progress = True,
          schema: Annotated[bool, typer.Option("--schema", callback=tell_schema, is_eager=True,
                                               help="print the JSON schema of plan files, for editors, and end")]
          = False) -> None:
    from .sweeps import run_plan

    run_plan(plan, store, measure, device=device, shard=shard, engine=engine, insecure_network=insecure_network,
             nets_at_once=nets_at_once, progress=progress)


sweep.__doc__ = f"""Train and measure what the store lacks of a plan.

Exit status: 0 all done, 1 some cells failed, 2 refused. A plan, whole:

\b
{escape(EXAMPLE)}"""


def status(store: o.StoreToShow = Path("results"), as_json: o.AsJson = False) -> None:
    """Done, failed and missing cells of every plan, and the time left at the latest pace."""
    from .sweeps import tell_status

    tell_status(store, as_json)


def tell_version(asked: bool) -> bool:
    if asked:
        typer.echo(f"flowstudy {flowstudy.__version__}")
        raise typer.Exit
    return asked


@app.callback()
def whole_program(version: Annotated[bool, typer.Option("--version", callback=tell_version, is_eager=True,
                                                        help="print the version and end")] = False) -> None:
    pass


for command in (check, spectrum, sweep, status, studies.study, studies.figures):
    app.command()(command)
