"""Pack what a machine with a GPU may lack into one file, to be unpacked there and used without installing anything.

    python -m benchmarks.gpu.bundle [--to build/flowstudy-gpu.tgz]        # make gpu-bundle

In it: flowstudy, benchmarks, tests and the profiles, as git has them; the packages of pure Python that these import,
as they are installed here; MNIST, where FLOWSTUDY_DATA has it.  Not in it: torch, numpy, scipy, pandas, pyarrow.
"""

import os
import re
import subprocess
import tarfile
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parents[2]
OURS = ("flowstudy", "benchmarks", "tests", "studies/profiles.yaml", "pyproject.toml", "LICENSE")
NEEDED = ("jaxtyping", "tqdm", "typer", "pyyaml", "pytest", "mpmath")  # and what these need
THERE = {"torch", "numpy", "scipy", "pandas", "pyarrow"}
COMPILED = {"pydantic"}  # of typer, which imports it only where it reads options
FOLDER, MOST_MB = "flowstudy-gpu", 20


def main(to: Annotated[Path, typer.Option(help="the file")] = ROOT / "build" / "flowstudy-gpu.tgz") -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    files = own_files() | {name: path for package in packages(NEEDED) for name, path in python_of(package).items()}
    files |= mnist()
    with tarfile.open(to, "w:gz") as archive:
        for name, path in sorted(files.items()):
            archive.add(path, f"{FOLDER}/{name}")
    size = to.stat().st_size / 1e6
    if size > MOST_MB:
        to.unlink()
        raise SystemExit(f"The bundle must have at most {MOST_MB} MB, got {size:.1f}. Pack less of it.")
    print(f"{to}: {size:.1f} MB, {len(files)} files, "
          f"{'with' if any(name.startswith('data/') for name in files) else 'without'} MNIST")


def own_files() -> dict[str, Path]:
    """Name in the bundle to path here."""
    tracked = subprocess.run(["git", "ls-files", "-z", *OURS], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name: ROOT / name for name in tracked.stdout.split("\0") if name}


def packages(names: tuple[str, ...]) -> list[str]:
    """These and all that they need, but for what is there, what is compiled, and extras."""
    found, left = [], list(names)
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        if name in found or name in THERE | COMPILED:
            continue
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # of another platform or an older Python
            continue
        found.append(name)
        left += [re.match(r"[\w.-]+", need)[0] for need in needs if "extra ==" not in need]
    return found


def python_of(package: str) -> dict[str, Path]:
    """The files of a distribution that any machine can use."""
    files = metadata.distribution(package).files or []
    return {str(file): Path(file.locate()) for file in files
            if ".." not in file.parts and file.suffix not in (".pyc", ".so", ".pyd")}


def mnist() -> dict[str, Path]:
    folder = Path(os.environ.get("FLOWSTUDY_DATA", ""), "mnist")
    return {f"data/mnist/{path.name}": path for path in folder.glob("*-ubyte.gz")} if folder.is_absolute() else {}


if __name__ == "__main__":
    typer.run(main)
