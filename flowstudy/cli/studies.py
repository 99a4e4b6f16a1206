"""`flowstudy study` and `flowstudy figures`: run the studies that travel with flowstudy."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
import yaml

from .outcomes import one_line, stop

Profile = Annotated[str, typer.Option(help="smoke, quick, laptop, gpu or paper: how much is computed")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
Results = Annotated[Path, typer.Option(help="folder of the store, where what was computed is found again")]
Notebooks = Annotated[Path | None, typer.Option(
    "--studies", help="a folder of notebooks with a profiles.yaml, instead of flowstudy's own")]
NEEDED = ("papermill", "ipykernel", "nbconvert")  # what runs notebooks: the extra `studies`


def study(
    name: Annotated[str, typer.Argument(help="depth_vs_gradient, loss_vs_depth, ...")],
    out: Annotated[Path | None, typer.Option(help="folder of the figures; without, figures/NAME")] = None,
    profile: Profile = "quick",
    parameter: Annotated[list[str] | None, typer.Option(
        "--parameter", "-p", metavar="NAME=VALUE", help="another value for the notebook, in YAML: -p seeds=5")] = None,
    results: Results = Path("results"),
    device: Device = "auto",
    studies: Notebooks = None,
) -> None:
    """Run one study, a notebook that asks one question, and keep its figures, tables and executed notebook.

    Exit status: 0 done, 1 the notebook failed, 2 refused.
    """
    check_extra("study")
    from flowstudy.figures.one_study import quieten, run_study  # needs the extra
    from flowstudy.figures.plan import Studies, check_study, own_studies

    with one_line():
        known = own_studies() if studies is None else Studies(studies.resolve())
        plan = known.parameters("study", profile)
        check_study("study", "`name`", name, plan)
        changed = dict(map(name_and_value, parameter or []))
        known.check_parameters(f"study: {name}", name, changed)
    quieten()
    folder = (Path("figures") / name if out is None else out).resolve()
    common = {"device": device, "results": str(results.resolve())}
    if not run_study(known.notebook(name), profile, plan[name] | common | changed, folder):
        raise typer.Exit(1)
    typer.echo(f"figures: {folder}")


def figures(
    profile: Profile = "quick",
    only: Annotated[str | None, typer.Option(help="one study instead of all")] = None,
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option(help="folder of the figures; without, figures/PROFILE")] = None,
    results: Results = Path("results"),
    gallery: Annotated[Path | None, typer.Option(
        help="folder of the pictures and small tables that git keeps, made anew; without, they are left alone")] = None,
    records: Annotated[Path | None, typer.Option(
        help="folder of REPLICATION.md and its records, to be written anew; without, they are left alone")] = None,
    studies: Notebooks = None,
) -> None:
    """Run every study whose notebook, parameters or code have changed, and write a page that shows all figures.

    Exit status: 0 done, 1 a study failed (the others are done), 2 refused.
    """
    check_extra("figures")
    from flowstudy.figures.all_studies import regenerate  # needs the extra
    from flowstudy.figures.one_study import quieten
    from flowstudy.figures.plan import Studies, own_studies

    quieten()
    folder = (Path("figures") / profile if out is None else out).resolve()
    with one_line():
        failed = regenerate(own_studies() if studies is None else Studies(studies.resolve()), profile, only, device,
                            folder, results.resolve(), None if records is None else records.resolve(),
                            None if gallery is None else gallery.resolve())
    typer.echo(f"figures: {folder / 'index.html'}")
    if failed:
        typer.echo(f"figures: failed: {', '.join(failed)}. The other studies are done.", err=True)
        raise typer.Exit(1)


def check_extra(call: str) -> None:
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        stop(f"{call}: studies are notebooks, and {', '.join(missing)} must be installed to run them. "
             'Run: pip install "flowstudy[studies]"')


def name_and_value(words: str) -> tuple[str, object]:
    name, equals, value = words.partition("=")
    if not name or not equals:
        stop(f"study: `-p` must be name=value, got {words!r}. Say for instance -p seeds=5 or -p \"depths=[10, 20]\".")
    return name, yaml.safe_load(value)
