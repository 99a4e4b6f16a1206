"""All measurements of flowstudy on a GPU by one command, the most important first.

    python -m benchmarks.gpu --minutes 9 --out DIR [--profile gpu10] [--tiny]
    python -m benchmarks.gpu --read DIR ...    # into benchmarks/results/gpu.md, replication/gpu10 and REPLICATION.md

It needs torch, numpy, scipy, pandas and pyarrow, no network and no installation: `make gpu-bundle` packs the rest into
build/flowstudy-gpu.tgz; unpack that on the machine with the GPU, and call this in the folder flowstudy-gpu.

A part that fails is recorded, and the others run.  Tables first; what time is left then goes to table 1's nets and to
whole groups of figure 1's search, with as many epochs as their measured speed allows.  DIR holds two files, whole after
every part: `records.json` and `store.tgz`, the store of those runs.  `--tiny` tries every part in a minute, and
measures nothing.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from .all_parts import PARTS
from .parts import FULL, TINY
from .record import Record, read
from .searches import SEARCHES, search
from .table_1 import TABLE_1, train_table_1

ROOT = Path(__file__).resolve().parents[2]
EVERY = (*PARTS, TABLE_1, SEARCHES)


def main() -> None:
    # Not typer, as elsewhere: what reads its options needs pydantic, which is compiled and not in the bundle.
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, help="folder of the results")
    what.add_argument("--read", type=Path, nargs="+", help="write the tables and records of these folders; of a part "
                                                            "that several have, the last one's")
    parser.add_argument("--into", type=Path, default=ROOT, help="the repository, or another folder for what is read")
    parser.add_argument("--only", nargs="+", choices=EVERY, help="these parts, instead of all")
    parser.add_argument("--minutes", type=float, default=9.0, help="all of it ends by then")
    parser.add_argument("--profile", default="gpu10", help="of studies/profiles.yaml: the searches")
    parser.add_argument("--max-files", type=int, default=8, help="at most so many in the folder")
    parser.add_argument("--max-mb", type=float, default=16.0, help="the store is left out where it would be larger")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to try the command")
    given = parser.parse_args()
    if given.read:
        from .replicated import replicate, replicate_table_1  # of what the bundle leaves out

        tables = given.into / "benchmarks/results/gpu.md"
        tables.parent.mkdir(parents=True, exist_ok=True)
        tables.write_text(read(given.read))
        for folder in given.read:
            print(replicate(folder, given.into), replicate_table_1(folder, given.into), sep="\n")
    elif not torch.cuda.is_available():
        parser.error("needs a machine whose GPU torch sees, got none")
    else:
        record = Record(given.out, 60 * given.minutes, given.max_files, given.max_mb, given.profile)
        measure(given.out, given.tiny, record, given.only or EVERY)


def measure(out: Path, tiny: bool, record: Record, wanted: Sequence[str]) -> None:
    if (ROOT / "data").is_dir():  # the bundle's
        os.environ.setdefault("FLOWSTUDY_DATA", str(ROOT / "data"))
    device, sizes = torch.device("cuda:0"), TINY if tiny else FULL
    for name, part in PARTS.items():
        if name in wanted or name == "machine":  # which tables and records name
            record.attempt(name, lambda part=part: part(device, sizes, record))
    with tempfile.TemporaryDirectory() as store:
        if TABLE_1 in wanted:
            train_table_1(device, Path(store), record)
        if SEARCHES in wanted:
            search(device, Path(store), record)
    failed = [name for name, part in record.parts.items() if "error" in part]
    print(f"{out}: {len(record.parts)} parts" + (f", of which failed: {', '.join(failed)}" if failed else ""))


if __name__ == "__main__":
    main()
