"""Stamps: a record of what a study's figures depend on, written last; a study with an equal stamp is not run again."""

import hashlib
import json
import os
import subprocess
from importlib.metadata import version
from pathlib import Path

import nbformat
import papermill
import torch

from flowstudy.seal import unsealed_json
from flowstudy.whole_file import read_whole

from .plan import HOUSE

VERSIONS = ("flowstudy", "torch", "numpy", "pandas", "matplotlib")


SAYS = ("profile", "parameters", "seconds", "device", "finished", "commit", "versions", "files")


def read_stamp(folder: Path) -> dict:
    """The stamp of a study's folder.

    Raises:
        FileNotFoundError, OSError: there is none, or it cannot be read.
        ValueError: it is not what was written, or not a stamp.
    """
    stamp = unsealed_json(read_whole(folder / "stamp.json"))
    if not isinstance(stamp, dict) or not stamp.keys() >= set(SAYS):
        raise ValueError(f"it does not say all of {', '.join(SAYS)}")
    return stamp


def is_unchanged(notebook: Path, parameters: dict, folder: Path) -> bool:
    try:
        stamp = read_stamp(folder)
        return (stamp["key"] == what_it_depends_on(notebook, parameters)
                and all(short_hash((folder / name).read_bytes()) == known for name, known in stamp["files"].items()))
    except (OSError, ValueError, KeyError):  # no stamp, or not one of ours: run
        return False


def stamp_of(notebook: Path, profile: str, parameters: dict, folder: Path) -> dict:
    """All that is known of a run that has just ended, but for its time."""
    executed = folder / notebook.name
    return {
        "study": notebook.stem, "profile": profile, "key": what_it_depends_on(notebook, parameters),
        "parameters": effective(executed), "device": device_name(parameters["device"]), "commit": revision(),
        "versions": {name: version(name) for name in VERSIONS},
        "files": {path.name: short_hash(path.read_bytes()) for path in outputs(folder)},
    }


def what_it_depends_on(notebook: Path, parameters: dict) -> str:
    """A digest of what the figures depend on: the notebook's cells, the parameters, flowstudy's code, torch's version.
    """
    cells = [cell["source"] for cell in nbformat.read(notebook, as_version=4)["cells"]]
    code = [short_hash(path.read_bytes()) for path in sorted(HOUSE.rglob("*.py"))]
    return short_hash(json.dumps([cells, parameters, code, torch.__version__], sort_keys=True).encode())


def effective(executed: Path) -> dict:
    """The parameters as the notebook had them, defaults included."""
    return {name: known["default"] for name, known in papermill.inspect_notebook(str(executed)).items()} | dict(
        nbformat.read(executed, as_version=4)["metadata"]["papermill"]["parameters"])


def outputs(folder: Path) -> list[Path]:
    """The study's files in the order in which it wrote them, which is the gallery's order too."""
    found = (path for path in folder.iterdir() if path.name != "stamp.json" and not path.name.startswith("."))
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))


def short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def device_name(device: str) -> str:
    if device == "cpu" or not torch.cuda.is_available():
        return f"CPU, {os.cpu_count()} cores"
    return torch.cuda.get_device_name(None if device == "auto" else device)


def revision() -> str:
    """The git revision of flowstudy's own clone; an installed package may lie inside another repository."""
    if not (HOUSE.parent / ".git").exists():
        return "not a git checkout"
    try:
        described = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=HOUSE.parent, capture_output=True,
                                   text=True, check=True)
        return described.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "not a git checkout"
