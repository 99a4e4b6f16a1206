"""One study: its notebook run with the given parameters, kept with its page, its figures and a stamp."""

import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

import papermill
from nbconvert import HTMLExporter
from tqdm import tqdm
from traitlets.config import Config

from flowstudy.whole_file import write_whole

from .replication import keep_record
from .stamp import is_unchanged, stamp_of


def run_study(notebook: Path, profile: str, parameters: dict, folder: Path, records: Path | None = None) -> bool:
    """Run a study unless it was run so before; whether its figures are there at the end.

    Args:
        parameters: for the notebook: `device` and `results`, and what is to differ from its own.
        folder: for the executed notebook, its page, figures, tables and the stamp. The last is written last, so that
            a run cut short is not taken for a finished one.
        records: what the study says of the paper's numbers is kept under this folder; None: nowhere.
    """
    study, parameters = notebook.stem, parameters | {"figures": str(folder)}
    if is_unchanged(notebook, parameters, folder):
        tqdm.write(f"{study}: unchanged, skipped")
        return True
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stamp.json").unlink(missing_ok=True)
    executed = folder / notebook.name
    started, began = time.perf_counter(), time.time()
    try:
        run_notebook(notebook, executed, parameters)
    except Exception as error:  # whatever a study dies of, the others still run
        tqdm.write(f"{study}: FAILED: {error}\n(the notebook as far as it came: {executed})", file=sys.stderr)
        return False
    seconds = time.perf_counter() - started
    page, _ = HTMLExporter(template_name="lab").from_filename(str(executed))
    write_whole(executed.with_suffix(".html"), page.encode())
    stamp = stamp_of(notebook, profile, parameters, folder) | {
        "seconds": round(seconds, 1), "finished": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}
    write_whole(folder / "stamp.json", json.dumps(stamp, indent=1).encode())
    if records is not None:
        keep_record(records, stamp, folder, computed=is_newer(Path(parameters["results"]), began))
    tqdm.write(f"{study}: {seconds:.0f} s, {len(list(folder.glob('*.svg')))} figures")
    return True


def is_newer(store: Path, began: float) -> bool:
    """Whether anything was written to the store since: a study that found all its results there computed nothing."""
    return any(path.stat().st_mtime >= began for path in store.rglob("*") if path.is_file())


def run_notebook(notebook: Path, executed: Path, parameters: dict) -> None:
    """Run the notebook in a scratch folder (two runs may be under way), and keep it as far as it came."""
    with tempfile.TemporaryDirectory() as scratch:
        running = Path(scratch) / executed.name
        try:
            papermill.execute_notebook(str(notebook), str(running), parameters, kernel_name="python3",
                                       cwd=str(Path.cwd()), progress_bar=False, log_output=True,
                                       config=kernels(scratch), shutdown_kernel="immediate")
        finally:
            if running.exists():
                write_whole(executed, running.read_bytes())


def kernels(scratch: str) -> Config:
    """How to talk to the kernel: through sockets in the scratch folder, where no other run's are; no port is opened."""
    return Config({"KernelManager": {} if os.name == "nt" else {"transport": "ipc", "ip": f"{scratch}/kernel"}})


def quieten() -> None:
    """Of what kernels and converters say, only what a user can act on; for a process whose only work is studies."""
    os.environ.setdefault("TQDM_MININTERVAL", "5")  # the kernels' progress bars, relayed line by line
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # silences the kernel's debugger
    logging.getLogger("traitlets").setLevel(logging.ERROR)  # nbconvert asks for alternative texts
    logging.basicConfig(level=logging.WARNING, format="%(message)s")  # papermill relays a kernel's stderr as warnings
