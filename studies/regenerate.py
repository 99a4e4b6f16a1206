"""Regenerate every figure: run each study's notebook with a profile's parameters, then write the gallery.

A study whose notebook, parameters and flowstudy's own code are those of its last run is skipped.  Results are kept in
the store (`results/`), so a run that was killed goes on where it stopped.
"""

import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import nbformat
import papermill
import torch
import typer
import yaml
from nbconvert import HTMLExporter
from tqdm import tqdm
from traitlets.config import Config

from flowstudy.whole_file import write_whole
from gallery import write_gallery
from replication import keep_record, write_report

STUDIES = Path(__file__).resolve().parent
ROOT = STUDIES.parent
ORDER = ("loss_vs_depth", "depth_vs_gradient", "jacobian_spectra")  # of the gallery; others follow by name


def main(
    profile: Annotated[str, typer.Option(help="a section of profiles.yaml: smoke, quick, laptop, ...")] = "quick",
    only: Annotated[str | None, typer.Option(help="one study instead of all")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    out: Annotated[Path, typer.Option(help="where the figures go")] = ROOT / "figures",
    results: Annotated[Path, typer.Option(help="the store")] = ROOT / "results",
    records: Annotated[Path | None, typer.Option(
        help="where REPLICATION.md and its records go; without, here, but nowhere if --out is another folder")] = None,
) -> None:
    """Run the studies through papermill and write figures/index.html."""
    out, results = out.resolve(), results.resolve()
    records = records.resolve() if records is not None else ROOT if out == ROOT / "figures" else None
    plan = plan_of(profile, only)
    common = {"device": device, "results": str(results)}
    failed = []
    bar = tqdm(plan.items(), desc=f"{profile} profile", unit="study")
    for study, parameters in bar:
        bar.set_postfix_str(study)
        parameters = parameters | common | {"figures": str(out / study)}
        if is_unchanged(study, parameters, out / study):
            tqdm.write(f"{study}: unchanged, skipped")
        elif not regenerate(study, profile, parameters, out / study, records):
            failed.append(study)
    write_gallery(out, [study for study in order(plan_of(profile, None)) if (out / study / "stamp.json").exists()])
    print(f"gallery: {out / 'index.html'}")
    if records is not None:
        write_report(records)
    if failed:
        sys.exit(f"regenerate: failed: {', '.join(failed)}. The other studies are done.")


def plan_of(profile: str, only: str | None) -> dict[str, dict]:
    """Parameters of each study, checked before anything runs."""
    profiles = yaml.safe_load((STUDIES / "profiles.yaml").read_text())
    if profile not in profiles:
        sys.exit(f"regenerate: `--profile` must be one of {', '.join(profiles)}, got {profile!r}.")
    plan = {study: parameters or {} for study, parameters in profiles[profile].items()}
    if only is not None and only not in plan:
        sys.exit(f"regenerate: `--only` must be one of {', '.join(plan)}, got {only!r}.")
    for study, parameters in plan.items():
        path = STUDIES / f"{study}.ipynb"
        if not path.exists():
            sys.exit(f"regenerate: profiles.yaml, {profile}: there is no study {study!r}: {path} does not exist.")
        known = set(papermill.inspect_notebook(str(path)))
        unknown = sorted(set(parameters) - known)
        if unknown:  # papermill itself only warns
            sys.exit(f"regenerate: profiles.yaml, {profile}, {study}: unknown parameter {', '.join(unknown)}; "
                     f"the notebook has {', '.join(sorted(known))}.")
    return {study: plan[study] for study in order(plan) if only in (None, study)}


def order(studies: dict) -> list[str]:
    return [study for study in ORDER if study in studies] + sorted(set(studies) - set(ORDER))


def regenerate(study: str, profile: str, parameters: dict, folder: Path, records: Path | None) -> bool:
    """Run one study; its stamp is written last, so that a run cut short is not taken for a finished one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stamp.json").unlink(missing_ok=True)
    executed = folder / f"{study}.ipynb"
    started, began = time.perf_counter(), time.time()
    try:
        execute(study, executed, parameters)
    except Exception as error:  # whatever a study dies of, the others still run
        tqdm.write(f"{study}: FAILED: {error}\n(the notebook as far as it came: {executed})", file=sys.stderr)
        return False
    seconds = time.perf_counter() - started
    page, _ = HTMLExporter(template_name="lab").from_filename(str(executed))
    write_whole(executed.with_suffix(".html"), page.encode())
    stamp = {
        "study": study, "profile": profile, "key": key_of(study, parameters), "parameters": effective(executed),
        "seconds": round(seconds, 1), "finished": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "device": device_name(parameters["device"]), "commit": commit(),
        "versions": {name: version(name) for name in ("flowstudy", "torch", "numpy", "pandas", "matplotlib")},
        "files": {path.name: digest(path.read_bytes()) for path in outputs(folder)},
    }
    write_whole(folder / "stamp.json", json.dumps(stamp, indent=1).encode())
    if records is not None:
        keep_record(records, stamp, folder, computed=is_newer(Path(parameters["results"]), began))
    tqdm.write(f"{study}: {seconds:.0f} s, {len(list(folder.glob('*.png')))} figures")
    return True


def is_newer(store: Path, began: float) -> bool:
    """Whether anything was written to the store since: a study that found all its results there computed nothing."""
    return any(path.stat().st_mtime >= began for path in store.rglob("*") if path.is_file())


def execute(study: str, executed: Path, parameters: dict) -> None:
    """Run the notebook in a scratch folder (two runs may be under way), and keep it as far as it came."""
    with tempfile.TemporaryDirectory() as scratch:
        running = Path(scratch) / executed.name
        try:
            papermill.execute_notebook(str(STUDIES / f"{study}.ipynb"), str(running), parameters, kernel_name="python3",
                                       cwd=str(ROOT), progress_bar=False, log_output=True, config=kernels(scratch),
                                       shutdown_kernel="immediate")
        finally:
            if running.exists():
                write_whole(executed, running.read_bytes())


def kernels(scratch: str) -> Config:
    """How to talk to the kernel: through sockets in the scratch folder, where no other run's are; no port is opened."""
    return Config({"KernelManager": {} if os.name == "nt" else {"transport": "ipc", "ip": f"{scratch}/kernel"}})


def is_unchanged(study: str, parameters: dict, folder: Path) -> bool:
    try:
        stamp = json.loads((folder / "stamp.json").read_text())
        return (stamp["key"] == key_of(study, parameters)
                and all(digest((folder / name).read_bytes()) == known for name, known in stamp["files"].items()))
    except (OSError, ValueError, KeyError):  # no stamp, or not one of ours: run
        return False


def key_of(study: str, parameters: dict) -> str:
    """What the figures depend on: the notebook's cells, the parameters, the code, the data's place."""
    cells = [cell["source"] for cell in nbformat.read(STUDIES / f"{study}.ipynb", as_version=4)["cells"]]
    code = [digest(path.read_bytes()) for path in sorted((ROOT / "flowstudy").rglob("*.py"))]
    return digest(json.dumps([cells, parameters, code, torch.__version__], sort_keys=True).encode())


def effective(executed: Path) -> dict:
    """The parameters as the notebook had them, defaults included."""
    return {name: known["default"] for name, known in papermill.inspect_notebook(str(executed)).items()} | dict(
        nbformat.read(executed, as_version=4)["metadata"]["papermill"]["parameters"])


def outputs(folder: Path) -> list[Path]:
    """In the order in which the study wrote them, which the gallery keeps."""
    found = (path for path in folder.iterdir() if path.name != "stamp.json" and not path.name.startswith("."))
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def device_name(device: str) -> str:
    if device == "cpu" or not torch.cuda.is_available():
        return f"CPU, {os.cpu_count()} cores"
    return torch.cuda.get_device_name(None if device == "auto" else device)


def commit() -> str:
    try:
        revision = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True,
                                  check=True)
        return revision.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "not a git checkout"


if __name__ == "__main__":
    os.environ.setdefault("TQDM_MININTERVAL", "5")  # the kernels' progress bars, relayed line by line
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # silences the kernel's debugger
    logging.getLogger("traitlets").setLevel(logging.ERROR)  # nbconvert asks for alternative texts
    logging.basicConfig(level=logging.WARNING, format="%(message)s")  # papermill relays a kernel's stderr as warnings
    typer.run(main)
