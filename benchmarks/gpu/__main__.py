"""All that a GPU can tell of flowstudy, by one command, the most valuable facts first.

    python -m benchmarks.gpu --minutes 9 --out DIR [--profile gpu10] [--tiny]
    python -m benchmarks.gpu --read DIR                        # into benchmarks/results/gpu.md

It needs torch, numpy, scipy, pandas and pyarrow, no network and no installation: `make gpu-bundle` packs the rest into
build/flowstudy-gpu.tgz; unpack that on the machine with the GPU, and call this in the folder flowstudy-gpu.

A part that fails is recorded, and the others run.  Tables first; what time is left then goes to whole groups of figure
1's search, with as many epochs as their measured speed allows.  DIR holds two files, whole after every part:
`records.json` and `store.tgz`, the store of those runs.  `--tiny` tries every part in a minute, and measures nothing.
"""

import os
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer

from .parts import FULL, PARTS, TINY
from .record import Record, read
from .searches import search

ROOT = Path(__file__).resolve().parents[2]


def main(out: Annotated[Path | None, typer.Option(help="folder of the results")] = None,
         minutes: Annotated[float, typer.Option(help="all of it ends by then")] = 9.0,
         profile: Annotated[str, typer.Option(help="of studies/profiles.yaml: the searches")] = "gpu10",
         max_files: Annotated[int, typer.Option(help="at most so many in the folder", min=2)] = 8,
         max_mb: Annotated[float, typer.Option(help="the store is left out where it would be larger")] = 16.0,
         tiny: Annotated[bool, typer.Option(help="toy sizes, to try the command")] = False,
         read_from: Annotated[Path | None, typer.Option("--read", help="write the tables of this folder")] = None,
         into: Annotated[Path, typer.Option(help="where --read writes")] = ROOT / "benchmarks/results/gpu.md") -> None:
    if read_from is not None:
        into.write_text(read(read_from))
        return
    if out is None:
        raise typer.BadParameter("must name a folder for the results. Pass --out DIR, or --read DIR.")
    if not torch.cuda.is_available():
        raise typer.BadParameter("needs a machine whose GPU torch sees, got none.")
    if (ROOT / "data").is_dir():  # the bundle's
        os.environ.setdefault("FLOWSTUDY_DATA", str(ROOT / "data"))
    device, sizes = torch.device("cuda:0"), TINY if tiny else FULL
    record = Record(out, 60 * minutes, max_files, max_mb)
    for name, part in PARTS.items():
        record.attempt(name, lambda part=part: part(device, sizes, record))
    with tempfile.TemporaryDirectory() as store:
        search(device, profile, Path(store), record)
    failed = [name for name, part in record.parts.items() if "error" in part]
    print(f"{out}: {len(record.parts)} parts" + (f", of which failed: {', '.join(failed)}" if failed else ""))


if __name__ == "__main__":
    typer.run(main)
