"""One study: its notebook run with the given parameters, kept with its page, its figures and a stamp."""

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

from flowstudy.seal import sealed_json
from flowstudy.whole_file import write_whole

from .replication import keep_record
from .stamp import is_unchanged, stamp_of

SOCKET_ADDRESS = 103  # bytes of a path that a socket may have on macOS; on Linux it is 107


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
    executed = folder / notebook.name
    started, began = time.perf_counter(), time.time()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "stamp.json").unlink(missing_ok=True)
        run_notebook(notebook, executed, parameters)
        seconds = time.perf_counter() - started
        page, _ = HTMLExporter(template_name="lab").from_filename(str(executed))
        write_whole(executed.with_suffix(".html"), page.encode())
        stamp = stamp_of(notebook, profile, parameters, folder) | {
            "seconds": round(seconds, 1), "finished": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}
        write_whole(folder / "stamp.json", sealed_json(stamp))
        if records is not None:
            keep_record(records, stamp, folder, computed=is_newer(Path(parameters["results"]), began))
    except Exception as error:  # whatever a study dies of, a full disk too, the others still run
        tqdm.write(f"{study}: FAILED: {error}\n(the notebook as far as it came: {executed})", file=sys.stderr)
        return False
    tqdm.write(f"{study}: {seconds:.0f} s, {len(list(folder.glob('*.svg')))} figures")
    return True


def is_newer(store: Path, began: float) -> bool:
    """Whether anything was written to the store since: a study that found all its results there computed nothing."""
    return any(path.stat().st_mtime >= began for path in store.rglob("*") if path.is_file())


def run_notebook(notebook: Path, executed: Path, parameters: dict) -> None:
    """Run the notebook in a scratch folder (two runs may be under way), and keep it as far as it came."""
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory(dir=short_folder()) as sockets:
        running = Path(scratch) / executed.name
        try:
            papermill.execute_notebook(str(notebook), str(running), parameters, kernel_name="python3",
                                       cwd=str(Path.cwd()), progress_bar=False, log_output=True,
                                       config=kernels(sockets), shutdown_kernel="immediate")
        finally:
            if running.exists():
                write_whole(executed, running.read_bytes())


def kernels(sockets: str) -> Config:
    """Configuration of the kernel's connection: through socket files in a private folder, so that no port is opened."""
    return Config({"KernelManager": {} if os.name == "nt" else {"transport": "ipc", "ip": f"{sockets}/kernel"}})


def short_folder() -> str | None:
    """A place for a private folder of sockets whose path is short enough, since a socket's address has a limit."""
    places = (tempfile.gettempdir(), "/tmp", os.environ.get("XDG_RUNTIME_DIR", ""))
    short = (place for place in places if place and os.access(place, os.W_OK | os.X_OK)
             and len(os.fsencode(place)) + len("/tmp12345678/kernel-5") <= SOCKET_ADDRESS)
    return next(short, None)


def quieten() -> None:
    """Silence the messages of kernels and converters that a user cannot act on, in a process that only runs studies."""
    os.environ.setdefault("TQDM_MININTERVAL", "5")  # the kernels' progress bars, relayed line by line
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # silences the kernel's debugger
    logging.getLogger("traitlets").setLevel(logging.ERROR)  # nbconvert asks for alternative texts
    # papermill relays a kernel's stderr as warnings, in the thread that has the study's name.
    logging.basicConfig(level=logging.WARNING, format="%(threadName)s: %(message)s")
